"""What an edit takes over from the files that it is given, by one rule for every job.

Pictures are scaled to cover the model's size and cut around their middle. A job that makes one clip
takes the first frames of a longer video, and repeats the last frame of a shorter one. The sound of
a video stays with the result, from its beginning and for as long as the result lasts, where the
result goes on in the time of the input.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vdm_jax.cli import outputs

if TYPE_CHECKING:
    import numpy as np

ONE_CLIP = ("super_resolve", "inpaint", "outpaint", "restyle")
# No time of one input is left: clips of one frame, and one clip of two.
_OTHER_TIME = ("animate", "cinemagraph", "join")


def cover_notes(flag: str, names: Sequence[str], size: tuple[int, int]) -> list[str]:
    """A line that says how pictures of files become pictures of `size` (height, width)."""
    if all(name.endswith(".npz") for name in names):
        return []
    return [
        f"--{flag}: pictures are scaled to cover {size[0]} x {size[1]} pixels and cut around their "
        "middle"
    ]


def one_clip(
    videos: "list[np.ndarray]", frames: int, fps: float
) -> "tuple[list[np.ndarray], list[str]]":
    """Videos `f h w c` cut to `frames` frames, or extended by their last one, and lines that say
    so. fps: of these videos."""
    import numpy as np

    fitted, notes = [], []
    for number, video in enumerate(videos, 1):
        count = len(video)
        if count > frames:
            notes.append(
                f"--input: video {number}: the first {frames} of {count} frames at {fps:g} fps are "
                "taken (--num_frames takes more)"
            )
        elif count < frames:
            notes.append(
                f"--input: video {number}: {count} frames at {fps:g} fps become {frames}; the last "
                "is repeated"
            )
        fitted.append(video[np.minimum(np.arange(frames), count - 1)])
    return fitted, notes


def attached(options: argparse.Namespace, copies: int = 1) -> outputs.Attached:
    """What the results of an edit hold: the sound of their inputs, and the command line.

    copies: results of each input, one after the other for all inputs.
    """
    import vdm_jax
    from vdm_jax.data import recipes

    recipe = {"vdm_jax": vdm_jax.__version__, "command": "vdm edit", "flags": options.typed}
    return outputs.Attached(
        formats=options.format,
        recipe=recipes.to_text(recipe),
        sounds=[sound for _ in range(copies) for sound in _sounds(options)],
    )


def _sounds(options: argparse.Namespace) -> list[str | None]:
    """For each input, the file whose sound its result keeps; empty where none has any."""
    from vdm_jax.data import video_encoding

    names = list(options.input)
    if options.job == "control" and not names:
        names = [options.control.file]
    # An archive has no sound, and may hold several videos.
    if options.job in _OTHER_TIME or any(name.endswith(".npz") for name in names):
        return []
    return [name if video_encoding.has_sound(name) else None for name in names]
