"""What a visitor asks for: a job with its settings, and the command line that it is.

The page has no way of its own to make a video. It runs the command that it shows, so every check,
every default and every file is the command's.
"""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm_jax.cli import edit, sample

# Flags of the sampler that the page offers; a cascade has its stages' own in their place.
SAMPLER = ("steps", "guidance", "sampler", "negative")
SAMPLE = "sample"
MOST = {"num_samples": 16, "frames": 512, "steps": 1000, "factor": 16, "structure": 7}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """What the page offers to do.

    Attributes:
      label: on the page.
      text: a sentence that says what it does.
      flags: that it has beside the prompt, the seed and the sampler's.
      needs: of those, the ones that must be set.
      whole_clip: whether an input is cut to one clip of the model.
      omits: fields of every job that this one does not take.
      local: whether it names files and folders of the server's machine.
    """

    label: str
    text: str
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    whole_clip: bool = False
    omits: tuple[str, ...] = ()
    local: bool = False


JOBS: Mapping[str, Offer] = {
    SAMPLE: Offer(label="Text to video", text="Makes videos of a prompt.", flags=("num_samples",)),
    "animate": Offer(
        label="Image to video",
        text="Makes a video that begins with a picture.",
        flags=("input",),
        needs=("input",),
    ),
    "extend": Offer(
        label="Extend",
        text="Continues a video until it has a number of frames; without a file, a sampled one.",
        flags=("input", "frames", "context", "then"),
    ),
    "interpolate": Offer(
        label="Interpolate",
        text="Makes new frames between each two of a video; without a file, of a sampled one.",
        flags=("input", "factor"),
    ),
    "inpaint": Offer(
        label="Inpaint",
        text="Makes the painted part of a video anew, in every frame.",
        flags=("input", "mask"),
        needs=("input", "mask"),
        whole_clip=True,
    ),
    "restyle": Offer(
        label="Restyle",
        text="Starts again from a noisy version of a video, with the new prompt.",
        flags=("input", "then", "strength"),
        whole_clip=True,
    ),
    "loop": Offer(
        label="Loop",
        text="Appends a way back to the first frame, so that the video repeats without a seam.",
        flags=("input", "context"),
    ),
    "invert": Offer(
        label="Invert",
        text="Finds the noise that the model makes a video of, and samples it again: a "
        "reconstruction, and the video with the new prompt.",
        flags=("input", "then", "inversion"),
        needs=("input",),
        whole_clip=True,
    ),
    "control": Offer(
        label="Control",
        text="Makes a video that follows the edges, depth or poses of another. It needs an image "
        "model and its ControlNet, both folders.",
        flags=("input", "control", "controlnet"),
        needs=("input", "control", "controlnet", "prompt"),
        local=True,
    ),
    "restructure": Offer(
        label="Restructure",
        text="Makes a video with the depth of another, and with the content of a picture or of the "
        "prompt. It needs a model of Gen-1, a folder.",
        flags=("input", "image", "structure", "temporal", "depth"),
        needs=("input",),
        omits=("negative",),
        local=True,
    ),
}


class RequestError(ValueError):
    """Settings that cannot be; the message names the field, its value and what is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A job with its settings.

    Attributes:
      job: of `JOBS`.
      model: a shipped name, a file or a folder.
      values: settings by the names of the command's flags; None and "" = not set.
      cascade: whether the model is one, whose stages have samplers of their own.
      device: where to compute.
    """

    job: str
    model: str
    values: Mapping[str, Any]
    cascade: bool = False
    device: str = "any"

    def __post_init__(self) -> None:
        if self.job not in JOBS:
            raise RequestError(f"job = {self.job!r}: must be one of {', '.join(JOBS)}")
        if not self.model or not self.model.strip():
            raise RequestError("no model is chosen: choose one of the list")
        if self.cascade and self.job != SAMPLE:
            raise RequestError(
                f"{self.model} is a cascade, and {JOBS[self.job].label.lower()} needs one model: "
                "choose one of its stages, or another model"
            )
        for name in JOBS[self.job].needs:
            if not self._set(name):
                raise RequestError(_MISSING.get(name, f"{name} is missing"))
        self._check_numbers()

    def _set(self, name: str) -> bool:
        value = self.values.get(name)
        return value not in (None, "") and (name not in _DEFAULTS or value != _DEFAULTS[name])

    def _check_numbers(self) -> None:
        for name, value in self.values.items():
            whole = name in MOST or name in ("seed", "context")
            if not self._set(name) or not (whole or name in ("guidance", "strength", "temporal")):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RequestError(f"{name} = {value!r}: must be a number")
            if not math.isfinite(value):
                raise RequestError(f"{name} = {value}: must be a finite number")
            if whole and value != int(value):
                raise RequestError(f"{name} = {value:g}: must be a whole number")
            if name in MOST and not 1 <= value <= MOST[name]:
                raise RequestError(f"{name} = {value:g}: must be from 1 to {MOST[name]}")
            if name == "seed" and not 0 <= value < 2**31:
                raise RequestError(f"seed = {value:g}: must be from 0 to {2**31 - 1}")

    def flags(self) -> dict[str, str]:
        """The flags that are set, in the order of the command line, without --out."""
        names = ("prompt", "seed", *(() if self.cascade else SAMPLER), *JOBS[self.job].flags)
        found = {"model": self.model.strip()}
        if self.device != "any":
            found["device"] = self.device
        omitted = {*JOBS[self.job].omits, *(["prompt"] if self._set("image") else [])}
        for name in names:
            if self._set(name) and name not in omitted:
                value = self.values[name]
                whole = isinstance(value, float) and value == int(value)
                found[name] = str(int(value) if whole else value)
        return found

    def arguments(self, out: str | Path) -> list[str]:
        """The arguments of `vdm` that make this, with the results in `out`."""
        command = [SAMPLE] if self.job == SAMPLE else ["edit", self.job]
        flags = [f"--{name}={value}" for name, value in self.flags().items()]
        return [*command, *flags, f"--out={out}"]

    def command_line(self, out: str | Path) -> str:
        """What makes the same files in a shell."""
        return shlex.join(["vdm", *self.arguments(out)])


def run(arguments: list[str]) -> int:
    """Runs `vdm ARGUMENTS`, of `Request.arguments`, in this process. Returns the exit status.

    Raises what the command raises, and parsing.UsageError for flags that do not fit.
    """
    main = {SAMPLE: sample.main, "edit": edit.main}[arguments[0]]
    return main(arguments[1:])


# A page's number is never without a value: these stand for the command's default.
_DEFAULTS = {"frames": 0, "context": 0, "num_samples": 1, "structure": 0, "temporal": 0}
_MISSING = {
    "input": "no file was given: upload a video or a picture first",
    "mask": "nothing is painted: upload a video, then paint over the part to make anew",
    "control": "control: choose what the video follows: canny, hed, depth or pose",
    "controlnet": "controlnet: name the folder of the ControlNet",
    "prompt": "prompt: say what the video shows",
}
