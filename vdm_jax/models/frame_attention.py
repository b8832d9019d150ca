"""Tune-A-Video's layers over frames (Wu et al. 2023, section 3.2), for the slots of a latent image
U-Net: an attention over the frames at each pixel, after each transformer block."""

import dataclasses

import flax.linen as nn
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.models.blocks.slots import ClipContext, Place
from vdm_jax.models.blocks.temporal import apply_to_clip
from vdm_jax.models.blocks.transformer import layer_norm
from vdm_jax.models.motion_module import FrameAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameAttentions:
    """The slot of these layers, for `Slots.in_transformer`."""

    def __call__(self, place: Place) -> nn.Module:
        return FrameAttentionLayer(place, name=place.name)


class FrameAttentionLayer(nn.Module):
    """Normalisation, and self-attention over the frames at each pixel; plus the input.

    The last map starts at zero, weight and bias, so that the layer starts as the identity. Frames
    have no positions: motion comes from what they show. Images stay as they are.

    Attributes:
      place: of the transformer block.
    """

    place: Place

    @nn.compact
    def __call__(self, h: Float[Array, "bf p c"], context: ClipContext) -> Float[Array, "bf p c"]:
        place, layout, pixels = self.place, self.place.layout, h.shape[1]
        attend = FrameAttention(place.heads, place.dtype, layout, True, name="attention")
        norm = layer_norm("norm")
        # Frames and pixels change places: a row of features is a pixel with all its frames.
        turned = context.replace(frames=pixels, num_images=0)

        def clip(x: Float[Array, "b f p c"]) -> Float[Array, "b f p c"]:
            rows = layout.fold(rearrange(x, "b f p c -> b p f c"))
            rows = rows + attend(norm(rows), turned)
            return rearrange(layout.unfold(rows, pixels), "b p f c -> b f p c")

        return apply_to_clip(layout, h, context.frames, context.num_images, clip)
