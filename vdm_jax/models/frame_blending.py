"""The layers over frames of Stable Video Diffusion (Blattmann et al. 2023, appendix D), for the
slots of a latent image U-Net.

A residual block over frames follows each residual block, and a transformer block over frames each
transformer block. Each result is blended with its input x by a learned number: α x + (1 − α) y with
α = σ(mix). All last maps start at zero, so the network starts as the image model.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.autoencoding import FrameConvolution
from vdm_jax.models.blocks.slots import ClipContext, Place, Slot
from vdm_jax.models.blocks.temporal import apply_to_clip
from vdm_jax.models.blocks.transformer import GatedMLP, TextAttention, layer_norm
from vdm_jax.models.motion_module import FrameAttention

_MIX = 0.5  # at first; α = 0.62


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameResiduals:
    """The slot of the residual blocks over frames, for `Slots.after_residual`."""

    def __call__(self, place: Place) -> nn.Module:
        return FrameResidual(place, name=place.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameTransformers:
    """The slot of the transformer blocks over frames, for `Slots.in_transformer`."""

    def __call__(self, place: Place) -> nn.Module:
        return FrameTransformer(place, name=place.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blended:
    """A slot whose modules' results are blended with their inputs (Blattmann et al. 2023, Align
    your latents, section 3.1).

    Attributes:
      slot: makes the modules.
    """

    slot: Slot

    def __call__(self, place: Place) -> nn.Module:
        return _Blended(self.slot, place, name=place.name)


class _Blended(nn.Module):
    slot: Slot
    place: Place

    @nn.compact
    def __call__(self, x: Float[Array, "n *rest"], context: ClipContext) -> Float[Array, "n *rest"]:
        layer = self.slot(dataclasses.replace(self.place, name="layer"))
        if layer is None:
            return x
        return x + _share(self).astype(x.dtype) * (layer(x, context) - x)


class FrameResidual(nn.Module):
    """norm, swish, convolution over three frames, plus the embedding of time; norm, swish,
    convolution; plus the input, and blended with it. Normalisations take their statistics over all
    frames of a clip. Images stay as they are."""

    place: Place

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], context: ClipContext
    ) -> Float[Array, "bf h w c"]:
        place, channels = self.place, x.shape[-1]
        clip = context.frames - context.num_images
        time = layers.dense(channels, dtype=place.dtype, name="time")(nn.swish(context.vectors))
        time = place.layout.unfold(time, context.frames)[:, :clip, None, None]
        share = _share(self)

        def blended(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
            h = self._normalised(x, "norm_in")
            h = FrameConvolution(channels, place.dtype, name="conv_in")(h)
            h = self._normalised(h + time, "norm_out")
            h = FrameConvolution(channels, place.dtype, zero=True, name="conv_out")(h)
            return x + share.astype(x.dtype) * h

        return apply_to_clip(place.layout, x, context.frames, context.num_images, blended)

    @nn.nowrap
    def _normalised(self, x: Float[Array, "b f h w c"], name: str) -> Float[Array, "b f h w c"]:
        place = self.place
        norm = layers.group_norm(x.shape[-1], place.norm_groups, name, epsilon=place.epsilon)
        h = nn.swish(norm(rearrange(x, "b f h w c -> b (f h) w c"))).astype(place.dtype)
        return rearrange(h, "b (f h) w c -> b f h w c", f=x.shape[1])


class FrameTransformer(nn.Module):
    """The embedding of each frame's number, then a transformer block over the frames at each pixel,
    blended with the input. Images stay as they are."""

    place: Place

    @nn.compact
    def __call__(self, h: Float[Array, "bf p c"], context: ClipContext) -> Float[Array, "bf p c"]:
        place, layout, pixels = self.place, self.place.layout, h.shape[1]
        clip = context.frames - context.num_images
        numbers = self._frame_numbers(clip, h.shape[-1])
        share = _share(self)
        # Frames and pixels change places: a row of features is a pixel with all its frames.
        turned = context.replace(frames=pixels, num_images=0)

        def blended(x: Float[Array, "b f p c"]) -> Float[Array, "b f p c"]:
            rows = layout.fold(rearrange(x + numbers[:, None], "b f p c -> b p f c"))
            rows = _Block(place, name="block")(rows, turned)
            changed = rearrange(layout.unfold(rows, pixels), "b p f c -> b f p c")
            return x + share.astype(x.dtype) * (changed - x)

        return apply_to_clip(layout, h, context.frames, context.num_images, blended)

    @nn.nowrap
    def _frame_numbers(self, frames: int, channels: int) -> Float[Array, "f c"]:
        waves = layers.sinusoidal_embedding(jnp.arange(frames), channels)
        waves = jnp.roll(waves, channels // 2, axis=-1).astype(self.place.dtype)
        first, last = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        dtype = self.place.dtype
        hidden = layers.dense(4 * channels, dtype=dtype, axes=first, name="number_in")(waves)
        out = layers.dense(channels, dtype=dtype, zero=True, axes=last, name="number_out")
        return out(nn.swish(hidden))


class _Block(nn.Module):
    """A gated MLP, self-attention over frames, attention to the clip's tokens, and a gated MLP,
    each behind a normalisation and plus its input."""

    place: Place

    @nn.compact
    def __call__(self, h: Float[Array, "bp f c"], context: ClipContext) -> Float[Array, "bp f c"]:
        place = self.place
        heads = (place.heads, place.dtype, place.layout, True)
        h = h + GatedMLP(place.dtype, True, name="mlp_in")(layer_norm("norm_in")(h))
        attend = FrameAttention(*heads, name="attention_self")
        h = h + attend(layer_norm("norm_self")(h), context)
        text = TextAttention(*heads, name="attention_text")
        h = h + text(layer_norm("norm_text")(h), context)
        return h + GatedMLP(place.dtype, True, name="mlp")(layer_norm("norm_mlp")(h))


def _share(module: nn.Module) -> Float[Array, "1"]:
    """1 − α, with the parameter `mix` of the module."""
    mix = module.param("mix", layers.named(nn.initializers.constant(_MIX), None), (1,))
    return 1 - jax.nn.sigmoid(mix.astype(jnp.float32))
