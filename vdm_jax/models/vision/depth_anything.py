"""Depth Anything V2 (Yang et al. 2024): the depth of each pixel of an image. DINOv2 (Oquab et al.
2024) encodes patches, and DPT's decoder (Ranftl et al. 2021) fuses the states of four of its layers
into an image. Gen-1's structure is such a depth. `weights/depth_anything.py` reads its weights."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.vision import resizing

_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthAnythingConfig:
    """Sizes of an estimator; the defaults are Depth Anything V2 small's.

    Attributes:
      transformer: the layers of DINOv2.
      taps: the numbers of layers, counted from 1, after which states are taken; the last one is the
        number of all layers.
      image_size: height and width of the images whose patches have learned positions.
      patch_size: of a patch, in pixels.
      neck_widths: channels of each tap.
      factors: by which each tap's height and width are multiplied, halved where 0.5.
      fusion_width, head_width: channels of the decoder and of its last layers.
      max_depth: 0 = the output is the inverse of depth up to a scale and a shift, near large; else
        it is depth in metres, at most so.
    """

    transformer: Transformer = Transformer(
        width=384, hidden=1536, num_layers=12, heads=6, activation="gelu", epsilon=1e-6
    )
    taps: tuple[int, ...] = (3, 6, 9, 12)
    image_size: int = 518
    patch_size: int = 14
    neck_widths: tuple[int, ...] = (48, 96, 192, 384)
    factors: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
    fusion_width: int = 64
    head_width: int = 32
    max_depth: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthImages:
    """Images of any size as an estimator takes them: resized by an antialiased bicubic filter, and
    normalised, on the device.

    Attributes:
      size: (height, width) of the result; with `keep_ratio` one of the two, the one that the image
        is scaled to by less.
      multiple: both are rounded to multiples of it.
      mean, deviation: of each channel of images in [0, 1]; ImageNet's.
    """

    size: tuple[int, int] = (518, 518)
    keep_ratio: bool = True
    multiple: int = 14
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n h2 w2 3"]:
        """images: in [-1, 1]."""
        n, height, width, channels = images.shape
        new_height, new_width = self.resized(height, width)
        pixels = images
        # Rows, then columns, as published: the filter overshoots, and each result is clipped.
        for size in ((height, new_width), (new_height, new_width)):
            pixels = jax.image.resize(pixels, (n, *size, channels), "cubic")
            pixels = jnp.clip(pixels, -1.0, 1.0)
        mean, deviation = (jnp.asarray(each, jnp.float32) for each in (self.mean, self.deviation))
        return ((pixels + 1) / 2 - mean) / deviation

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an image of this size."""
        scales = [wanted / side for wanted, side in zip(self.size, (height, width), strict=True)]
        if self.keep_ratio:
            scales = [min(scales, key=lambda scale: abs(1 - scale))] * 2
        rounded = [
            max(round(scale * side / self.multiple), 1) * self.multiple
            for scale, side in zip(scales, (height, width), strict=True)
        ]
        return rounded[0], rounded[1]


class DepthAnything(layers.Whole):
    """Images, as `DepthImages` makes them, to depth.

    Attributes:
      dtype: of the computation; normalisation and softmax are float32 always.
    """

    config: DepthAnythingConfig = DepthAnythingConfig()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n h w"]:
        """See `DepthAnythingConfig.max_depth`. Raises ValueError where height or width is no
        multiple of the patch size."""
        config, dtype, patch = self.config, self.dtype, self.config.patch_size
        if any(side % patch for side in images.shape[1:3]):
            raise ValueError(
                f"images have shape {images.shape[1:]}: height and width must be multiples of "
                f"{patch}, the patch size"
            )
        maps = DINOv2(config, dtype, name="backbone")(images)
        maps = [
            _Reassembled(width, factor, dtype, name=f"reassemble_{i}")(h)
            for i, (h, width, factor) in enumerate(
                zip(maps, config.neck_widths, config.factors, strict=True)
            )
        ]
        fused = None
        for i, h in reversed(list(enumerate(maps))):
            h = layers.conv(config.fusion_width, dtype=dtype, use_bias=False, name=f"neck_{i}")(h)
            size = maps[i - 1].shape[1:3] if i else tuple(2 * side for side in h.shape[1:3])
            fused = _Fused(size, dtype, name=f"fuse_{i}")(h, fused)
        h = layers.conv(config.fusion_width // 2, dtype=dtype, name="head_in")(fused)
        h = resizing.resize(h, images.shape[1:3], corners=True)
        h = nn.relu(layers.conv(config.head_width, dtype=dtype, name="head_middle")(h))
        h = layers.dense(1, dtype=jnp.float32, name="head_out")(h)[..., 0]
        return config.max_depth * nn.sigmoid(h) if config.max_depth else nn.relu(h)


class DINOv2(nn.Module):
    """The states of the patches after some layers, normalised, as images of a pixel a patch.

    The scales of its residual branches are part of the maps that the branches end in.
    """

    config: DepthAnythingConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> list[Float[Array, "n h2 w2 d"]]:
        config, sizes, patch = self.config, self.config.transformer, (self.config.patch_size,) * 2
        embed = layers.Conv(
            sizes.width,
            patch,
            strides=patch,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=layers.named(_init, None, None, layers.IN, layers.OUT, dtype=self.dtype),
            bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=self.dtype),
            precision=transformer.precision(self.dtype),
            name="patches",
        )
        patches = embed(images.astype(self.dtype))
        rows = patches.shape[1]
        # The shapes of the class token and of the positions are the published ones.
        init = layers.named(_init, None, None, layers.CHANNELS)
        token = self.param("class_token", init, (1, 1, sizes.width))
        first, rest = self._positions(patches.shape[1:3])
        x = rearrange(patches + rest, "n h w d -> n (h w) d")
        start = jnp.broadcast_to((token + first).astype(self.dtype), (len(x), 1, sizes.width))
        x = jnp.concatenate([start, x], axis=1)
        norm, found, before = transformer.layer_norm(sizes.epsilon, "norm"), [], 0
        for number, tap in enumerate(config.taps):
            part = dataclasses.replace(sizes, num_layers=tap - before)
            x, before = _Layers(part, self.dtype, name=f"part_{number}")(x), tap
            states = norm(x[:, 1:]).astype(self.dtype)
            found.append(rearrange(states, "n (h w) d -> n h w d", h=rows))
        return found

    @nn.nowrap
    def _positions(
        self, size: tuple[int, int]
    ) -> tuple[Float[Array, "1 1 d"], Float[Array, "1 h w d"]]:
        """Of the class token, and of patches, interpolated where the image has another size."""
        side = self.config.image_size // self.config.patch_size
        width = self.config.transformer.width
        init = layers.named(_init, None, layers.VOCAB, layers.CHANNELS)
        table = self.param("positions", init, (1, side**2 + 1, width))
        grid = rearrange(table[:, 1:], "1 (h w) d -> 1 h w d", h=side)
        if size != (side, side):
            grid = resizing.resize(grid, size, kind="cubic")
        return table[:, :1], grid.astype(self.dtype)


class _Layers(nn.Module):
    sizes: Transformer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        return self.sizes(x, dtype=self.dtype)[0]


class _Reassembled(nn.Module):
    """A linear map to `width` channels, then `factor` times the height and width."""

    width: int
    factor: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> Float[Array, "n h2 w2 width"]:
        x = layers.dense(self.width, dtype=self.dtype, name="project")(x)
        if self.factor == 1:
            return x
        if self.factor < 1:
            return layers.conv(self.width, dtype=self.dtype, stride=2, name="resize")(x)
        side = int(self.factor)
        # A transposed convolution whose kernel is as large as its stride: a matrix a pixel. The
        # published order of its axes.
        names = (layers.IN, layers.OUT, None, None)
        init = layers.named(_init, *names, dtype=self.dtype)
        grow = self.param("grow", init, (self.width, self.width, side, side)).astype(self.dtype)
        exact = transformer.precision(self.dtype)
        grown = jnp.einsum("nhwi,iopq->nhpwqo", x, grow, precision=exact)
        zeros = layers.named(nn.initializers.zeros, layers.OUT, dtype=self.dtype)
        bias = self.param("grow_bias", zeros, (self.width,)).astype(self.dtype)
        return rearrange(grown, "n h p w q c -> n (h p) (w q) c") + bias


class _Fused(nn.Module):
    """The features of a level, added to those of the coarser levels, in the size of the next finer
    level."""

    size: tuple[int, int]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], coarser: Float[Array, "n h w c"] | None
    ) -> Float[Array, "n h2 w2 c"]:
        if coarser is not None:
            x = coarser + self._residual(x, "level")
        x = resizing.resize(self._residual(x, "sum"), self.size, corners=True)
        return layers.dense(x.shape[-1], dtype=self.dtype, name="project")(x)

    @nn.nowrap
    def _residual(self, x: Float[Array, "n h w c"], name: str) -> Float[Array, "n h w c"]:
        h = x
        for end in ("in", "out"):
            conv = layers.conv(x.shape[-1], dtype=self.dtype, name=f"{name}_{end}")
            h = conv(nn.relu(h))
        return x + h
