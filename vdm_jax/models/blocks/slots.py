"""Slots: where layers of others stand in the blocks of a latent U-Net.

A system that turns an image U-Net into a video U-Net adds layers over frames to it, or changes
what its self-attention attends to. Each such change is a value in a slot; the blocks stay as they
are.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers


class ClipContext(struct.PyTreeNode):
    """What a layer takes beside its features. Folded features have batch and frames as one axis.

    Attributes:
      vectors: the embedding of time and conditions, a row a frame, folded.
      tokens: of the text of the clip and, behind it, of those of its images.
      frames: of a clip, its images included; a static number.
      num_images: the independent images, which are the last of `frames`; a static number.
      train: whether dropout acts; static.
    """

    vectors: Float[Array, "bf e"]
    tokens: Float[Array, "b items l d"]
    frames: int = struct.field(pytree_node=False)
    num_images: int = struct.field(pytree_node=False)
    train: bool = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the network a slot is.

    Attributes:
      name: of the module that fills the slot.
      part: down, middle or up.
      level: counts from 0, the finest.
      channels: of the features.
      heads: of the attention at this level.
      depth: transformer blocks after the residual block; 0 = no attention.
      norm_groups, epsilon: of the normalisations in the residual blocks there.
      dtype, layout: of the network.
    """

    name: str
    part: str
    level: int
    channels: int
    heads: int
    depth: int
    norm_groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE


@runtime_checkable
class Slot(Protocol):
    """Makes the module that fills a slot at a place, or None where the slot stays empty there.

    The module is called with (features, `ClipContext`) and returns features of the same shape. A
    slot is a frozen dataclass, so that networks with equal slots are equal.
    """

    def __call__(self, place: Place) -> nn.Module | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
    """The slots of a latent U-Net. None = empty, as in the image U-Net.

    Attributes:
      after_residual: after each residual block; features are (n, h, w, c).
      after_attention: where a residual block may be followed by attention, after it, also at levels
        without attention; features are (n, h, w, c).
      in_transformer: after each transformer block, before the transformer's last map; features are
        (n, pixels, c).
      after_convolution: after each convolution over space: the two of a residual block, that of a
        resize, the first and the last of the network; features are (n, h, w, c).
      self_attention: in place of the attention of pixels to those of their frame; features are
        (n, pixels, c). A subclass of `transformer.SelfAttention` keeps the image network's
        parameters.
    """

    after_residual: Slot | None = None
    after_attention: Slot | None = None
    in_transformer: Slot | None = None
    after_convolution: Slot | None = None
    self_attention: Slot | None = None


def fill(
    slot: Slot | None, place: Place, h: Array, context: ClipContext, *, remat: str = "none"
) -> Array:
    """Features after the slot: `h` where it is empty.

    remat: see `layers.remat`.
    """
    module = slot(place) if slot is not None else None
    return h if module is None else layers.remat(_call, remat)(module, h, context)


def _call(module: nn.Module, h: Array, context: ClipContext) -> Array:
    return module(h, context)
