"""Curves of several runs as one drawing, which scales with the page."""

import io
from collections.abc import Mapping, Sequence

Curve = Sequence[tuple[int, float]]
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_SIZE = (5.2, 3.0)  # inches: letters stay readable on a telephone
_LOGARITHMIC = 4.0  # the largest value over the smallest from which on the axis is logarithmic


def colour(number: int) -> str:
    """The colour of a run, the same in every chart."""
    return COLOURS[number % len(COLOURS)]


def is_wide(values: Sequence[float]) -> bool:
    """Whether positive values range so widely that only a logarithmic axis shows them."""
    return min(values) > 0 and max(values) > _LOGARITHMIC * min(values)


def draw(
    title: str, curves: Mapping[str, Curve], colours: Mapping[str, str], *, from_zero: bool = False
) -> str:
    """An SVG of the curves by the names of their runs. "" where there is nothing to draw.

    from_zero: whether the axis of values begins at zero; else that of positive values which range
    widely is logarithmic. Runs of one point have a dot.
    """
    # Not pyplot, whose state all threads of a server would share.
    from matplotlib.figure import Figure

    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return ""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        steps, values = zip(*curve, strict=True)
        marker = "o" if len(curve) == 1 else ""
        axes.plot(steps, values, color=colours[name], linewidth=1.6, marker=marker, label=name)
    values = [value for curve in curves.values() for _, value in curve]
    if from_zero:
        axes.set_ylim(bottom=0)
    elif is_wide(values):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        # A fixed place: the search for the best one takes seconds where curves are long.
        axes.legend(fontsize=9, frameon=False, loc="upper right")
    out = io.StringIO()
    # Letters as outlines: the same on every machine.
    figure.savefig(out, format="svg", facecolor="white")
    return out.getvalue()[out.getvalue().index("<svg") :]
