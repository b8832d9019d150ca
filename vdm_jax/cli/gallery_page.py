"""The page of `vdm gallery`: its sections as Markdown, and their pictures."""

import dataclasses
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_PICTURES = Path("media/gallery")  # below OUT
_GAP, _GAP_COLOR = 4, (60, 64, 72)  # pixels between clips
_LINE = 100  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the page.

    Attributes:
      title: the heading.
      alt: what the picture shows, for readers who do not see it.
      text: one paragraph, Markdown.
      legend: list items that explain the picture's rows and columns.
      command: the shell command that makes such clips.
      rows: the picture's rows, uint8 `n f h w c` each, with the same n in every row. f, h and w
        may differ between rows: smaller clips are enlarged, shorter ones hold their last frame.
      fps: frames a second.
      side: pixels, the least shorter side of a clip in the picture.
    """

    title: str
    alt: str
    text: str
    legend: Sequence[str]
    command: str
    rows: Sequence["np.ndarray"]
    fps: float
    side: int = 64


def short(captions: Sequence[str]) -> str:
    """For example "red square left, red triangle right"."""
    from vdm_jax.data import shapes

    scenes = [shapes.parse_caption(caption) for caption in captions]
    return ", ".join(" and ".join(" ".join(parts) for parts in scene) for scene in scenes)


def legend(rows: str, captions: Sequence[str]) -> list[str]:
    """The list items that name a picture's rows and columns."""
    return [f"Rows: {rows}.", f"Columns: {short(captions)}."]


def shell(*parts: str) -> str:
    """A command of one or several lines, which are broken between the parts only."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + len("  \\") <= _LINE:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


def write_picture(out: Path, name: str, section: Section) -> None:
    """Writes a section's clips as one GIF: rows × columns, with gaps."""
    import numpy as np

    from vdm_jax.data import video_io

    frames = max(row.shape[1] for row in section.rows)
    # The row of the largest frames sets the size, because its factor need not divide `side`.
    largest = max(section.rows, key=lambda row: min(row.shape[2:4]))
    side = min(video_io.enlarge(largest, section.side).shape[2:4])
    rows = [
        video_io.enlarge(row[:, np.minimum(np.arange(frames), row.shape[1] - 1)], side)
        for row in section.rows
    ]
    picture = video_io.grid(np.concatenate(rows), columns=len(rows[0]), gap=_GAP, color=_GAP_COLOR)
    path = out / _PICTURES / f"{name}.gif"
    video_io.write_gif(path, picture, fps=section.fps, min_size=1)


def markdown(name: str, section: Section) -> str:
    """A section as Markdown. name: of its picture."""
    items = [_wrap(f"- {item}", indent="  ") for item in section.legend]
    return "\n".join(
        [
            f"## {section.title}\n",
            f"![{section.alt}]({_PICTURES.as_posix()}/{name}.gif)\n",
            f"{_wrap(section.text)}\n",
            *items,
            f"\n```sh\n{section.command}\n```\n",
        ]
    )


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        _LINE,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def write_page(out: Path, parts: Sequence[str], arguments: Sequence[str]) -> Path:
    """Writes gallery.md from the sections' Markdown.

    arguments: the flags that this command was called with.
    """
    command = shlex.join(["vdm", "gallery", *arguments])
    intro = _wrap(
        "This page shows what the models that ship with vdm_jax do. This command writes the page "
        "and its pictures:"
    )
    about = _wrap(
        "Captions are held out from training. Pictures are enlarged. The captions of the columns "
        "are listed from left to right. A clip that is shorter than others in its picture holds "
        "its last frame."
    )
    head = f"# Gallery\n\n{intro}\n\n    {command}\n\n{about}"
    path = out / "gallery.md"
    path.write_text("\n\n".join([head, "\n".join(parts)]), encoding="utf-8")
    return path
