"""Linear measurements y = A x of a video: what is known of it, and the way back, A⁺ y.

A⁺ is the pseudo-inverse (Moore & Penrose): A⁺ y is the smallest x that y fits, and A⁺ A the
orthogonal projection onto what A sees. Measurements are pytrees: they pass through jit and vmap as
arguments, so one compilation serves every mask.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat
from jaxtyping import Array, Bool, Float


@runtime_checkable
class Measurement(Protocol):
    """A linear function A of each example and its pseudo-inverse."""

    def measure(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """A x."""

    def lift(self, y: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """A⁺ y, of x's shape."""


def _static(default: Any = dataclasses.MISSING) -> Any:
    """A field that is part of a pytree's structure: a number or a function, not an array."""
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """Some elements are known, the others wanted: A x has zeros in their place, A⁺ = A.

    Attributes:
      known: bool, broadcastable to x: `[b, f, 1, 1, 1]` for whole frames, `[1, 1, h, w, 1]` for
        pixels of every frame. Numbers count as known unless they are 0.
    """

    # Any, not Array: jax's tree functions rebuild the class with whatever they map leaves to.
    known: Any

    def _cut(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        known = jnp.asarray(self.known)
        fits = known.ndim == x.ndim
        fits = fits and all(k in (1, n) for k, n in zip(known.shape, x.shape, strict=True))
        if not fits:
            raise ValueError(f"Mask: known has shape {known.shape}, which does not fit {x.shape}")
        return jnp.where(known, x, 0.0)

    def measure(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        return self._cut(x)

    def lift(self, y: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        return self._cut(y)


def known_frames(frames: Sequence[int] | Bool[np.ndarray, "f"], num_frames: int) -> Mask:
    """The mask `[1, num_frames, 1, 1, 1]` of whole frames, for videos `b f h w c`.

    Args:
      frames: numbers of the known frames, from 0, or a bool for each frame.
      num_frames: frames of a video.

    Raises:
      ValueError: a frame that the video does not have, or as many bools as it has not.
    """
    array = np.asarray(frames)
    if array.dtype == bool:
        if array.shape != (num_frames,):
            raise ValueError(f"frames has shape {array.shape}; of bools it must be ({num_frames},)")
        known = array
    else:
        beyond = [frame for frame in frames if frame not in range(num_frames)]
        if beyond:
            raise ValueError(f"frames: {beyond} must be whole numbers from 0 to {num_frames - 1}")
        known = np.isin(np.arange(num_frames), array)
    return Mask(known=jnp.asarray(known).reshape(1, num_frames, 1, 1, 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Downsample:
    """Means over blocks of `time` frames of `space` x `space` pixels, of videos `b f h w c`.

    A⁺ repeats each mean over its block: A Aᵀ is a multiple of the identity.
    """

    space: int = _static(1)
    time: int = _static(1)

    def __post_init__(self):
        for name in ("space", "time"):
            if getattr(self, name) < 1:
                raise ValueError(f"Downsample: {name}={getattr(self, name)} must be at least 1")

    @property
    def block_size(self) -> int:
        """Elements of a block."""
        return self.time * self.space**2

    def _blocks(self) -> dict[str, int]:
        return {"t": self.time, "s": self.space, "r": self.space}

    def measure(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h2 w2 c"]:
        _, frames, height, width, _ = x.shape
        if frames % self.time:
            raise ValueError(f"Downsample: time={self.time} does not divide {frames} frames")
        if height % self.space or width % self.space:
            raise ValueError(
                f"Downsample: space={self.space} does not divide {height} x {width} pixels"
            )
        return reduce(x, "b (f t) (h s) (w r) c -> b f h w c", "mean", **self._blocks())

    def lift(self, y: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h2 w2 c"]:
        return repeat(y, "b f h w c -> b (f t) (h s) (w r) c", **self._blocks())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedMeans:
    """Some elements are known, and of every block of the others' the mean: known frames and a
    low-resolution video at once, of videos `b f h w c`.

    A x has x's shape: x where it is known, elsewhere the mean of its block (of the known elements
    too). A⁺ keeps what is known, and gives the other elements of a block the one value with which
    its mean is right.

    Attributes:
      known: as of `Mask`.
      space, time: as of `Downsample`.
    """

    known: Any
    space: int = _static(1)
    time: int = _static(1)

    @property
    def mask(self) -> Mask:
        """What is known of the elements themselves."""
        return Mask(known=self.known)

    @property
    def means(self) -> Downsample:
        """What is known of the blocks."""
        return Downsample(space=self.space, time=self.time)

    def combine(
        self, x: Float[Array, "b f h w c"], low_res: Float[Array, "b f2 h2 w2 c"]
    ) -> Float[Array, "b f h w c"]:
        """y of videos, of which the known elements count, and of the means over all blocks."""
        return jnp.where(jnp.asarray(self.known), x, self.means.lift(low_res))

    def measure(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        self.mask.measure(x)  # refuses a mask that does not fit
        return self.combine(x, self.means.measure(x))

    def lift(self, y: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        known = jnp.broadcast_to(jnp.asarray(self.known), y.shape)
        share = self._of_blocks(known.astype(y.dtype))  # of a block that is known
        sure = self._of_blocks(jnp.where(known, y, 0.0))
        unknown = jnp.where(share < 1, 1 - share, 1.0)
        mean = self._of_blocks(jnp.where(known, 0.0, y)) / unknown
        return jnp.where(known, y, (mean - sure) / unknown)

    def _of_blocks(self, x: Array) -> Array:
        """The mean of each element's block."""
        return self.means.lift(self.means.measure(x))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Any linear function, of which JAX knows the transpose: crops, blurs, projections.

    A⁺ y is found by conjugate gradients on AᵀA x = Aᵀ y from 0, for each example. That converges
    to the smallest solution, also where rows of A depend on each other or y fits no x.

    Attributes:
      fn: the linear function of one example, float32 `shape` to an array of any shape. It is part
        of the compiled program: the same function object again compiles nothing anew.
      shape: x's, without the batch.
      maxiter: most iterations; as many as A has distinct singular values are enough.
      tol: the residual to stop at, relative to Aᵀ y.
    """

    fn: Callable[[Array], Array] = _static()
    shape: tuple[int, ...] = _static()
    maxiter: int = _static(50)
    tol: float = _static(1e-6)

    def measure(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"Linear: x has shape {x.shape[1:]} without batch, not {self.shape}")
        return jax.vmap(self.fn)(x)

    def lift(self, y: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        transpose = jax.linear_transpose(self.fn, jax.ShapeDtypeStruct(self.shape, jnp.float32))

        def normal(x: Array) -> Array:
            return transpose(self.fn(x))[0]

        def solve(y: Array) -> Array:
            right = transpose(y)[0]
            return jax.scipy.sparse.linalg.cg(normal, right, tol=self.tol, maxiter=self.maxiter)[0]

        return jax.vmap(solve)(y)
