"""The parts every network here is made of.

Parameters are float32 and carry logical axis names, never a mesh's; computation runs in `dtype`;
normalisation and softmax run in float32 whatever `dtype` is.
Video is processed with its frames folded into the batch, `(b f) h w c`: a space-only (1, 3, 3)
convolution is then an ordinary 2D one, which XLA runs 1.5-3 times faster.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Real

# Logical names of the axes of parameters, the vocabulary of the sharding rules. HIDDEN is inside a
# block: made by one matrix and used up by the next, as heads are.
IN, OUT, HIDDEN, HEADS, HEAD_DIM, CHANNELS, VOCAB = (
    "in_channels",
    "out_channels",
    "hidden_channels",
    "heads",
    "head_dim",
    "channels",
    "vocab",
)

_lecun = nn.initializers.lecun_normal()


class Named(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter with the logical names of its axes and the dtype that its layer computes in."""

    value: Any
    names: tuple[str | None, ...] = struct.field(pytree_node=False)
    dtype: DTypeLike = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Named":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        names = list(self.names)
        names.insert(index, None)
        return self.replace(names=tuple(names))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        names = list(self.names)
        del names[index]
        return self.replace(names=tuple(names))


def named(init: Callable[..., Array], *names: str | None, dtype: DTypeLike = jnp.float32):
    """The initialiser `init` whose parameter's axes bear the logical `names`.

    dtype: what the layer casts the parameter to before it uses it.
    """

    def boxed(key: Array, shape: Sequence[int], *args, **kwargs) -> Named:
        drawn = jnp.zeros(shape) if _shapes_only.get() else init(key, shape, *args, **kwargs)
        return Named(value=drawn, names=names, dtype=dtype)

    return boxed


_shapes_only = contextvars.ContextVar("shapes_only", default=False)


@contextlib.contextmanager
def shapes_only(only: bool = True) -> Iterator[None]:
    """Inside, initialisers that are `named` give zeros of their shape.

    linen traces the initialiser of each parameter whenever a network is applied, to compare shapes:
    a quarter of the time in which a network is traced, for numbers that nobody sees.
    """
    token = _shapes_only.set(only)
    try:
        yield
    finally:
        _shapes_only.reset(token)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How clips lie in folded arrays; a subclass also says on which devices.

    Spatial layers see frames folded into the batch, temporal layers pixels. Folding in `blocks`
    blocks puts the block number first, so that an axis whose blocks live on different devices is
    folded without moving anything; what a network computes does not depend on it.

    Attributes:
      blocks: number of blocks; the folded axis must divide by it.
    """

    blocks: int = 1

    def fold(self, x: Float[Array, "a b *rest"]) -> Float[Array, "ab *rest"]:
        """Folds the second axis, frames or pixels, into the first, the batch."""
        return rearrange(x, "a (k b) ... -> (k a b) ...", k=self.blocks)

    def unfold(self, x: Float[Array, "ab *rest"], size: int) -> Float[Array, "a {size} *rest"]:
        """Takes the axis of `size` that `fold` folded into the first out of it again."""
        b = size // self.blocks
        return rearrange(x, "(k a b) ... -> a (k b) ...", k=self.blocks, b=b)

    def place(self, x: Float[Array, "ab *rest"]) -> Float[Array, "ab *rest"]:
        """A folded array, where it should live. Here: anywhere."""
        return x


ANYWHERE = Layout()


def dense(
    features: int,
    *,
    dtype,
    zero: bool = False,
    use_bias: bool = True,
    axes: tuple[str, str] = (IN, OUT),
    name=None,
):
    """A linear map on the last axis; `zero` starts it at zero, `axes` are its logical names."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=named(nn.initializers.zeros if zero else _lecun, *axes, dtype=dtype),
        bias_init=named(nn.initializers.zeros, axes[1], dtype=dtype),
        dot_general=linear,
        name=name,
    )


def linear(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None) -> Array:
    """`lax.dot_general` of many vectors with a small matrix, as linen's dense layers call it.

    Contracts the last axes of `x` with the first ones of `kernel`. The gradient of the kernel, a
    product over all vectors, is written with the narrower of its operands first: XLA's CPU backend
    transposes the first one in memory, and JAX always puts the layer's output there.
    """
    axes = len(dimension_numbers[0][0])
    return _linear(x, kernel, axes, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _linear(x: Array, kernel: Array, axes: int, precision: Any) -> Array:
    contracted = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())), precision=precision)


def _linear_forward(x: Array, kernel: Array, axes: int, precision: Any):
    # Unwrapped, so that a policy of remat sees a product.
    return _linear.__wrapped__(x, kernel, axes, precision), (x, kernel)


def _linear_backward(axes: int, precision: Any, saved: tuple[Array, Array], gradient: Array):
    x, kernel = saved
    made = kernel.ndim - axes
    ends = tuple(range(gradient.ndim - made, gradient.ndim)), tuple(range(axes, kernel.ndim))
    of_x = jax.lax.dot_general(gradient, kernel, (ends, ((), ())), precision=precision)
    many = tuple(range(x.ndim - axes))
    if math.prod(kernel.shape[:axes]) <= math.prod(kernel.shape[axes:]):
        return of_x, jax.lax.dot_general(x, gradient, ((many, many), ((), ())), precision=precision)
    of_kernel = jax.lax.dot_general(gradient, x, ((many, many), ((), ())), precision=precision)
    return of_x, of_kernel.transpose(*range(made, kernel.ndim), *range(made))


_linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def same_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k c out"]
) -> Float[Array, "n h w out"]:
    """A 2D convolution of stride 1 with an odd kernel, padded so that the size stays.

    XLA's CPU backend has its fast convolution only for axes in the order of this signature. Outside
    of loops it brings the gradients' convolutions into that order, inside of a scan it does not,
    and they take ten times as long; so on CPUs the gradients are written in that order here.
    """
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(pad, pad), (pad, pad)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _same_conv_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    pad = (kernel.shape[0] - 1) // 2

    def of_x(x: Array, kernel: Array, gradient: Array) -> Array:
        return same_conv(gradient, rearrange(kernel[::-1, ::-1], "k l c out -> k l out c"))

    def of_kernel(x: Array, kernel: Array, gradient: Array) -> Array:
        # A convolution over the batch, whose kernel is the gradient.
        product = jax.lax.conv_general_dilated(
            rearrange(x, "n h w c -> c h w n"),
            rearrange(gradient, "n h w out -> h w n out"),
            (1, 1),
            [(pad, pad), (pad, pad)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return rearrange(product, "c k l out -> k l c out")

    def transposed(index: int) -> Callable[..., Array]:
        plain = same_conv.__wrapped__
        return lambda x, kernel, gradient: jax.vjp(plain, x, kernel)[1](gradient)[index]

    return (
        jax.lax.platform_dependent(x, kernel, gradient, cpu=of_x, default=transposed(0)),
        jax.lax.platform_dependent(x, kernel, gradient, cpu=of_kernel, default=transposed(1)),
    )


def _same_conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    # Unwrapped, so that a policy of remat sees a convolution.
    return same_conv.__wrapped__(x, kernel), (x, kernel)


same_conv.defvjp(_same_conv_forward, _same_conv_backward)


def conv(
    features: int,
    kernel: int = 3,
    *,
    dtype,
    stride: int = 1,
    zero: bool = False,
    axes: tuple[str, str] = (IN, OUT),
    name=None,
):
    """A 2D convolution on `n h w c` with padding that keeps `h` and `w` (over the stride)."""
    pad = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=[(pad, pad), (pad, pad)],
        dtype=dtype,
        kernel_init=named(
            nn.initializers.zeros if zero else _lecun, None, None, *axes, dtype=dtype
        ),
        bias_init=named(nn.initializers.zeros, axes[1], dtype=dtype),
        conv_general_dilated=_flax_same_conv if stride == 1 and kernel % 2 else None,
        name=name,
    )


def _flax_same_conv(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """`same_conv` in the place of `lax.conv_general_dilated`, whose settings it implies."""
    return same_conv(x, kernel)


def group_norm(channels: int, groups: int, name=None):
    """Group normalisation in float32 over one frame: `n h w c` has its frames in `n`.

    Statistics never cross frames, so that a frame's features depend on another frame only where
    a temporal layer says so. `groups` is lowered to a divisor of `channels` where need be;
    0 normalises each pixel over its channels instead, so that what a network computes at a pixel
    does not depend on how large the frame is.
    """
    if groups == 0:
        return nn.LayerNorm(
            dtype=jnp.float32,
            scale_init=named(nn.initializers.ones, CHANNELS),
            bias_init=named(nn.initializers.zeros, CHANNELS),
            name=name,
        )
    return GroupNorm(math.gcd(groups, channels), name=name)


class GroupNorm(nn.Module):
    """Wu & He 2018, with a learned scale and bias a channel, in float32.

    `nn.GroupNorm` but for the order of its sums, pixels first and then the channels of a group:
    XLA's CPU backend takes ten times as long to sum over both at once. And for its gradient, which
    is written in one pass of sums and one of what they give.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """`groups` divides `c`."""
        channels = (x.shape[-1],)
        scale = self.param("scale", named(nn.initializers.ones, CHANNELS), channels)
        bias = self.param("bias", named(nn.initializers.zeros, CHANNELS), channels)
        return _normalise(x.astype(jnp.float32), scale, bias, self.groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: Float[Array, "n h w c"], scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int
) -> Float[Array, "n h w c"]:
    return _normalise_forward(x, scale, bias, groups)[0]


def _normalise_forward(x: Array, scale: Array, bias: Array, groups: int):
    mean = _group_mean(x, groups)
    variance = _group_mean(jnp.square(x), groups) - jnp.square(mean)
    deviation = jnp.sqrt(jnp.maximum(variance, 0.0) + 1e-6)  # rounded, it can be less than zero
    return (x - mean) * (scale / deviation) + bias, (x, scale, mean, deviation)


def _normalise_backward(groups: int, saved: tuple[Array, ...], gradient: Array):
    """With y = (x - mean) / deviation, of x: (g - mean(g) - y mean(g y)) / deviation, where g is
    the gradient times the scale."""
    x, scale, mean, deviation = saved
    total = _pixel_mean(gradient)
    along = _pixel_mean(gradient * (x - mean)) / deviation
    pixels = x.shape[1] * x.shape[2]
    of_scale, of_bias = (pixels * leaf.sum((0, 1, 2)) for leaf in (along, total))
    common, along = (_of_group(scale * leaf, groups) for leaf in (total, along))
    of_x = gradient * (scale / deviation) - (x - mean) * (along / jnp.square(deviation))
    return of_x - common / deviation, of_scale, of_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _group_mean(x: Float[Array, "n h w c"], groups: int) -> Float[Array, "n 1 1 c"]:
    """For each channel the mean over the pixels and channels of its group."""
    return _of_group(_pixel_mean(x), groups)


def _pixel_mean(x: Float[Array, "n h w c"]) -> Float[Array, "n 1 1 c"]:
    return x.mean((1, 2), keepdims=True)


def _of_group(x: Float[Array, "n 1 1 c"], groups: int) -> Float[Array, "n 1 1 c"]:
    mean = reduce(x, "n 1 1 (g k) -> n 1 1 g", "mean", g=groups)
    return jnp.repeat(mean, x.shape[-1] // groups, axis=-1)


def sinusoidal_embedding(
    positions: Real[Array, "..."], dim: int, *, max_period: float = 10_000.0
) -> Float[Array, "... dim"]:
    """Sines and cosines of `positions` at `dim / 2` frequencies from 1 down to 1 / max_period.

    Vaswani et al. 2017, section 3.5. `dim` must be even.
    """
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(dim // 2) / (dim // 2))
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResidualBlock(nn.Module):
    """norm, swish, conv, norm, scale and shift by the condition, swish, conv; plus the input.

    The second convolution starts at zero, so that the block starts as its shortcut
    (Ho et al. 2020; scale and shift as in Dhariwal & Nichol 2021, section 3).
    """

    features: int
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        embedding: Float[Array, "n e"],
        deterministic: bool = True,
    ) -> Float[Array, "n h w _"]:
        """`embedding` is the condition of each frame; `n` is batch times frames."""
        h = nn.swish(group_norm(x.shape[-1], self.norm_groups, "norm_in")(x)).astype(self.dtype)
        h = conv(self.features, dtype=self.dtype, axes=(IN, HIDDEN), name="conv_in")(h)
        modulation = dense(
            2 * self.features, dtype=self.dtype, axes=(IN, HIDDEN), name="scale_shift"
        )(nn.swish(embedding))
        scale, shift = jnp.split(modulation.astype(jnp.float32)[:, None, None, :], 2, axis=-1)
        h = group_norm(self.features, self.norm_groups, "norm_out")(h) * (1.0 + scale) + shift
        h = nn.swish(h).astype(self.dtype)
        if self.dropout:
            h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        h = conv(self.features, dtype=self.dtype, zero=True, axes=(HIDDEN, OUT), name="conv_out")(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x.astype(self.dtype) + h


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 _"]:
        return conv(self.features, dtype=self.dtype, stride=2, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest-neighbour resizing and a convolution.

    Resize plus convolution instead of a transposed convolution: no checkerboard, and no slow
    gradient on GPUs.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w _"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv(self.features, dtype=self.dtype, name="conv")(x)


def coordinate_grid(height: int, width: int) -> Float[Array, "1 h w 2"]:
    """The place of each pixel, (y, x), from -1 to 1 (Liu et al. 2018, CoordConv)."""
    y, x = jnp.linspace(-1.0, 1.0, height), jnp.linspace(-1.0, 1.0, width)
    return jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1)[None]


def remat(module: type[nn.Module], policy: str, static_argnums: tuple[int, ...] = ()):
    """`module` with its activations recomputed in the backward pass as `policy` says.

    none: keep all. dots: keep the outputs of convolutions and of products with parameters,
    recompute the rest. full: keep the block's input only.
    """
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    def dots(primitive: Any, *args: Any, **settings: Any) -> bool:
        is_convolution = primitive is jax.lax.conv_general_dilated_p
        return is_convolution or products(primitive, *args, **settings)

    policies = {
        "none": None,
        "dots": dots,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    if policy not in policies:
        raise ValueError(f"remat = {policy!r}: allowed are {', '.join(policies)}")
    if policy == "none":
        return module
    return nn.remat(module, policy=policies[policy], static_argnums=static_argnums)
