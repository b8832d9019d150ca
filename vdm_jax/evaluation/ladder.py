"""A ladder of samplers of ever fewer steps, measured alike: table and curve."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from vdm_jax.evaluation import intervals, protocol
from vdm_jax.stage.guidance import ClassifierFree
from vdm_jax.stage.sampler import Sampler

TIMED_CLIPS = 16
_REPEATS = 3
_COLUMNS = "| model | steps | evaluations | {metrics}r.m.s. to the teacher | s a clip | speed |"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One sampler of the ladder.

    Attributes:
      name: of the model.
      family: the models of one line of the curve.
      steps: of the sampler.
      evaluations: of the network for a clip; guidance takes two a step.
      samples: that were measured.
      scores: shares of samples, by name, such as the judge's.
      distance: root mean square difference of pixels (of 255) to the reference's samples of the
        same noise; 0 for the reference itself.
      figures: further ones, each with its protocol.
      seconds: wall time a clip, in batches of `TIMED_CLIPS`, compiled before; the median of three.
    """

    name: str
    family: str
    steps: int
    evaluations: int
    samples: int
    scores: Mapping[str, float]
    distance: float
    seconds: float
    figures: Sequence[protocol.Result] = ()


def measure(
    sampler: Sampler,
    params: PyTree,
    prompts: Sequence[str],
    *,
    name: str,
    family: str,
    score: Callable[[np.ndarray, Sequence[str]], Mapping[str, float]] | None = None,
    figures: Callable[..., Sequence[protocol.Result]] | None = None,
    reference: UInt8[np.ndarray, "n f h w c"] | None = None,
    seed: int = 0,
    low_res: UInt8[np.ndarray, "n f2 h2 w2 c"] | None = None,
) -> tuple[Row, UInt8[np.ndarray, "n f h w c"]]:
    """Samples every prompt, in batches of `TIMED_CLIPS`, scores the videos and times the sampler.

    figures: from the videos, the prompts and what is measured, to results. low_res: the videos that
    a stage of a cascade refines, one a prompt. Returns the videos too.
    """
    key = jax.random.key(seed)
    sampler = dataclasses.replace(sampler, batch_size=TIMED_CLIPS)
    places = np.arange(max(len(prompts), TIMED_CLIPS)) % len(prompts)

    def sample(places: np.ndarray) -> list[np.ndarray]:
        texts = [prompts[i] for i in places]
        inputs = None if low_res is None else {"low_res": low_res[places]}
        return list(sampler.stream(params, key, texts, inputs=inputs))

    videos = np.concatenate(sample(places))[: len(prompts)]
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        sample(places[:TIMED_CLIPS])
        seconds.append(time.perf_counter() - started)
    difference = videos.astype(np.float64) - (videos if reference is None else reference)
    subject = {"model": name, "sampler": sampler.rule_name, "steps": sampler.steps}
    subject["guidance"] = sampler.guidance_scale
    row = Row(
        name=name,
        family=family,
        steps=sampler.steps,
        evaluations=evaluations(sampler),
        samples=len(videos),
        scores=dict(score(videos, prompts)) if score is not None else {},
        distance=float(np.sqrt(np.mean(difference**2))),
        seconds=statistics.median(seconds) / TIMED_CLIPS,
        figures=tuple(figures(videos, prompts, subject)) if figures is not None else (),
    )
    return row, videos


def evaluations(sampler: Sampler) -> int:
    """Of the network for a clip by a rule that evaluates once a step."""
    guided = [] if sampler.stage.takes_guidance else sampler.guidance
    scales = [
        part.scales(sampler.steps) for part in guided if isinstance(part, ClassifierFree)
    ] or [[1.0] * sampler.steps]
    return sum(1 + (scale != 1.0) for scale in scales[0])


def markdown(rows: Sequence[Row]) -> str:
    """The table, and below it the protocols of its figures; speed is relative to the first row.

    Raises ValueError where a figure was not measured alike in all rows.
    """
    scores = list(rows[0].scores)
    protocols = [result.protocol for result in rows[0].figures]
    for row in rows:
        for expected, result in zip(protocols, row.figures, strict=True):
            if found := protocol.differences(expected, result.protocol):
                raise ValueError(f"{expected.metric} of {row.name} is not comparable: {found}")
    names = [*scores, *(one.metric for one in protocols)]
    header = _COLUMNS.format(metrics="".join(f"{name} | " for name in names))
    lines = [header, "|---" + "|---:" * (header.count("|") - 2) + "|"]
    for row in rows:
        cells = [row.name, str(row.steps), str(row.evaluations)]
        cells += [_share(row.scores[name], row.samples) for name in scores]
        cells += [protocol.figure(result) for result in row.figures]
        speed = rows[0].seconds / row.seconds
        cells += [f"{row.distance:.1f}", f"{row.seconds:.4f}", f"{speed:.1f} x"]
        lines.append(f"| {' | '.join(cells)} |")
    if protocols:
        lines += ["", *(f"- {protocol.told(one)}" for one in protocols)]
    return "\n".join(lines) + "\n"


def _share(value: float, samples: int) -> str:
    found = intervals.share_interval(round(value * samples), samples)
    return f"{value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def save(path: Path, rows: Sequence[Row]) -> None:
    """The rows as JSON."""
    told = [vars(row) | {"figures": [one.to_dict() for one in row.figures]} for row in rows]
    path.write_text(json.dumps(told, indent=1))


def curve(path: Path, rows: Sequence[Row], over: str = "steps") -> Path:
    """A picture: over the steps, or the evaluations, the last score, figures and the distance of
    every family."""

    def place(row: Row) -> int:
        return getattr(row, over)

    from matplotlib.figure import Figure

    scores = list(rows[0].scores)[-1:]
    panels = [(f"{name} right (share)", lambda row, n=name: row.scores[n]) for name in scores]
    for index, result in enumerate(rows[0].figures):
        panels.append((result.protocol.metric, lambda row, i=index: row.figures[i].value))
    panels.append(("r.m.s. difference to the teacher (of 255)", lambda row: row.distance))
    figure = Figure(figsize=(5.0 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (label, value) in zip(axes, panels, strict=True):
        for marker, family in zip("osD^v", dict.fromkeys(row.family for row in rows), strict=False):
            chosen = sorted((r for r in rows if r.family == family), key=place)
            axis.plot(
                [place(row) for row in chosen],
                [value(row) for row in chosen],
                marker=marker,
                label=family,
            )
        axis.set_xscale("log", base=2)
        ticks = sorted({place(row) for row in rows})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel(over)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    return path
