"""CLIP (Radford et al. 2021): a text and an image encoder, trained so that the two vectors of a
picture and its caption lie close."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models import layers
from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.text.clip import CLIPTextConfig, CLIPTextEncoder
from vdm_jax.models.vision.clip import CLIPVisionConfig, CLIPVisionEncoder


class CLIP(layers.Whole):
    """Both encoders, and the scale of their similarities.

    The parameters of an encoder, params["text"] and params["vision"], are those of the encoder by
    itself.

    Attributes:
      dtype: of the computation; normalisation and softmax are float32 always.
    """

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "n l"],
        images: Float[Array, "m h w 3"],
        mask: Bool[Array, "n l"] | None = None,
    ) -> Float[Array, "m n"]:
        """The cosine of each image with each text, times the learned scale, in float32."""
        texts = CLIPTextEncoder(self.text, self.dtype, name="text").encode(tokens, mask).pooled
        pictures = CLIPVisionEncoder(self.vision, self.dtype, name="vision")(images).pooled
        init = layers.named(nn.initializers.constant(np.log(1 / 0.07)))
        scale = jnp.exp(self.param("logit_scale", init, ()).astype(jnp.float32))
        precision = transformer.precision(jnp.float32)
        return scale * jnp.matmul(_unit(pictures), _unit(texts).T, precision=precision)


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
