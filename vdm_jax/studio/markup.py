"""Parts of the pages as HTML. Every text of a visitor, a model or a file is escaped."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from vdm_jax.data import video_io
from vdm_jax.studio import charts, jobs
from vdm_jax.studio.jobs import Update
from vdm_jax.studio.runs import Run

_SIDE = 128  # pixels of the shorter side of a preview
_MOST_CLIPS = 4  # of a preview
_TITLES = {"loss": "Loss", "clips_per_second": "Clips a second"}


def progress(update: Update, fps: float, command: str = "") -> str:
    """How far a job is: a sentence, a bar, and its current estimates, or its videos with the
    command that makes them again."""
    parts = [f'<div class="{update.state}" role="status">{html.escape(update.text)}</div>']
    if update.share is not None and update.state not in jobs.ENDS:
        percent = f"{100 * update.share:.0f}%"
        parts.append(f'<div class="bar"><div style="width:{percent}"></div></div>')
    if update.files:
        parts.append(_clips([_result(path) for path in update.files]))
        parts.append(f"<p>Made by <code>{html.escape(command)}</code></p>")
    elif update.preview is not None:
        shown = update.preview[:_MOST_CLIPS]
        parts.append(_clips([_figure(_moving(clip, fps), "estimate") for clip in shown]))
    return "".join(parts)


def sentence(text: str) -> str:
    """A text that is not marked up."""
    return f"<p>{html.escape(text)}</p>"


def failure(text: str) -> str:
    """What went wrong, as `progress` shows it."""
    return progress(Update(state=jobs.FAILED, text=text), 1.0)


def watched(found: Sequence[Run]) -> str:
    """Runs side by side: their curves in common charts, then a part for each."""
    if not found:
        return '<div class="failed">No run is named: vdm watch RUN [RUN ...]</div>'
    colours = {run.name: charts.colour(number) for number, run in enumerate(found)}
    drawn = []
    for key, title in _TITLES.items():
        curves = {run.name: run.curves.get(key, ()) for run in found}
        if drawing := charts.draw(title, curves, colours, from_zero=key != "loss"):
            drawn.append(f"<div>{drawing}</div>")
    sections = "".join(_run(run, colours[run.name]) for run in found)
    return f'<div class="charts">{"".join(drawn)}</div><div class="runs">{sections}</div>'


def address(path: Path) -> str:
    """Where the server shows a file of a folder that it may show."""
    return f"gradio_api/file={quote(str(path.absolute()))}"


def _run(run: Run, colour: str) -> str:
    parts = [
        f'<h3><span class="dot" style="background:{colour}"></span>{html.escape(run.name)}</h3>',
        f"<p>{html.escape(run.state)}</p>",
    ]
    if run.steps:
        share = min(100.0, 100 * run.step / run.steps)
        style = f"width:{share:.1f}%;background:{colour}"
        parts.append(f'<div class="bar"><div style="{style}"></div></div>')
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in run.notes]
    if latest := {key: points[-1][1] for key, points in run.curves.items()}:
        rows = [(_TITLES[key], f"{value:.4g}") for key, value in latest.items()]
        parts.append(_table(("last line", ""), rows))
    if run.samples:
        figures = [_figure(address(path), f"step {step:,}") for step, path in reversed(run.samples)]
        parts += ["<h4>Samples</h4>", _clips(figures)]
    if run.figures:
        parts += ["<h4>Evaluation</h4>", _table(("file", "metric", "value"), run.figures)]
    if run.checkpoints:
        rows = [(f"{step:,}", when) for step, when in reversed(run.checkpoints)]
        parts += ["<h4>Checkpoints</h4>", _table(("step", "saved"), rows)]
    return f"<section>{''.join(parts)}</section>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _clips(figures: Sequence[str]) -> str:
    return f'<div class="clips">{"".join(figures)}</div>'


def _figure(source: str, caption: str) -> str:
    caption = html.escape(caption)
    return (
        f'<figure><img src="{html.escape(source)}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _result(path: Path) -> str:
    """A video that plays endlessly, or a picture, with a link that saves it."""
    source, name = html.escape(address(path)), html.escape(path.name)
    shown = f'<img src="{source}" alt="{name}">'
    if path.suffix == ".mp4":
        shown = f'<video src="{source}" autoplay loop muted playsinline controls></video>'
    link = f'<a href="{source}" download="{name}">{name}</a>'
    return f"<figure>{shown}<figcaption>{link}</figcaption></figure>"


def _moving(clip: np.ndarray, fps: float) -> str:
    """A clip uint8 `f h w c` as the address of a picture that holds it."""
    encoded = base64.b64encode(video_io.encode_gif(video_io.enlarge(clip, _SIDE), fps)).decode()
    return f"data:image/gif;base64,{encoded}"
