"""The encoders of T5 v1.1, the frozen text encoder of Imagen and Imagen Video, and of umT5, Wan's.

Raffel et al. 2020, section 2.1: pre-normalised layers without biases, attention whose scores are
not scaled and have a learned bias for every relative position, the same in all layers. Version 1.1
has gated GELUs (Shazeer 2020) and shares no table with a decoder's output. umT5 (Chung et al. 2023,
section 4.1) has a bias for every relative position in every layer. Their weights are read by
`weights/t5.py`.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models import layers
from vdm_jax.models.text import token_attention as transformer

_init = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of an encoder.

    Attributes:
      width: of the states. hidden: inside of the feed-forward layers.
      heads, head_dim: of attention; together they need not be `width`.
      buckets, max_distance: of relative positions, see `relative_buckets`.
      epsilon: of the normalisations.
      bias_in_layers: whether every layer has a bias of its own for relative positions, as in umT5.
    """

    width: int
    hidden: int
    num_layers: int
    heads: int
    head_dim: int = 64
    vocab_size: int = 32_128
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    bias_in_layers: bool = False


# The published sizes of version 1.1. Imagen and Imagen Video take xxl, 4.8 billion parameters.
SIZES = {
    "small": T5Config(width=512, hidden=1024, num_layers=8, heads=6),
    "base": T5Config(width=768, hidden=2048, num_layers=12, heads=12),
    "large": T5Config(width=1024, hidden=2816, num_layers=24, heads=16),
    "xl": T5Config(width=2048, hidden=5120, num_layers=24, heads=32),
    "xxl": T5Config(width=4096, hidden=10_240, num_layers=24, heads=64),
}
# The one that Wan takes, 5.7 billion parameters.
UMT5_SIZES = {
    "xxl": dataclasses.replace(SIZES["xxl"], vocab_size=256_384, bias_in_layers=True),
}


class T5Encoder(layers.Whole):
    """Tokens to the last hidden states, one a token.

    The layers are one scanned layer, whose parameters are stacked along their first axis.

    Attributes:
      dtype: of the computation; normalisation and softmax are float32 always. The published
        weights were trained in bfloat16, and overflow in float16.
    """

    config: T5Config
    dtype: DTypeLike = jnp.float32

    @property
    def width(self) -> int:
        """Features of a state."""
        return self.config.width

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l width"]:
        """States of tokens outside of `mask` mean nothing."""
        config = self.config
        init = layers.named(nn.initializers.normal(1.0), layers.VOCAB, layers.OUT, dtype=self.dtype)
        x = layers.Embed(
            config.vocab_size, config.width, embedding_init=init, dtype=self.dtype, name="words"
        )(tokens)
        bias = None
        if not config.bias_in_layers:
            bias = _position_bias(config, tokens.shape[1])
        scanned = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.num_layers,
        )
        x, _ = scanned(config, self.dtype, name="layers")(x, bias, mask)
        return _RMSNorm(config.epsilon, name="norm")(x).astype(self.dtype)


def _position_bias(config: T5Config, length: int) -> Float[Array, "heads l l"]:
    """What is added to the scores of every two places; a part of the calling module."""
    places = np.arange(length)
    buckets = relative_buckets(
        places[None, :] - places[:, None], config.buckets, config.max_distance
    )
    init = layers.named(nn.initializers.normal(1.0), None, layers.HEADS)
    table = layers.Embed(config.buckets, config.heads, embedding_init=init, name="position_bias")
    return jnp.transpose(table(jnp.asarray(buckets)), (2, 0, 1))


class _RMSNorm(layers.GivenParams, nn.Module):
    """x over its root mean square, times a scale, in float32 (Zhang & Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        init = layers.named(nn.initializers.ones, layers.CHANNELS)
        scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32)
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x / jnp.sqrt(mean_square + self.epsilon) * scale


class _Layer(nn.Module):
    config: T5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l d"],
        bias: Float[Array, "heads l l"] | None,
        mask: Bool[Array, "b l"],
    ) -> tuple[Float[Array, "b l d"], None]:
        """bias: of relative positions; None = the layer has its own."""
        config = self.config
        if bias is None:
            bias = _position_bias(config, x.shape[1])
        sizes, names = (config.heads, config.head_dim), (layers.HEADS, layers.HEAD_DIM)
        h = _RMSNorm(config.epsilon, name="attention_norm")(x).astype(self.dtype)
        query, key, value = (
            self._dense(sizes, (layers.IN, *names), name)(h) for name in ("query", "key", "value")
        )
        attended = transformer.attend(query, key, value, mask, bias)
        x = x + self._dense(config.width, (*names, layers.OUT), "out", axis=(-2, -1))(attended)
        h = _RMSNorm(config.epsilon, name="mlp_norm")(x).astype(self.dtype)
        gate, h = (
            self._dense(config.hidden, (layers.IN, layers.HIDDEN), name)(h)
            for name in ("mlp_gate", "mlp_in")
        )
        h = nn.gelu(gate, approximate=True) * h
        return x + self._dense(config.width, (layers.HIDDEN, layers.OUT), "mlp_out")(h), None

    def _dense(self, features, axes, name, axis=-1) -> nn.DenseGeneral:
        return layers.DenseGeneral(
            features,
            axis=axis,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.named(_init, *axes, dtype=self.dtype),
            precision=transformer.precision(self.dtype),
            name=name,
        )


def relative_buckets(offsets: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each offset, key's place minus query's, in T5's bidirectional scheme.

    Half of the buckets are for keys that come later. Of each half, a half is one bucket a distance
    from 0 on, the others grow with the logarithm of the distance up to `max_distance`, and the last
    holds everything further away.
    """
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offsets)
    # float32 throughout, as the published code: where a logarithm is close to a whole number the
    # bucket would differ else.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + ratio.astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, far) + half * (offsets > 0)).astype(np.int32)
