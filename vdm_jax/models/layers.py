"""The layers that every network here is made of.

Parameters are float32 and carry logical axis names, never the names of a mesh. Layers compute in
`dtype`, normalisation and softmax in float32. Video has its frames folded into the batch,
`(b f) h w c`: a space-only (1, 3, 3) convolution is then an ordinary 2D one, which XLA runs 1.5 to
3 times faster.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import errors, struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree, Real

from vdm_jax.models.ops import attention, convolution, normalisation, product

# Logical names of the axes of parameters, the vocabulary of the sharding rules. HIDDEN is an axis
# inside a block: one matrix produces it and the next one consumes it, as with heads.
# STACKED numbers equal blocks whose parameters are one array.
IN, OUT, HIDDEN, HEADS, HEAD_DIM, CHANNELS, VOCAB, STACKED = (
    "in_channels",
    "out_channels",
    "hidden_channels",
    "heads",
    "head_dim",
    "channels",
    "vocab",
    "stacked",
)

_lecun = nn.initializers.lecun_normal()


class Named(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter, the logical names of its axes, and the dtype that its layer computes in."""

    value: Any
    names: tuple[str | None, ...] = struct.field(pytree_node=False)
    dtype: DTypeLike = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Named":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        names = list(self.names)
        names.insert(index, STACKED)
        return self.replace(names=tuple(names))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        names = list(self.names)
        del names[index]
        return self.replace(names=tuple(names))


def named(init: Callable[..., Array], *names: str | None, dtype: DTypeLike = jnp.float32):
    """The initialiser `init`, boxing the parameter with the logical `names` of its axes.

    dtype: the layer casts the parameter to it before use.
    """

    return functools.partial(_boxed, init, names, dtype)


def _boxed(
    init: Callable[..., Array],
    names: tuple[str | None, ...],
    dtype: DTypeLike,
    key: Array,
    shape: Sequence[int],
    *args,
    **kwargs,
) -> Named:
    drawn = jnp.zeros(shape) if _shapes_only.get() else init(key, shape, *args, **kwargs)
    return Named(value=drawn, names=names, dtype=dtype)


_shapes_only = contextvars.ContextVar("shapes_only", default=False)


@contextlib.contextmanager
def shapes_only(only: bool = True) -> Iterator[None]:
    """A context in which `named` initialisers return zeros of their shape.

    linen traces the initialiser of every parameter whenever a network is applied, to compare
    shapes. That takes a quarter of the tracing time, and its numbers are thrown away.
    """
    token = _shapes_only.set(only)
    try:
        yield
    finally:
        _shapes_only.reset(token)


class GivenParams:
    """A mixin of linen modules: a parameter that exists is taken, and only its shape is compared.

    linen traces the initialiser of every parameter whenever a module is applied, to compare
    shapes: two fifths of the time that it takes to trace a network.
    """

    def param(self, name: str, init_fn: Callable, *init_args: Any, unbox: bool = True) -> Any:
        """As of every linen module. The first of `init_args` is the shape."""
        if not self.has_variable("params", name):
            return super().param(name, init_fn, *init_args, unbox=unbox)
        boxed = self.get_variable("params", name)
        value = nn.meta.unbox(boxed)
        if value.shape != tuple(init_args[0]):
            shapes = value.shape, tuple(init_args[0])
            raise errors.ScopeParamShapeError(name, self.scope.path_text, *shapes)
        return value if unbox else boxed


# Some of linen's annotations cannot be checked at run time, as our own are in the tests.
@no_type_check
class Dense(GivenParams, nn.Dense):
    """`nn.Dense` with `GivenParams`."""


@no_type_check
class DenseGeneral(GivenParams, nn.DenseGeneral):
    """`nn.DenseGeneral` with `GivenParams`."""


@no_type_check
class Conv(GivenParams, nn.Conv):
    """`nn.Conv` with `GivenParams`."""


@no_type_check
class LayerNorm(GivenParams, nn.LayerNorm):
    """`nn.LayerNorm` with `GivenParams`."""


@no_type_check
class Embed(GivenParams, nn.Embed):
    """`nn.Embed` with `GivenParams`."""


class Whole(GivenParams, nn.Module):
    """A network of its own, no part of another: no parameter is drawn where it is applied."""

    @nn.nowrap
    def apply(self, variables: PyTree, *args: Any, mutable: Any = False, **kwargs: Any) -> Any:
        """As for every linen module, without drawing parameters that exist already."""
        with shapes_only(not mutable):
            return super().apply(variables, *args, mutable=mutable, **kwargs)


def init(network: nn.Module, key: Array, *inputs: PyTree) -> PyTree:
    """A network's parameters, a `Named` each, drawn from `key`.

    Equal networks are traced once for inputs of the same shapes: a run asks for the shapes of its
    parameters several times before it draws them.
    """
    return _init(network, _shapes_only.get(), key, *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(network: nn.Module, only_shapes: bool, key: Array, *inputs: PyTree) -> PyTree:
    with shapes_only(only_shapes):
        return network.init(key, *inputs)["params"]


def abstract_params(network: nn.Module, *inputs: PyTree) -> PyTree:
    """For each parameter of a network a `Named` of its shape. Nothing is computed.

    inputs: arrays or shapes.
    """
    with shapes_only():
        return jax.eval_shape(functools.partial(init, network), jax.random.key(0), *inputs)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of clips in folded arrays. A subclass also places them on devices.

    Spatial layers have frames folded into the batch, temporal layers pixels. Folding in `blocks`
    blocks puts the block number first, so that an axis whose blocks are on different devices is
    folded without moving data. A network's output does not depend on it.

    Attributes:
      blocks: number of blocks; must divide the folded axis.
    """

    blocks: int = 1

    def fold(self, x: Float[Array, "a b *rest"]) -> Float[Array, "ab *rest"]:
        """Folds the second axis, frames or pixels, into the first, the batch."""
        return rearrange(x, "a (k b) ... -> (k a b) ...", k=self.blocks)

    def unfold(self, x: Float[Array, "ab *rest"], size: int) -> Float[Array, "a {size} *rest"]:
        """The inverse of `fold`: takes the axis of `size` out of the first axis."""
        b = size // self.blocks
        return rearrange(x, "(k a b) ... -> a (k b) ...", k=self.blocks, b=b)

    def place(self, x: Float[Array, "ab *rest"]) -> Float[Array, "ab *rest"]:
        """The folded array on its devices. Here: unchanged."""
        return x

    def place_tokens(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Rows of tokens on their devices. Here: unchanged."""
        return x

    def attend(
        self,
        q: Float[Array, "b n heads d"],
        k: Float[Array, "b n heads d"],
        v: Float[Array, "b n heads d"],
        segments: Int[Array, "b n"] | None = None,
    ) -> Float[Array, "b n heads d"]:
        """Attention among the tokens of each row; with segments, of each segment."""
        return attention.attend_rows(q, k, v, segments)


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
    """A linear map on the last axis. zero: starts at zero. axes: the logical names of its axes."""
    return Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=named(nn.initializers.zeros if zero else _lecun, *axes, dtype=dtype),
        bias_init=named(nn.initializers.zeros, axes[1], dtype=dtype),
        dot_general=product.linear,
        name=name,
    )


def conv(
    features: int,
    kernel: int = 3,
    *,
    dtype,
    stride: int = 1,
    zero: bool = False,
    use_bias: bool = True,
    pad: tuple[int, int] | None = None,
    axes: tuple[str, str] = (IN, OUT),
    name=None,
):
    """A 2D convolution of `n h w c`, padded so that `h` and `w` stay (divided by the stride).

    pad: zeros before and after each of `h` and `w`; None = (kernel - 1) // 2 on both sides.
    """
    even = ((kernel - 1) // 2,) * 2
    keeps_size = stride == 1 and kernel % 2 == 1 and pad in (None, even)
    return Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=[even if pad is None else pad] * 2,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=named(
            nn.initializers.zeros if zero else _lecun, None, None, *axes, dtype=dtype
        ),
        bias_init=named(nn.initializers.zeros, axes[1], dtype=dtype),
        conv_general_dilated=_flax_same_conv if keeps_size else None,
        name=name,
    )


def _flax_same_conv(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """`same_conv` with the signature of `lax.conv_general_dilated`; it implies the settings."""
    return convolution.same_conv(x, kernel)


def group_norm(channels: int, groups: int, name=None, *, epsilon: float = 1e-6):
    """Group normalisation in float32 over each frame of `n h w c`, frames in `n`.

    Statistics never cross frames: only temporal layers mix frames. `groups` is lowered to a divisor
    of `channels` if it is none. With 0, each pixel is normalised over its channels instead, and the
    output at a pixel does not depend on the size of the frame. `epsilon` is added to the variance.
    """
    if groups == 0:
        return LayerNorm(
            epsilon,
            dtype=jnp.float32,
            scale_init=named(nn.initializers.ones, CHANNELS),
            bias_init=named(nn.initializers.zeros, CHANNELS),
            name=name,
        )
    return GroupNorm(math.gcd(groups, channels), epsilon, name=name)


class GroupNorm(GivenParams, nn.Module):
    """Wu & He 2018, with a learned scale and bias a channel, in float32: `nn.GroupNorm`, faster on
    CPUs (`ops.normalisation`)."""

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """`groups` divides `c`."""
        channels = (x.shape[-1],)
        scale = self.param("scale", named(nn.initializers.ones, CHANNELS), channels)
        bias = self.param("bias", named(nn.initializers.zeros, CHANNELS), channels)
        return normalisation.normalise(
            x.astype(jnp.float32), scale, bias, self.groups, self.epsilon
        )


def sinusoidal_embedding(
    positions: Real[Array, "..."], dim: int, *, max_period: float = 10_000.0
) -> Float[Array, "... dim"]:
    """Sines and cosines of `positions` at `dim / 2` frequencies from 1 down to 1 / max_period.

    Vaswani et al. 2017, section 3.5. `dim` must be even.
    """
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(dim // 2) / (dim // 2))
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def coordinate_grid(height: int, width: int) -> Float[Array, "1 h w 2"]:
    """The position of each pixel, (y, x), from -1 to 1 (Liu et al. 2018, CoordConv)."""
    y, x = jnp.linspace(-1.0, 1.0, height), jnp.linspace(-1.0, 1.0, width)
    return jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1)[None]


@functools.cache
def remat(
    module: type[nn.Module] | Callable[..., Any], policy: str, static_argnums: tuple[int, ...] = ()
) -> Any:
    """`module` with its activations recomputed in the backward pass.

    Args:
      module: a class of modules, or a function whose first argument is a module.
      policy: none keeps all activations. dots keeps the outputs of convolutions and of products
        with parameters, and recomputes the rest. full keeps the input only.
      static_argnums: the positions of arguments that are no arrays, counted from 1.

    Raises ValueError if there is no such policy.
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
