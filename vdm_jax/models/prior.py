"""The prior: a causal transformer from a text to the embedding of an image (unCLIP, Ramesh et al.
2022, section 2.2), as Make-A-Video takes it (Singer et al. 2022, section 3.1).

The sequence is the text's token states, the embedding of the whole text, the noise level, the
noised image embedding, and a learned query, at which the prediction is read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.condition.base import Cond, require
from vdm_jax.models.network import Network
from vdm_jax.models.vision.image_text import mean_state

_SINUSOIDS = 256  # of the noise level


class PriorTransformer(Network):
    """z, log-SNR and a text to a raw output of z's shape.

    z is (b, 1, 1, 1, d): a video of one pixel. The condition is that of `stage.conditions.prompt`:
    text_embeddings (b, l, text_width) and token_mask (b, l); where keep_text is False, a learned
    null takes the place of the text.

    Attributes:
      sizes: of the transformer.
      text_width: features of a token's state.
      tokens: of a text, at most.
      dtype: of the computation; normalisation and softmax are float32 always.
      remat: see `layers.remat`.
      layout: of the embeddings; nothing is folded.
    """

    sizes: Transformer = Transformer(
        width=128, hidden=512, num_layers=4, heads=4, activation="gelu"
    )
    text_width: int = 384
    tokens: int = 20
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    layout: layers.Layout = layers.ANYWHERE

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(["text_embeddings", "token_mask", "keep_text"])

    @property
    def stacked(self) -> Mapping[str, int]:
        return {"layers": self.sizes.num_layers}

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b 1 1 1 d"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        *,
        num_images: int = 0,
        train: bool = False,
    ) -> Float[Array, "b 1 1 1 d"]:
        """Raises ValueError for images beside the embedding, and for a text that does not fit."""
        if num_images:
            raise ValueError(f"data.image_frames = {num_images}: a prior takes no images; set 0")
        states, mask = self._text(cond)
        sequence = [
            self._mapped(states, "text_states"),
            self._mapped(mean_state(states, mask)[:, None], "text_vector"),
            self._noise_level(logsnr)[:, None],
            self._mapped(z[:, 0, 0], "embedding"),
        ]
        width, init = self.sizes.width, nn.initializers.normal(0.02)
        query = self.param("query", layers.named(init, layers.CHANNELS), (width,))
        query = jnp.broadcast_to(query.astype(self.dtype), (len(z), 1, width))
        x = jnp.concatenate([*sequence, query], axis=1)
        names = layers.named(init, None, layers.CHANNELS)
        positions = self.param("positions", names, (self.tokens + 4, width))
        x = x + positions.astype(self.dtype)
        seen = jnp.concatenate([mask, jnp.ones((len(z), 4), bool)], axis=1)
        bias = causal_bias(x.shape[1])
        x, _ = self.sizes(x, dtype=self.dtype, mask=seen, bias=bias, remat=self.remat)
        x = self.sizes.norm(x[:, -1], "norm", jnp.float32)
        out = layers.dense(z.shape[-1], dtype=jnp.float32, zero=True, name="output")(x)
        return out[:, None, None, None]

    @nn.nowrap
    def _mapped(self, x: Array, name: str) -> Array:
        return layers.dense(self.sizes.width, dtype=self.dtype, name=name)(x.astype(self.dtype))

    @nn.nowrap
    def _text(self, cond: Cond) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"]]:
        """The states of the text, or the learned null, and which of them count."""
        states, mask = (jnp.asarray(x) for x in require(cond, "text_embeddings", "token_mask"))
        wanted = (self.tokens, self.text_width)
        if states.shape[1:] != wanted:
            raise ValueError(
                f"cond: text_embeddings {states.shape} must be (batch, {wanted[0]}, {wanted[1]}), "
                "the tokens and the text_width that the network was made for"
            )
        init = layers.named(nn.initializers.normal(1.0), layers.CHANNELS)
        null = self.param("null_text", init, (self.text_width,))
        keep = jnp.asarray(cond.get("keep_text", jnp.ones(len(states), bool)))[:, None]
        states = jnp.where(keep[..., None], states.astype(jnp.float32), null)
        return states, jnp.where(keep, mask, True)

    @nn.nowrap
    def _noise_level(self, logsnr: Float[Array, "b"]) -> Float[Array, "b width"]:
        waves = layers.sinusoidal_embedding(logsnr, _SINUSOIDS)
        hidden = nn.swish(self._mapped(waves, "noise_level_in"))
        return self._mapped(hidden, "noise_level_out")


def causal_bias(length: int) -> Float[Array, "1 {length} {length}"]:
    """What is added to the scores of queries, rows, and keys, columns, so that no token attends to
    a later one."""
    later = jnp.triu(jnp.ones((length, length), bool), 1)
    return jnp.where(later, jnp.finfo(jnp.float32).min / 2, 0.0)[None]


def sizes_from(values: Mapping[str, Any]) -> Transformer:
    """The sizes of a configuration's `model.prior`. Raises ValueError naming a field that is
    unknown or has a value that is not allowed."""
    known = [field.name for field in dataclasses.fields(Transformer)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"model.prior: {', '.join(unknown)}: allowed are {', '.join(known)}")
    for name in ("width", "hidden", "num_layers", "heads"):
        if values.get(name, 1) < 1:
            raise ValueError(f"model.prior.{name} = {values[name]}: must be positive")
    return Transformer(**values)
