"""The layers over frames of Make-A-Video (Singer et al. 2022, section 3.2), for the slots of an
image U-Net: pseudo-3D convolutions and pseudo-3D attention.

A convolution over frames follows each convolution over space, and an attention over frames each
attention over space. The convolutions start as the identity, and the attentions add zero at first,
so the network starts as the image model.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.slots import ClipContext, Place
from vdm_jax.models.blocks.temporal import FrameConvolution, TemporalAttention, apply_to_clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameConvolutions:
    """The slot of the convolutions over frames, for `Slots.after_convolution`."""

    def __call__(self, place: Place) -> nn.Module:
        return _Convolution(place, name=place.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameAttentions:
    """The slot of the attentions over frames, for `Slots.after_attention`. They have the heads of
    the attention over space, and positions relative to each frame.

    Attributes:
      at_all_levels: whether there is one also where the image model has no attention.
    """

    at_all_levels: bool = False

    def __call__(self, place: Place) -> nn.Module | None:
        if not place.depth and not self.at_all_levels:
            return None
        return _Attention(place, name=place.name)


class _Convolution(nn.Module):
    """A convolution over three frames at each pixel, at first the identity (Dirac). Images stay as
    they are."""

    place: Place

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], context: ClipContext
    ) -> Float[Array, "bf h w c"]:
        place = self.place
        mix = FrameConvolution(x.shape[-1], init="identity", dtype=place.dtype, name="conv")
        return apply_to_clip(place.layout, x, context.frames, context.num_images, mix)


class _Attention(nn.Module):
    """Attention over the frames at each pixel, plus the input. Images stay as they are."""

    place: Place

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], context: ClipContext
    ) -> Float[Array, "bf h w c"]:
        place, images = self.place, context.num_images
        sizes = BlockSettings(head_dim=place.channels // place.heads, norm_groups=place.norm_groups)
        attend = TemporalAttention(sizes, place.dtype, place.layout, name="attention")
        added = attend(x, context.frames, images) - x
        return x + apply_to_clip(
            place.layout, added, context.frames, images, lambda clip: clip, jnp.zeros_like
        )
