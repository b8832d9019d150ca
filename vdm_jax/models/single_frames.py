"""Layers over frames that treat an image as a video of one frame (Esser et al. 2023, Gen-1, section
3.2), for the slots of a latent image U-Net; and Gen-1's attention over frames.

So images that are trained beside clips pass through these layers too, and the network applied to
one frame is the image model that they train.
"""

import dataclasses

import flax.linen as nn
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.slots import ClipContext, Place, Slot
from vdm_jax.models.blocks.temporal import apply_to_clip
from vdm_jax.models.blocks.transformer import layer_norm
from vdm_jax.models.motion_module import FrameAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleFrames:
    """A slot whose modules also take each image, as a clip of one frame.

    Attributes:
      slot: makes the modules, which leave images as they are.
    """

    slot: Slot

    def __call__(self, place: Place) -> nn.Module:
        return _SingleFrames(self.slot, place, name=place.name)


class _SingleFrames(nn.Module):
    slot: Slot
    place: Place

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf *rest"], context: ClipContext
    ) -> Float[Array, "bf *rest"]:
        layout, frames, images = self.place.layout, context.frames, context.num_images
        layer = self.slot(dataclasses.replace(self.place, name="layer"))
        if layer is None:
            return x
        if images and layout.blocks > 1:
            raise ValueError(
                f"mesh.context = {layout.blocks}: a clip of one frame cannot be spread over "
                "devices; set it to 1 or train without images (data.image_frames = 0)"
            )
        vectors, clip = layout.unfold(context.vectors, frames), frames - images

        def run(x: Array, vectors: Array, tokens: Array) -> Array:
            """Of clips (b, f, ...) alone."""
            length = x.shape[1]
            inside = context.replace(
                vectors=layout.fold(vectors), tokens=tokens, frames=length, num_images=0
            )
            return layout.unfold(layer(layout.fold(x), inside), length)

        def one(x: Array) -> Array:
            return rearrange(x, "b k ... -> (b k) 1 ...")

        def apply_to_images(x: Array) -> Array:
            found = run(one(x), one(vectors[:, clip:]), one(context.tokens[:, 1:]))
            return rearrange(found, "(b k) 1 ... -> b k ...", k=images)

        def apply_to_frames(x: Array) -> Array:
            return run(x, vectors[:, :clip], context.tokens[:, :1])

        return apply_to_clip(layout, x, frames, images, apply_to_frames, apply_to_images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedFrameAttentions:
    """The slot of attention over frames with a learned encoding of each frame's number, for
    `Slots.in_transformer`.

    Attributes:
      max_frames: the longest clip; the number of encodings.
    """

    max_frames: int = 32

    def __call__(self, place: Place) -> nn.Module:
        return _EncodedFrameAttention(place, self.max_frames, name=place.name)


class _EncodedFrameAttention(nn.Module):
    """norm, plus the encodings, attention over the frames at each pixel, whose last map starts at
    zero; plus the input. Images stay as they are."""

    place: Place
    max_frames: int

    @nn.compact
    def __call__(self, h: Float[Array, "bf p c"], context: ClipContext) -> Float[Array, "bf p c"]:
        """Raises ValueError for a clip of more than `max_frames` frames."""
        place, layout, pixels = self.place, self.place.layout, h.shape[1]
        clip = context.frames - context.num_images
        if clip > self.max_frames:
            raise ValueError(
                f"{clip} frames: the attention over frames has encodings of {self.max_frames}; "
                "sample longer videos by windows (window = F)"
            )
        init = layers.named(nn.initializers.normal(0.02), None, layers.CHANNELS)
        table = self.param("encodings", init, (self.max_frames, h.shape[-1]))
        norm = layer_norm("norm")
        attend = FrameAttention(place.heads, place.dtype, layout, True, name="attention")
        # Frames and pixels change places: a row of features is a pixel with all its frames.
        turned = context.replace(frames=pixels, num_images=0)

        def mixed(x: Float[Array, "b f p c"]) -> Float[Array, "b f p c"]:
            encoded = (norm(x) + table[: x.shape[1], None]).astype(place.dtype)
            rows = layout.fold(rearrange(encoded, "b f p c -> b p f c"))
            added = layout.unfold(attend(rows, turned), pixels)
            return x + rearrange(added, "b p f c -> b f p c")

        return apply_to_clip(layout, h, context.frames, context.num_images, mixed)
