"""The frame rate of a model's videos: what its configuration says of the clips that it learned."""

import statistics

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from vdm_jax.data.source import ClipSource

# What videos of an unknown rate are written with.
DEFAULT = 8.0
# Frames a second of data sets whose examples do not say it. Rendered data have no rate of their
# own; UCF-101: Soomro et al. 2012, section 2; DAVIS: Pont-Tuset et al. 2017, section 3.
_RATES = {"moving_shapes": DEFAULT, "scenes": DEFAULT, "ucf101": 25.0, "davis": 24.0}


def of_source(source: ClipSource) -> float:
    """Frames a second of a source's stored videos, of different ones the median; 0 = not known."""
    rates = [file.fps for file in getattr(source, "files", ()) if file.fps > 0]
    return float(statistics.median(rates)) if rates else 0.0


def recorded(config: ConfigDict, source: ClipSource) -> ConfigDict:
    """The configuration with `data.source_fps` of the source that it trains on.

    Unchanged where `data.fps` sets the rate, and where the source does not know its own.
    """
    rate = of_source(source)
    if config.data.fps or not rate:
        return config
    filled = config.copy_and_resolve_references()
    with filled.unlocked():
        filled.data.source_fps = round(rate, 3)
    return filled.lock() if config.is_locked else filled


def known(config: ConfigDict) -> float:
    """Frames a second of the videos that a model of this configuration makes; 0 = not known.

    config: as training saved it.
    """
    data, stage = config.data, config.get("stage", {})
    rate = data.fps or data.get("source_fps", 0.0) or _RATES.get(data.name, 0.0)
    rate = rate / data.frame_stride
    if not stage or not stage.get("shape"):
        return rate
    rate = stage.get("data_fps", 0.0) or rate
    if strides := stage.get("frame_strides"):
        return rate / strides[0]
    return rate * stage.shape[0] / data.num_frames


def playback(config: ConfigDict) -> float:
    """`known`, or DEFAULT where that is not known: the rate to write a model's videos with."""
    return known(config) or DEFAULT


def note(config: ConfigDict) -> str:
    """A line for people where `playback` is a guess, else ""."""
    if known(config):
        return ""
    return (
        f"frame rate: {DEFAULT:g} fps is assumed; the model does not record the rate of its data "
        f"({config.data.name})"
    )


def equal(count: int, fps: float, rate: float) -> bool:
    """Whether `count` frames at `fps` a second end within half a frame of as many at `rate`.

    Files round times: a GIF's frames at 8 a second are 120 or 130 ms apart.
    """
    return abs(rate / fps - 1) * (count - 1) < 0.5


def resampled(count: int, fps: float, rate: float) -> Int[np.ndarray, "n"]:
    """Which of `count` frames, at `fps` a second, are seen at `rate` frames a second.

    At each time the frame that is shown then, so frames are repeated where `rate` is higher.
    Raises ValueError where a rate is not above 0.
    """
    if not (fps > 0 and rate > 0):
        raise ValueError(f"fps = {fps}, rate = {rate}: must be above 0")
    last = np.floor((count - 1) * rate / fps + 1e-6)
    return np.floor(np.arange(int(last) + 1) * fps / rate + 1e-6).astype(int)
