"""Video prediction as the papers measure it: what is known of each sample, and from which clips."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vdm_jax.evaluation.frechet import INDEPENDENT, Groups

OVER = ("all", "predicted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """How samples continue clips.

    Attributes:
      frames: of each clip, the first ones, that are known.
      low_res: known means over blocks of so many by so many pixels of every frame; 1 = none.
      method, weight: how the known part guides sampling, see `diffusion.conditional`.
      each: samples that continue one clip; they follow each other.
      of_references: whether the continued clips are the references, in their order.
      source: the data that the continued clips are from.
      over: the frames that features are computed of: "all", or only those "predicted".
    """

    frames: int
    low_res: int = 1
    method: str
    weight: float | None = None
    each: int = 1
    of_references: bool = True
    source: str = ""
    over: str = "all"

    def __post_init__(self):
        for name in ("frames", "low_res", "each"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.over not in OVER:
            raise ValueError(f"over = {self.over!r}: allowed are {', '.join(OVER)}")

    @property
    def groups(self) -> Groups:
        """Which samples and references belong together."""
        return Groups(each=self.each, paired=self.of_references)

    @property
    def options(self) -> dict[str, Any]:
        """All of this, for a protocol."""
        found = {
            "known": f"frames:{self.frames}",
            "known_method": self.method,
            "known_from": "the references" if self.of_references else self.source,
            "samples_per_clip": self.each,
        }
        if self.weight is not None:
            found["known_weight"] = self.weight
        if self.low_res > 1:
            found["known"] += f",low_res:{self.low_res}"
        return found


def groups_of(prediction: Prediction | None) -> Groups:
    """The groups of a prediction; of no prediction every clip is independent."""
    return INDEPENDENT if prediction is None else prediction.groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperProtocol:
    """How papers measure prediction on a data set.

    Attributes:
      dataset: of the test videos, as `--reference` takes it; "" = the user says where it is.
      known: the first frames that are known.
      frames, size: of a clip, the known frames included, and its height and width.
      clips: test videos, which are the references too.
      each: samples that continue one test video.
      metrics: that the papers report.
      source: where this is written.
    """

    dataset: str
    known: int
    frames: int
    size: tuple[int, int]
    clips: int
    each: int
    metrics: tuple[str, ...]
    source: str


PAPER_PROTOCOLS: Mapping[str, PaperProtocol] = {
    "bair": PaperProtocol(
        dataset="bair_robot_pushing_small:test",
        known=1,
        frames=16,
        size=(64, 64),
        clips=256,
        each=100,
        metrics=("fvd",),
        source="VDM, Ho et al. 2022, section 4.2 and table 2",
    ),
    "kinetics600": PaperProtocol(
        dataset="",
        known=5,
        frames=16,
        size=(64, 64),
        clips=50_000,
        each=1,
        metrics=("fvd", "is"),
        source="VDM, Ho et al. 2022, section 4.2 and table 3",
    ),
}


def parse_known(text: str) -> dict[str, int]:
    """The known part, such as "frames:5" or "frames:1,low_res:2", as fields of `Prediction`.

    Raises ValueError for another form, for parts that are there twice, and without frames.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition(":")
        fits = name in ("frames", "low_res") and name not in found and number.isdecimal()
        if not fits or int(number) < (2 if name == "low_res" else 1):
            raise ValueError(
                f"known = {text!r}: must be frames:K, the first K frames, or frames:K,low_res:N, "
                "with means over blocks of N x N pixels of every frame (N at least 2)"
            )
        found[name] = int(number)
    if "frames" not in found:
        raise ValueError(f"known = {text!r}: must have frames:K")
    return found
