"""The residual block of a latent U-Net, and its normalisation, over each frame or over a clip."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import ClipContext, Place, Slot, fill
from vdm_jax.models.blocks.temporal import apply_to_clip


class LatentResidual(nn.Module):
    """norm, swish, conv, plus the embedding of time; norm, swish, conv; plus the input (Rombach et
    al. 2022, appendix E.2.1).

    The second convolution starts at zero, so that the block starts as its shortcut.

    Attributes:
      after_convolution: see `Slots`.
      place: of that slot; its name is not used.
    """

    features: int
    settings: LatentSettings = LatentSettings()
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    after_convolution: Slot | None = None
    place: Place | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], context: ClipContext
    ) -> Float[Array, "bf h w _"]:
        first, last = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        h = self.normalised(x, context, "norm_in")
        h = layers.conv(self.features, dtype=self.dtype, axes=first, name="conv_in")(h)
        h = self.followed(h, context, "conv_in")
        vectors = nn.swish(context.vectors)
        time = layers.dense(self.features, dtype=self.dtype, axes=first, name="time")(vectors)
        h = self.normalised(h + time[:, None, None], context, "norm_out")
        if self.settings.dropout:
            h = nn.Dropout(self.settings.dropout)(h, deterministic=not context.train)
        h = layers.conv(self.features, dtype=self.dtype, zero=True, axes=last, name="conv_out")(h)
        h = self.followed(h, context, "conv_out")
        if x.shape[-1] != self.features:
            x = layers.dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x.astype(self.dtype) + h

    @nn.nowrap
    def followed(
        self, h: Float[Array, "bf h w c"], context: ClipContext, name: str
    ) -> Float[Array, "bf h w c"]:
        """The output of the convolution called `name` after what fills the slot behind it."""
        if self.after_convolution is None:
            return h
        place = dataclasses.replace(self.place, name=f"{name}_temporal", channels=self.features)
        return fill(self.after_convolution, place, h, context)

    @nn.nowrap
    def normalised(
        self, x: Float[Array, "bf h w c"], context: ClipContext, name: str
    ) -> Float[Array, "bf h w c"]:
        """The normalisation called `name`, and swish."""
        settings = self.settings
        norm = layers.group_norm(x.shape[-1], settings.norm_groups, name, epsilon=settings.epsilon)
        if settings.norm_over_frames:
            norm = over_clip(norm, self.layout, context)
        return nn.swish(norm(x)).astype(self.dtype)


def over_clip(
    norm: Callable[[Array], Array], layout: layers.Layout, context: ClipContext
) -> Callable[[Array], Array]:
    """`norm`, which normalises each element of a batch, over all frames of a clip together and over
    each image."""

    def clip(x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        frames = x.shape[1]
        normalised = norm(rearrange(x, "b f h w c -> b (f h) w c"))
        return rearrange(normalised, "b (f h) w c -> b f h w c", f=frames)

    def images(x: Float[Array, "b k h w c"]) -> Float[Array, "b k h w c"]:
        batch = x.shape[0]
        normalised = norm(rearrange(x, "b k h w c -> (b k) h w c"))
        return rearrange(normalised, "(b k) h w c -> b k h w c", b=batch)

    def folded(x: Float[Array, "bf h w c"]) -> Float[Array, "bf h w c"]:
        return apply_to_clip(layout, x, context.frames, context.num_images, clip, images)

    return folded
