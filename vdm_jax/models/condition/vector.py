"""Conditions that are added to the vector of each frame."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vdm_jax.models import layers
from vdm_jax.models.condition.base import (
    Embedded,
    EmbeddingModule,
    Inputs,
    lookup,
    mlp,
    or_null,
    require,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """One number a clip: its sinusoids, then a two-layer MLP.

    Attributes:
      key: of the condition.
      name: of the parameters; "" is `key`.
      max_period: of the sinusoids. Frequencies from 1 to 1/100 resolve the useful range of log-SNR,
        about [-20, 20].
      log2: whether the logarithm of the number is embedded.
      zero: whether the MLP starts at zero: a network that takes its weights from one without this
        condition then starts as that network.
    """

    key: str
    name: str = ""
    max_period: float = 100.0
    log2: bool = False
    zero: bool = False
    PER_FRAME: ClassVar[bool] = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        number = jnp.asarray(*require(inputs.cond, self.key))
        number = jnp.log2(number) if self.log2 else number
        h = layers.sinusoidal_embedding(number, module.dim, max_period=self.max_period)
        return Embedded(vector=mlp(module, self.name or self.key, h, zero=self.zero)[:, None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """Several numbers a clip: the sinusoids of each, cosines first, side by side, then a two-layer
    MLP that starts at zero. A network that takes its weights from one without this condition starts
    as that network.

    Attributes:
      numbers: the keys of the condition, in order.
      width: sinusoids of a number.
      name: of the parameters.
    """

    numbers: tuple[str, ...]
    width: int = 256
    name: str = "numbers"
    PER_FRAME: ClassVar[bool] = False

    @property
    def keys(self) -> tuple[str, ...]:
        return self.numbers

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        numbers = jnp.stack([jnp.asarray(n) for n in require(inputs.cond, *self.numbers)], axis=-1)
        waves = layers.sinusoidal_embedding(numbers, self.width)
        waves = jnp.roll(waves, self.width // 2, axis=-1).reshape(len(numbers), -1)
        vector = mlp(module, self.name, waves.astype(module.dtype), zero=True)
        return Embedded(vector=vector[:, None])


# The guidance scale of a distilled network (Meng et al. 2023, section 3.1).
GUIDANCE = Number(key="guidance", zero=True)
# The log-SNR of a conditioning video's noise (noise conditioning augmentation, Ho et al. 2021).
LOW_RES_NOISE = Number(key="low_res_logsnr", name="low_res")
FRAME_RATE = Number(key="fps", max_period=10.0, log2=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """The class of a clip and of each image, or a learned null vector."""

    num_labels: int
    PER_FRAME: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("label",)

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        label = inputs.items("label")
        vector = lookup(module, self.num_labels, "labels")(label)
        return Embedded(vector=or_null(module, vector, inputs, "label"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelOrNone:
    """The class of a clip and of each image, or none, which has the last row of the table (Peebles
    & Xie 2022)."""

    num_labels: int
    PER_FRAME: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("label",)

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        label = inputs.items("label")
        keep = jnp.asarray(inputs.cond.get("keep_label", jnp.ones(len(label), bool)))
        label = jnp.where(keep[:, None], label, self.num_labels)
        return Embedded(vector=lookup(module, self.num_labels + 1, "labels")(label))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramePositions:
    """The number of each frame in its clip, by sinusoids, so that clips may have any number of
    frames. All images share one learned vector."""

    PER_FRAME: ClassVar[bool] = True
    keys: ClassVar[tuple[str, ...]] = ()

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        positions = jnp.arange(inputs.frames - inputs.num_images)
        clip = layers.sinusoidal_embedding(positions, module.dim, max_period=1000.0)
        clip = layers.dense(module.dim, dtype=module.dtype, name="frame_position")(clip)
        init = layers.named(nn.initializers.normal(0.02), layers.CHANNELS)
        image = module.param("image_position", init, (module.dim,)).astype(clip.dtype)
        images = jnp.tile(image, (inputs.num_images, 1))
        return Embedded(vector=jnp.concatenate([clip, images])[None])
