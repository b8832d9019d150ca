"""A page that shows every score's histogram, with clips from its least to its greatest value, so
that a person can choose ranges."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vdm_jax.data import text_files
from vdm_jax.data.curation import files, filters, table
from vdm_jax.data.curation.filters import ClipRow
from vdm_jax.data.curation.records import Content
from vdm_jax.data.curation.settings import Range, Settings

NAME = "report.html"
_QUANTILES = (0, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 1)
_BINS = 40
_MOST_LISTED = 100  # films that cannot be used
_COPIES = 12  # pairs of copies that are shown
_WIDTH, _HEIGHT = 600, 120  # of a histogram
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #6b7280; --line: #d5d9de;
  --kept: #2f6fab; --dropped: #c9ced6; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --faint: #9aa3ad; --line: #39404a;
  --kept: #6aa9e0; --dropped: #4a525d; --paper: #14171b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 45rem; } code { font-size: .9em; overflow-wrap: anywhere; }
small, figcaption, th { color: var(--faint); font-weight: normal; }
.tiles, .strip { display: grid; gap: .75rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); }
.tiles div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .75rem; }
.tiles b { display: block; font-size: 1.3rem; }
.strip { grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); margin-top: .75rem; }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: 4px;
  border: 3px solid var(--kept); } figure.dropped img { border-color: var(--dropped); }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
svg { width: 100%; height: 7rem; display: block; }
.axis { display: flex; justify-content: space-between; color: var(--faint); font-size: .8rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .5rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""
# What each score measures, for readers of the page.
_ABOUT = {
    "motion": "Mean optical flow at 2 frames a second, in pixels of a picture 16 pixels high.",
    "camera": "Flow of larger pictures: the part that one affine motion of the picture explains.",
    "objects": "Flow of larger pictures: the part that the camera does not explain.",
    "still": "Share of the half seconds in which nothing moves.",
    "shake": "Distance of the camera's path from its average over half a second, in frame heights.",
    "coded_motion": "Mean length of the codec's motion vectors a frame, in frame heights.",
    "sharpness": "Variance of the Laplacian; low for blurred and for empty pictures.",
    "colourfulness": "Hasler and Süsstrunk 2003; 0 for grey.",
    "brightness": "Mean luma, 0 to 1.",
    "clipped": "Share of pixels that are almost black or almost white.",
    "black": "Share of the samples that are black.",
    "border": "Share of the picture in black bars.",
    "aesthetics": "LAION's predictor on CLIP; what people like has 5 or more, of 10.",
    "nsfw": "LAION's detector of unsafe pictures on CLIP, from about 0 to about 1.",
    "similarity": "Cosine of CLIP's embeddings of the pictures and of the caption.",
    "text": "Greatest share of a picture that text covers.",
}


def write(
    out: Path, rows: Sequence[ClipRow], contents: Mapping[str, Content], settings: Settings
) -> Path:
    """Writes `OUT/report.html`, one file without scripts, and returns its path.

    contents: by digest, of the films of `rows`.
    """
    pictures = _Pictures(contents)
    clips = [row for row in rows if row.name]
    names = sorted({name for row in clips for name in row.scores}, key=_order(settings))
    parts = [
        _summary(rows),
        _reasons(rows, settings),
        *(_score(name, clips, pictures, settings) for name in names),
        _copies(clips, pictures),
        _failures(rows),
        _spent(contents),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Curation report</title><style>{_STYLE}</style></head><body>"
        f"<h1>Curation report</h1>{''.join(parts)}</body></html>\n"
    )
    path = out / NAME
    files.replace(path, page.encode("utf-8", "replace"))
    return path


class _Pictures:
    """Thumbnails by clip."""

    def __init__(self, contents: Mapping[str, Content]):
        self._contents = contents

    def figure(self, row: ClipRow, caption: str) -> str:
        jpeg = filters.measured_row(row, self._contents, "thumbnail")["jpeg"]
        kind = "kept" if row.kept else "dropped"
        what = f"{text_files.shown(row.film)} at {row.start:.1f} s"
        return (
            f'<figure class="{kind}"><img loading="lazy" alt="{_text(what)}" '
            f'src="data:image/jpeg;base64,{jpeg}"><figcaption>{_text(caption)}<br>{_text(what)}'
            f"{'' if row.kept else ', dropped'}</figcaption></figure>"
        )


def _summary(rows: Sequence[ClipRow]) -> str:
    tiles = [
        f"<div><b>{value:,.{0 if isinstance(value, int) else 2}f}</b>{_text(name)}</div>"
        for name, value in table.summary(rows).items()
    ]
    return (
        f'<div class="tiles">{"".join(tiles)}</div><p>Pictures show the first, the middle and the '
        "last sample of a clip. A blue frame marks a clip that is kept. Ranges are changed with "
        "<code>vdm data curate --config.keep.SCORE=LEAST:MOST</code>, which measures nothing "
        "again.</p>"
    )


def _reasons(rows: Sequence[ClipRow], settings: Settings) -> str:
    found = table.reasons(rows)
    total = max(1, sum(bool(row.name) for row in rows))
    lines = [
        f"<tr><td>{_text(name)}</td><td><code>{_text(settings.keep.get(name, ''))}</code></td>"
        f'<td class="number">{count:,}</td><td class="number">{count / total:.1%}</td></tr>'
        for name, count in found.items()
    ]
    head = "<tr><th>score</th><th>range that is kept</th><th>clips</th><th>share</th></tr>"
    body = f"<table>{head}{''.join(lines)}</table>" if lines else "<p>None.</p>"
    note = "<p><small>A clip that several ranges remove counts for each.</small></p>"
    return f"<h2>Why clips are dropped</h2>{body}{note if lines else ''}"


def _score(name: str, clips: Sequence[ClipRow], pictures: _Pictures, settings: Settings) -> str:
    ordered = sorted((row for row in clips if name in row.scores), key=lambda row: row.scores[name])
    values = np.array([row.scores[name] for row in ordered])
    allowed = Range.parse(name, settings.keep.get(name, ""))
    places = sorted({round(share * (len(ordered) - 1)) for share in _QUANTILES})
    figures = [
        pictures.figure(
            ordered[place], f"{values[place]:.4g} ({place / max(1, len(ordered) - 1):.0%})"
        )
        for place in places
    ]
    kept = sum(value in allowed for value in values)
    text = settings.keep.get(name, "")
    setting = (
        f"<code>--config.keep.{_text(name)}={_text(text)}</code> keeps" if text else "no range:"
    )
    return (
        f"<h2>{_text(name)}</h2><p>{_text(_ABOUT.get(name, ''))} {setting} {kept:,} of "
        f"{len(values):,} clips.</p>{_histogram(values, allowed)}"
        f'<div class="strip">{"".join(figures)}</div>'
    )


def _histogram(values: np.ndarray, allowed: Range) -> str:
    """Bars of the number of clips; outliers beyond the 99th percentile share the last bar."""
    least, most = float(values.min()), float(np.quantile(values, 0.99))
    if most <= least:
        most = float(values.max())
    if most <= least:
        most = least + 1
    edges = np.linspace(least, most, _BINS + 1)
    counts, _ = np.histogram(np.clip(values, least, most), edges)
    bar, tallest = _WIDTH / _BINS, max(1, counts.max())
    drawn = []
    for place, count in enumerate(counts):
        middle = (edges[place] + edges[place + 1]) / 2
        height = count / tallest * _HEIGHT
        colour = "kept" if middle in allowed else "dropped"
        drawn.append(
            f'<rect x="{place * bar:.1f}" y="{_HEIGHT - height:.1f}" width="{bar - 1:.1f}" '
            f'height="{height:.1f}" fill="var(--{colour})"><title>{edges[place]:.4g} to '
            f"{edges[place + 1]:.4g}: {count} clips</title></rect>"
        )
    labels = [f"{least + share * (most - least):.3g}" for share in (0, 0.25, 0.5, 0.75, 1)]
    if values.max() > most:
        labels[-1] = f"≥ {labels[-1]}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="histogram">{"".join(drawn)}</svg>'
        f'<div class="axis">{"".join(f"<span>{label}</span>" for label in labels)}</div>'
    )


def _copies(clips: Sequence[ClipRow], pictures: _Pictures) -> str:
    by_name = {row.name: row for row in clips}
    pairs = [(row, by_name[row.copy_of]) for row in clips if row.copy_of]
    figures = [
        pictures.figure(row, text)
        for pair in pairs[:_COPIES]
        for row, text in zip(pair, ("copy", "first"), strict=True)
    ]
    return (
        f"<h2>Copies</h2><p>{len(pairs):,} clips show what an earlier clip shows.</p>"
        f'<div class="strip">{"".join(figures)}</div>'
    )


def _failures(rows: Sequence[ClipRow]) -> str:
    failed = [row for row in rows if not row.name]
    noted = {row.film: row.note for row in rows if row.note}
    lines = [(text_files.shown(row.film), row.reason) for row in failed]
    lines += [(text_files.shown(name), note) for name, note in noted.items()]
    shown = [
        f"<tr><td>{_text(name)}</td><td>{_text(reason)}</td></tr>"
        for name, reason in lines[:_MOST_LISTED]
    ]
    more = len(lines) - len(shown)
    rest = f"<p>And {more:,} more, in {table.NAME}.</p>" if more else ""
    body = f"<table>{''.join(shown)}</table>{rest}" if lines else "<p>None.</p>"
    return f"<h2>Films that cannot be used, or only in part</h2>{body}"


def _spent(contents: Mapping[str, Content]) -> str:
    """Throughput of each stage over the films that it measured."""
    spent: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for digest in contents:
        content = contents.get(digest)
        if content is None or content.measured is None:
            continue
        for name, value in content.measured.spent.items():
            spent[name] = spent.get(name, 0.0) + value
            seconds[name] = seconds.get(name, 0.0) + content.film.seconds
    lines = [
        f'<tr><td>{_text(name)}</td><td class="number">{value:,.1f} s</td>'
        f'<td class="number">{seconds[name] / max(value, 1e-9):,.0f}</td></tr>'
        for name, value in sorted(spent.items(), key=lambda one: -one[1])
    ]
    head = "<tr><th>stage</th><th>computing time</th><th>seconds of film a second a core</th></tr>"
    return f"<h2>Time</h2><table>{head}{''.join(lines)}</table>"


def _order(settings: Settings):
    """Scores with a range first."""
    names = list(settings.keep)

    def key(name: str) -> tuple[int, str]:
        return (names.index(name) if name in names else len(names), name)

    return key


def _text(text: str) -> str:
    return html.escape(text_files.clean(text))
