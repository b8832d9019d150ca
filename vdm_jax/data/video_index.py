"""One index a video file: the time of every frame in the order in which they are shown.

It also holds where decoding can begin, and the geometry; `video_indexing.build` makes it. A frame
is known by the packet that it was coded in, counted from the file's first. So a reader can tell
whether a frame that it gets after a seek is the one that the index means.
"""

import base64
import dataclasses
import functools
import json
import zlib
from fractions import Fraction
from typing import Any, Self

import numpy as np
from jaxtyping import Int64

from vdm_jax.data.frames import Geometry

MAX_JITTER = 0.3  # of the frame interval; beyond it the frame rate is variable


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """What is known of a file.

    Attributes:
      demuxer: FFmpeg's name of it.
      time_base: seconds a tick.
      times: ticks of each frame, increasing, in the order in which frames are shown.
      rate: declared frames a second, for a file of one frame; 0 = none.
      packets: number of the packet that each frame was coded in; empty where the decoder does not
        tell, and then every reading decodes from the start.
      keys: one row a frame at which decoding can begin: the frame's number, then its packet's
        number, presentation time, decoding time (in ticks, or `video_container.NONE`) and size in
        bytes.
      geometry: of the first frame.
      decoded: whether all frames were decoded for it.
      note: what is wrong with the file, where a part of it can be used.
    """

    demuxer: str
    time_base: Fraction
    times: Int64[np.ndarray, "n"]
    rate: float
    packets: Int64[np.ndarray, "n"]
    keys: Int64[np.ndarray, "k 5"]
    geometry: Geometry
    decoded: bool
    note: str = ""

    def __len__(self) -> int:
        return len(self.times)

    @functools.cached_property
    def ticks(self) -> float:
        """The mean interval between frames, in ticks."""
        if len(self) < 2:
            return 1 / (float(self.time_base) * (self.rate or 1.0))
        return float(self.times[-1] - self.times[0]) / (len(self) - 1)

    @property
    def fps(self) -> float:
        """Frames a second, the mean over the file."""
        return 1 / (self.ticks * float(self.time_base))

    @functools.cached_property
    def constant(self) -> bool:
        """Whether every frame is near its place in a constant frame rate.

        One tick more or less is rounding, unless a tick is as long as a frame.
        """
        even = self.times[0] + self.ticks * np.arange(len(self))
        most = max(MAX_JITTER * self.ticks, min(1.0, 0.45 * self.ticks))
        return bool(np.abs(self.times - even).max() <= most)

    def frames_at(self, places: np.ndarray) -> Int64[np.ndarray, "m"]:
        """Numbers of the frames that are shown at `places`, in mean frame intervals from the first:
        the nearest at or before each."""
        # A time may be rounded by a tick, unless a tick is about as long as a frame.
        slack = min(0.15, 1 / self.ticks) if self.ticks > 3 else 1e-3
        places = np.asarray(places) + slack
        if self.constant:
            found = np.floor(places).astype(np.int64)
        else:
            wanted = self.times[0] + places * self.ticks
            found = np.searchsorted(self.times, wanted, side="right") - 1
        return np.clip(found, 0, len(self) - 1)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads: numbers, texts and lists. Even steps take one entry."""
        geometry = dataclasses.asdict(self.geometry)
        geometry["aspect"] = _pair(self.geometry.aspect)
        return {
            "demuxer": self.demuxer,
            "time_base": _pair(self.time_base),
            "times": _runs(np.diff(self.times, prepend=0)),
            "rate": self.rate,
            "packets": _runs(self.packets - np.arange(len(self.packets))),
            "keys": np.diff(self.keys, axis=0, prepend=0).tolist(),
            "geometry": geometry,
            "decoded": self.decoded,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The index that `to_json` was called on."""
        geometry = dict(content["geometry"])
        geometry["aspect"] = Fraction(*geometry["aspect"])
        times = np.cumsum(_unrolled(content["times"]))
        packets = _unrolled(content["packets"])
        keys = np.array(content["keys"], np.int64).reshape(-1, 5)
        if not len(times) or len(packets) not in (0, len(times)):
            raise ValueError("times and packets do not belong together")
        return cls(
            **{
                **content,
                "time_base": Fraction(*content["time_base"]),
                "times": times,
                "packets": packets + np.arange(len(packets)),
                "keys": np.cumsum(keys, axis=0),
                "geometry": Geometry(**geometry),
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFile:
    """What a source keeps of a file, in few bytes.

    Attributes:
      frames: how many.
      fps: frames a second, the mean over the file.
      constant: whether the frame rate is.
      note: what is wrong with it; "" = nothing that is known.
      packed: its `VideoIndex`, as JSON, compressed, in base 64.
    """

    path: str
    frames: int
    fps: float
    constant: bool
    note: str
    packed: bytes

    @classmethod
    def of(cls, path: str, index: VideoIndex) -> Self:
        text = json.dumps(index.to_json(), separators=(",", ":"))
        packed = base64.b64encode(zlib.compress(text.encode()))
        return cls(
            path=path,
            frames=len(index),
            fps=index.fps,
            constant=index.constant,
            note=index.note,
            packed=packed,
        )

    @property
    def index(self) -> VideoIndex:
        """Raises ValueError where `packed` is no index."""
        try:
            return _unpacked(self.packed)
        except (KeyError, TypeError, ArithmeticError, zlib.error) as error:
            raise ValueError(f"its index is damaged: {error}") from error


@functools.lru_cache(maxsize=256)
def _unpacked(packed: bytes) -> VideoIndex:
    return VideoIndex.from_json(json.loads(zlib.decompress(base64.b64decode(packed))))


def _pair(value: Fraction) -> list[int]:
    return [value.numerator, value.denominator]


def _runs(values: np.ndarray) -> list[list[int]]:
    """[count, value] of each run of equal values."""
    if not len(values):
        return []
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    counts = np.diff(ends, prepend=-1)
    return np.column_stack([counts, values[ends]]).tolist()


def _unrolled(runs: list[list[int]]) -> Int64[np.ndarray, "n"]:
    counts, values = np.array(runs, np.int64).reshape(-1, 2).T
    if (counts < 1).any() or counts.sum() > 1 << 27:
        raise ValueError("a run of no values, or of too many")
    return np.repeat(values, counts)
