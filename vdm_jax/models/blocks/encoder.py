"""The transformer of CLIP's two encoders (Radford et al. 2021, section 2.4): pre-normalised layers,
run as one scanned layer, whose parameters are stacked along their first axis."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers
from vdm_jax.models.text import token_attention as transformer


def quick_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x · sigmoid(1.702 x), OpenAI's approximation of GELU (Hendrycks & Gimpel 2016)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """The sizes of a stack of layers, and the stack.

    Attributes:
      width: features of a state; hidden: features inside of the feed-forward layers.
      heads: of attention, each of width / heads features.
      activation: a key of `ACTIVATIONS`.
      epsilon: of the normalisations.
    """

    width: int
    hidden: int
    num_layers: int
    heads: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads}: must divide width = {self.width}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation = {self.activation!r}: allowed are {', '.join(ACTIVATIONS)}"
            )

    def __call__(
        self,
        x: Float[Array, "b l d"],
        *,
        dtype: DTypeLike,
        mask: Bool[Array, "b l"] | None = None,
        bias: Float[Array, "#heads l l"] | None = None,
        skip: int = 0,
        remat: str = "none",
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l d"]]:
        """The states after all layers, and those after all but the last `skip`.

        Makes the parameters as "layers" of the module that it is called in. mask and bias: see
        `token_attention.attend`. remat: see `layers.remat`.
        """
        if not 0 <= skip < self.num_layers:
            raise ValueError(f"skip = {skip}: must be from 0 to {self.num_layers - 1}")
        scanned = nn.scan(
            layers.remat(_Layer, remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.num_layers,
        )
        last, every = scanned(self, dtype, skip > 0, name="layers")(x, mask, bias)
        return last, last if every is None else every[self.num_layers - 1 - skip]

    def norm(self, x: Float[Array, "*b d"], name: str, dtype: DTypeLike) -> Float[Array, "*b d"]:
        """Layer normalisation with the stack's epsilon, for what lies before and after it."""
        return transformer.layer_norm(self.epsilon, name)(x).astype(dtype)


class _Layer(nn.Module):
    """keep: also returns the states beside the carry, for the scan to stack."""

    sizes: Transformer
    dtype: DTypeLike
    keep: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        bias: Float[Array, "#heads l l"] | None,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l d"] | None]:
        sizes, make = self.sizes, functools.partial(transformer.dense, dtype=self.dtype)
        dim = sizes.width // sizes.heads
        heads, names = (sizes.heads, dim), (layers.HEADS, layers.HEAD_DIM)
        h = sizes.norm(x, "attention_norm", self.dtype)
        query, key, value = (
            make(heads, axes=(layers.IN, *names), name=name)(h)
            for name in ("query", "key", "value")
        )
        attended = transformer.attend(query / np.sqrt(dim), key, value, mask, bias)
        merge = make(sizes.width, axis=(-2, -1), axes=(*names, layers.OUT), name="out")
        x = x + merge(attended)
        h = sizes.norm(x, "mlp_norm", self.dtype)
        h = make(sizes.hidden, axes=(layers.IN, layers.HIDDEN), name="mlp_in")(h)
        h = ACTIVATIONS[sizes.activation](h)
        x = x + make(sizes.width, axes=(layers.HIDDEN, layers.OUT), name="mlp_out")(h)
        return x, x if self.keep else None
