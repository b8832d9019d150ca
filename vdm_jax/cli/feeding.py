"""What the hosts of a machine have to read, and to decode, to keep its chips busy.

The last step of a roofline: `vdm compile` finds how fast the chips can learn at best, this module
what that asks of the processors beside them.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.stage.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """A virtual machine that holds chips: how many, and how many virtual cores it has."""

    chips: int
    cores: int


# Cloud TPU documentation, "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x": VM types of slices
# of several hosts (ct4p-hightpu-4t, ct5lp-hightpu-4t, ct5p-hightpu-4t, ct6e-standard-4t,
# tpu7x-standard-4t).
HOSTS = {
    "v4": Host(chips=4, cores=240),
    "v5e": Host(chips=4, cores=112),
    "v5p": Host(chips=4, cores=208),
    "v6e": Host(chips=4, cores=180),
    "tpu7x": Host(chips=4, cores=224),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast one core decodes: clips of this shape (f, h, w) a second."""

    shape: tuple[int, int, int]
    clips_per_second: float

    @property
    def pixels_per_second(self) -> float:
        return math.prod(self.shape) * self.clips_per_second


# `benchmarks.data.decoding`, of the processor's own time: H.264 files, as large as the clips.
MEASURED = Rate(shape=(16, 256, 256), clips_per_second=43.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a training run at a given speed asks of its hosts.

    Attributes:
      hosts: that hold the chips.
      step_bytes: of a batch, all hosts together, as the workers hand it over.
      host_bytes: the same of a host.
      host_clips: clips a second that a host must decode.
      cores: virtual cores that decode, all hosts together.
      host_cores: virtual cores of a host; 0 = not known.
      hosts_needed: hosts that have so many cores; 0 = not known.
    """

    hosts: int
    step_bytes: int
    host_bytes: float
    host_clips: float
    cores: float
    host_cores: int
    hosts_needed: int

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def needs(
    config: ConfigDict,
    stage: Stage,
    *,
    family: str,
    devices: int,
    slices: int,
    clips_per_second: float,
    rate: Rate = MEASURED,
) -> Needs:
    """What training `stage` at a speed asks of the hosts of a machine.

    Every frame that is read is decoded whole, in the size of the data's clips; frames between a key
    frame and the first one that is read are not counted. family: of chips, as in a topology.
    """
    host = HOSTS.get(family, Host(chips=max(devices // slices, 1), cores=0))
    hosts = -(-devices // host.chips)
    images = config.data.image_frames
    step_bytes = batch_bytes(stage, config.train.batch_size, images)
    pixels = decoded_pixels(stage, images)
    cores = clips_per_second * pixels / rate.pixels_per_second
    return Needs(
        hosts=hosts,
        step_bytes=step_bytes,
        host_bytes=step_bytes / hosts,
        host_clips=clips_per_second / hosts,
        cores=cores,
        host_cores=host.cores,
        hosts_needed=math.ceil(cores / host.cores) if host.cores else 0,
    )


def decoded_pixels(stage: Stage, image_frames: int = 0) -> int:
    """Pixels that are decoded for one example: frames are read whole and then cut."""
    _, height, width = stage.reading.data_shape
    return (stage.reading.video_shape[0] + image_frames) * height * width


def batch_bytes(stage: Stage, batch_size: int, image_frames: int = 0) -> int:
    """Bytes of a training batch, of all processes together."""
    return sum(_bytes(leaf) for leaf in stage.abstract_batch(batch_size, image_frames).values())


def learned_bytes(stage: Stage, batch_size: int, image_frames: int = 0) -> int:
    """Bytes of a batch that would hold what is learned from and nothing else: the crops, as uint8,
    and what the conditions read."""
    (frames, height, width), (down, across) = stage.view.crop_shape, stage.reading.scale
    pixels = (frames + image_frames) * height * down * width * across
    conditions = [
        condition.batch_shapes(batch_size, image_frames) for condition in stage.conditions
    ]
    other = sum(_bytes(leaf) for shapes in conditions for leaf in shapes.values())
    return batch_size * pixels * stage.view.shape[3] + other


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
