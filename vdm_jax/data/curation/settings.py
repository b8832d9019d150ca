"""What a curation can be set to: one frozen dataclass for each stage, and ranges of scores.

Stages are repeated when their own settings change, or those of a stage that they depend on; ranges
are applied to stored scores.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Self

from vdm_jax.data.source import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cuts:
    """How cuts are found.

    Attributes:
      side: pixels, the shorter side of the pictures that are compared.
      adaptive: least ratio of a frame's change to the mean change of its neighbours
        (PySceneDetect's AdaptiveDetector).
      least_change: least change at a cut, in PySceneDetect's content value (0 to 255).
      gradual: whether fades and dissolves are searched for.
      transnet: "published": TransNetV2 is a detector too, its weights fetched once; or the file of
        these weights; "" = without that network.
      transnet_threshold: least probability of a transition.
    """

    side: int = 64
    adaptive: float = 3.0
    least_change: float = 15.0
    gradual: bool = True
    transnet: str = ""
    transnet_threshold: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """How shots become clips, in seconds.

    Attributes:
      trim: what is cut off at both ends of a shot.
      least, most: lengths of a clip. A longer shot is divided; a shorter one is left out.
    """

    trim: float = 0.2
    least: float = 2.0
    most: float = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Which frames of a clip are looked at.

    Attributes:
      rate: samples a second; optical flow is computed from one to the next (2 in SVD).
      side: pixels, the shorter side of a sample.
      hash_rate: perceptual hashes a second.
    """

    rate: float = 2.0
    side: int = 320
    hash_rate: float = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """Whether text is searched for, on the first, the middle and the last sample.

    Attributes:
      detector: "none" or "ppocr" (extra `ocr`).
      side: pixels that the shorter side of a sample is enlarged to.
      least_score: of a box of text: the mean chance of its pixels.
    """

    detector: str = "none"
    side: int = 480
    least_score: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """Scores of pictures beside the built-in ones.

    Attributes:
      clip: a folder of a published CLIP, for the score `similarity` of a clip to its caption.
      aesthetics: a file of LAION's head on that CLIP, for the score `aesthetics`.
      nsfw: a file of LAION's detector of unsafe pictures on that CLIP, for the score `nsfw`.
      scorers: further ones; each is "MODULE:NAME" of a `look.Scorer`, or of a function without
        arguments that returns one.
    """

    clip: str = ""
    aesthetics: str = ""
    nsfw: str = ""
    scorers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Which clips count as copies of one another.

    Attributes:
      distance: most bits, of 63, in which the hashes of two pictures of a copy differ.
      share: least share of the shorter clip's pictures that the other one has too.
      least_detail: pictures with less contrast (standard deviation of the grey values) have no
        hash, since any two of them look alike.
    """

    distance: int = 8
    share: float = 0.5
    least_detail: float = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """Commands that print captions of kept clips; "" = none.

    They are not run by a shell. `{image}` stands for a PNG of the clip's middle frame, `{video}`
    for an MP4 of the clip.

    Attributes:
      frame: of the middle frame.
      clip: of the clip.
      merge: of the other two texts, `{frame}` and `{clip}`.
    """

    frame: str = ""
    clip: str = ""
    merge: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """How clips are stored.

    Attributes:
      side: pixels, the shorter side of stored clips; 0 = as large as the film.
      quality: H.264's constant rate factor; lower is better and larger.
      copy: whether the coded frames of a film are copied where a clip can begin and end at them.
      shard_minutes: of film that one shard takes its clips from, at least one film.
    """

    side: int = 0
    quality: int = 17
    copy: bool = True
    shard_minutes: float = 60.0


# Range of every score that is kept, "LEAST:MOST", either may be missing. Shares of SVD's cuts are
# for a person to choose from the report; these remove only what is clearly a fault.
RANGES = {
    "motion": "0.02:",
    "still": ":0.9",
    "shake": ":0.02",
    "black": ":0.5",
    "border": ":0.05",
    "text": ":0.07",
    "aesthetics": "",
    "nsfw": "",
    "similarity": "",
    "sharpness": "",
    "colourfulness": "",
    "clipped": "",
    "duplicate": "first",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a curation can be set to; `keep` has the ranges of scores by name."""

    cuts: Cuts = Cuts()
    clips: Clips = Clips()
    samples: Samples = Samples()
    text: Text = Text()
    look: Look = Look()
    duplicates: Duplicates = Duplicates()
    captions: Captions = Captions()
    output: Output = Output()
    keep: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(RANGES))

    def __post_init__(self) -> None:
        _check("cuts.side", self.cuts.side, least=16)
        _check("cuts.adaptive", self.cuts.adaptive, least=1)
        _check("clips.trim", self.clips.trim, least=0)
        _check("samples.rate", self.samples.rate, least=0.1)
        _check("clips.least", self.clips.least, least=1 / self.samples.rate)
        _check("clips.most", self.clips.most, least=2 * self.clips.least)
        _check("samples.side", self.samples.side, least=32)
        _check("samples.hash_rate", self.samples.hash_rate, least=0.1)
        _check("duplicates.share", self.duplicates.share, least=0.01, most=1)
        _check("duplicates.distance", self.duplicates.distance, least=0, most=31)
        for name in ("aesthetics", "nsfw"):
            if getattr(self.look, name) and not self.look.clip:
                raise DataError(f"look.{name}: needs look.clip, whose embeddings it scores")
        if self.captions.merge and not (self.captions.frame and self.captions.clip):
            raise DataError("captions.merge: needs captions.frame and captions.clip")
        _check("output.quality", self.output.quality, least=0, most=51)
        _check("output.side", self.output.side, least=0)
        if self.text.detector not in ("none", "ppocr"):
            raise DataError(f"text.detector = {self.text.detector!r}: allowed are none, ppocr")
        for name, text in self.keep.items():
            if name == "duplicate":
                if text not in ("", "first"):
                    raise DataError(f"keep.duplicate = {text!r}: allowed are first, and empty")
            else:
                Range.parse(name, text)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings in which `values`, nested as `to_dict` gives them, replace the defaults.

        Raises DataError for a field that does not exist, and for values that are not allowed.
        """
        sections = {}
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, content in values.items():
            if name not in known or not isinstance(content, Mapping):
                raise DataError(f"{name}: not a section; sections are {', '.join(known)}")
            if name == "keep":
                sections[name] = {
                    **RANGES,
                    **{k: _read(f"keep.{k}", v, "") for k, v in content.items()},
                }
                continue
            default = known[name].default
            fields = [field.name for field in dataclasses.fields(default)]
            if unknown := sorted(set(content) - set(fields)):
                raise DataError(
                    f"{name}.{unknown[0]}: no such field; fields of {name} are {', '.join(fields)}"
                )
            read = {
                key: _read(f"{name}.{key}", value, getattr(default, key))
                for key, value in content.items()
            }
            sections[name] = dataclasses.replace(default, **read)
        return cls(**sections)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Range:
    """From `least` to `most`, both allowed."""

    least: float = -math.inf
    most: float = math.inf

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """Reads "LEAST:MOST"; "" is everything. Raises DataError. name: of the score."""
        if not text:
            return cls()
        least, colon, most = text.partition(":")
        try:
            if not colon:
                raise ValueError
            return cls(float(least or "-inf"), float(most or "inf"))
        except ValueError:
            raise DataError(
                f"keep.{name} = {text!r}: must be LEAST:MOST with numbers, such as 0.5: or :0.07"
            ) from None

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most


def digest(*values: Any) -> str:
    """A short name of values that JSON can write: equal values have equal names."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(name: str, value: Any, default: Any) -> Any:
    """A value as JSON has it, of the default's type. Raises DataError."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(default, float) and type(value) in (int, float):
        return float(value)
    if type(value) is not type(default):
        raise DataError(f"{name} = {value!r}: must be a {type(default).__name__}")
    return value


def _check(name: str, value: float, *, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise DataError(f"{name} = {value}: must be at least {least:g}{upper}")
