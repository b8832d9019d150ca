"""What a network is told beside z: the log-SNR, text, labels and each frame's place in the clip."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers

Cond = Mapping[str, Any]
"""Keys, all optional as far as the network has no use for them:

- tokens int32 (b, l) or text_embeddings float (b, l, text_width), and token_mask bool (b, l): the
  clip's text, as numbers of words or as states of a frozen text encoder;
- label int32 (b,): the clip's class;
- image_tokens (b, k, l) or image_text_embeddings (b, k, l, text_width), image_token_mask (b, k, l),
  image_label (b, k): those of the k images appended to the clip;
- keep_text, keep_label bool (b,): False where that condition is replaced by its null condition;
  absent, all are kept;
- guidance float (b,): the scale of classifier-free guidance that a distilled network imitates;
- low_res float (b, f, h, w, c): a video of z's shape that z is a finer version of, noised, and
  low_res_logsnr float (b,): the log-SNR of that noise;
- low_res_residual float (b, f, h, w, 1): how far it is from the video, for stages that need it;
- masked_video float (b, f, h, w, c) and mask float (b, f, h, w, 1): what is known of the video,
  and 1 where it is; absent, nothing is;
- fps float (b,): the clip's frames a second.
"""

NULL_CONDITIONS = ("learned", "zero")


class ConditionEmbedding(nn.Module):
    """Embeds the condition: a vector a frame, and text tokens for cross-attention.

    Attributes:
      dim: width of the vector.
      vocab_size, max_length: of the text's words; vocab_size 0 is a network without words.
      text_width: of a frozen text encoder's embeddings, 0 is a network without them.
      text_kernel: of how many neighbours a token is told, by a convolution over them: which colour
        moves where is then told by every token of the phrase. 0 = no convolution.
      num_labels: 0 is a network without labels.
      null_condition: what stands for a dropped condition, a learned embedding or zeros.
      frame_positions: whether the vector also says which frame of the clip it is for, by a
        sinusoidal embedding (any number of frames can be asked for).
      guidance_embedding: whether the vector also holds the guidance scale (Meng et al. 2023, §3.1).
        It starts at zero: a student begins as the network that it takes its weights from.
      low_res_embedding: whether the vector also holds the log-SNR of a conditioning video's noise
        (noise conditioning augmentation, Ho et al. 2021).
      fps_embedding: whether the vector also holds the frame rate, by its logarithm.
    """

    dim: int
    vocab_size: int = 0
    max_length: int = 0
    text_width: int = 0
    text_kernel: int = 0
    num_labels: int = 0
    null_condition: str = "learned"
    frame_positions: bool = False
    guidance_embedding: bool = False
    low_res_embedding: bool = False
    fps_embedding: bool = False
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, logsnr: Float[Array, "b"], cond: Cond, frames: int, num_images: int = 0
    ) -> tuple[
        Float[Array, "bf dim"],
        Float[Array, "b items l dim"] | None,
        Bool[Array, "b items l"] | None,
    ]:
        """The vectors (batch and frames folded, images last), the tokens and their mask.

        Raises ValueError where `cond` lacks what the network was built for.
        """
        if self.null_condition not in NULL_CONDITIONS:
            raise ValueError(
                f"null_condition = {self.null_condition!r}: allowed are {NULL_CONDITIONS}"
            )
        batch = logsnr.shape[0]
        # Frequencies from 1 to 1/100 resolve the useful range of log-SNR, about [-20, 20].
        h = layers.sinusoidal_embedding(logsnr, self.dim, max_period=100.0)
        h = self._mlp("logsnr", h)
        if self.guidance_embedding:
            h = h + self._guidance(cond)
        if self.low_res_embedding:
            noise = self._value(cond, "low_res_logsnr")
            h = h + self._mlp(
                "low_res", layers.sinusoidal_embedding(noise, self.dim, max_period=100.0)
            )
        if self.fps_embedding:
            rate = jnp.log2(self._value(cond, "fps"))
            h = h + self._mlp("fps", layers.sinusoidal_embedding(rate, self.dim, max_period=10.0))
        h = h[:, None]  # b, items, dim; items are the clip and the images
        tokens = mask = None
        if self.vocab_size and self.text_width:
            raise ValueError(
                f"vocab_size = {self.vocab_size}, text_width = {self.text_width}: one must be 0"
            )
        if self.vocab_size or self.text_width:
            keep = cond.get("keep_text", jnp.ones(batch, bool))
            tokens, mask, pooled = self._text(cond, keep, num_images)
            h = h + pooled
        if self.num_labels:
            label = self._items(cond, "label", num_images)
            embedded = self._embed(self.num_labels, "labels")(label)
            keep = cond.get("keep_label", jnp.ones(batch, bool))
            h = h + self._drop(embedded, keep, "null_label")
        h = jnp.broadcast_to(h, (batch, 1 + num_images, self.dim))
        h = jnp.concatenate(
            [repeat(h[:, 0], "b d -> b f d", f=frames - num_images), h[:, 1:]], axis=1
        )
        if self.frame_positions:
            h = h + self._positions(frames, num_images)
        # A nonlinear layer after the sum, so that what a word does can depend on the frame.
        h = self._mlp("mix", nn.swish(h))
        return self.layout.fold(h), tokens, mask

    def _mlp(self, name: str, h: Array) -> Array:
        first, second = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        h = layers.dense(self.dim, dtype=self.dtype, axes=first, name=f"{name}_in")(h)
        return layers.dense(self.dim, dtype=self.dtype, axes=second, name=f"{name}_out")(
            nn.swish(h)
        )

    def _guidance(self, cond: Cond) -> Float[Array, "b dim"]:
        scale = self._value(cond, "guidance")
        h = layers.sinusoidal_embedding(scale, self.dim, max_period=100.0)
        first, second = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        h = layers.dense(self.dim, dtype=self.dtype, axes=first, name="guidance_in")(h)
        return layers.dense(
            self.dim, dtype=self.dtype, zero=True, axes=second, name="guidance_out"
        )(nn.swish(h))

    def _value(self, cond: Cond, name: str) -> Array:
        if name not in cond:
            raise ValueError(f"cond lacks {name}; it has: {', '.join(cond) or 'nothing'}")
        return jnp.asarray(cond[name])

    def _items(self, cond: Cond, key: str, num_images: int) -> Array:
        wanted = [key] + ([f"image_{key}"] if num_images else [])
        missing = [k for k in wanted if k not in cond]
        if missing:
            raise ValueError(
                f"cond lacks {', '.join(missing)}; it has: {', '.join(cond) or 'nothing'}"
            )
        items = [cond[key][:, None]]
        if num_images:
            items.append(cond[f"image_{key}"])
        return jnp.concatenate(items, axis=1)

    def _embed(self, size: int, name: str) -> nn.Embed:
        init = layers.named(nn.initializers.normal(1.0), layers.VOCAB, layers.OUT, dtype=self.dtype)
        return nn.Embed(size, self.dim, embedding_init=init, dtype=self.dtype, name=name)

    def _drop(self, value: Array, keep: Bool[Array, "b"], name: str) -> Array:
        if self.null_condition == "learned":
            init = layers.named(nn.initializers.normal(1.0), layers.CHANNELS)
            null = self.param(name, init, (self.dim,)).astype(value.dtype)
        else:
            null = jnp.zeros((), value.dtype)
        return jnp.where(jnp.expand_dims(keep, range(1, value.ndim)), value, null)

    def _text(self, cond: Cond, keep: Bool[Array, "b"], num_images: int):
        make = self._text_states if self.text_width else self._words
        tokens = make(cond, num_images)
        mask = self._items(cond, "token_mask", num_images)
        if self.text_kernel:
            lecun, axes = nn.initializers.lecun_normal(), (None, layers.IN, layers.OUT)
            phrases = nn.Conv(
                self.dim,
                (self.text_kernel,),
                dtype=self.dtype,
                kernel_init=layers.named(lecun, *axes, dtype=self.dtype),
                bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=self.dtype),
                name="text_conv",
            )
            tokens = phrases(jnp.where(mask[..., None], tokens, 0))
        tokens = self._drop(tokens, keep, "null_text")
        weights = mask[..., None] / mask.sum(-1, keepdims=True)[..., None]
        pooled = (tokens * weights.astype(tokens.dtype)).sum(axis=-2)
        return tokens, mask, layers.dense(self.dim, dtype=self.dtype, name="pooled_text")(pooled)

    def _words(self, cond: Cond, num_images: int) -> Float[Array, "b items l dim"]:
        ids = self._items(cond, "tokens", num_images)
        init = layers.named(nn.initializers.normal(0.02), None, layers.CHANNELS)
        places = self.param("word_positions", init, (self.max_length, self.dim))
        return self._embed(self.vocab_size, "words")(ids) + places.astype(self.dtype)

    def _text_states(self, cond: Cond, num_images: int) -> Float[Array, "b items l dim"]:
        """Where a token stands is in its state already."""
        states = self._items(cond, "text_embeddings", num_images)
        if states.shape[-1] != self.text_width:
            raise ValueError(
                f"cond: text_embeddings {states.shape} must have text_width = {self.text_width} "
                "last, the width of the text encoder that the network was made for"
            )
        return layers.dense(self.dim, dtype=self.dtype, name="text_states")(
            states.astype(self.dtype)
        )

    def _positions(self, frames: int, num_images: int) -> Float[Array, "f dim"]:
        clip = layers.sinusoidal_embedding(
            jnp.arange(frames - num_images), self.dim, max_period=1000.0
        )
        clip = layers.dense(self.dim, dtype=self.dtype, name="frame_position")(clip)
        init = layers.named(nn.initializers.normal(0.02), layers.CHANNELS)
        image = self.param("image_position", init, (self.dim,)).astype(clip.dtype)
        return jnp.concatenate([clip, jnp.tile(image, (num_images, 1))])
