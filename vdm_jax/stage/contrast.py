"""The contrastive training of an image-text pair: what the training loop takes in the place of a
stage."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Key, PyTree

from vdm_jax.models import layers
from vdm_jax.models.text.words import TextEncoder
from vdm_jax.models.vision.image_text import ImageTextPair
from vdm_jax.stage.direct import Direct
from vdm_jax.stage.protocols import Batch, Frozen
from vdm_jax.stage.space import from_uint8
from vdm_jax.stage.stage import NO_FROZEN
from vdm_jax.stage.view import View


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast(Direct):
    """A pair of encoders, trained to find the caption of each image of a batch, and the image of
    each caption (Radford et al. 2021, figure 3).

    It has the methods of `Stage` that training calls. Several images of a batch may have the same
    caption. All of them count as its images.

    Attributes:
      network: the pair.
      view: how images are made from the data's clips, which are single frames.
      text_encoder: a frozen one, whose states the pair takes.
    """

    network: ImageTextPair
    view: View
    text_encoder: TextEncoder
    noun = "an image-text pair"

    def __post_init__(self):
        frames, height, width, _ = self.view.shape
        size = self.network.config.image_size
        if frames != 1:
            raise ValueError(f"data.num_frames = {frames}: a pair is trained on single frames, 1")
        if (height, width) != (size, size):
            raise ValueError(
                f"images of {height} x {width} pixels: must be {size} x {size}, the pair's "
                "image_size"
            )
        wanted, found = self.network.config.text_width, self.text_encoder.embedding_width
        if wanted != found:
            raise ValueError(
                f"text encoder: has embeddings of {found} features, and the pair takes text_width "
                f"= {wanted}"
            )

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Parameters (float32), drawn from `key`."""
        return nn.meta.unbox(self._boxed_init(key))

    def abstract_params(self) -> PyTree:
        """As `Stage.abstract_params`."""
        with layers.shapes_only():
            return jax.eval_shape(self._boxed_init, jax.random.key(0))

    def _boxed_init(self, key: Key[Array, ""]) -> PyTree:
        text = self.text_encoder.example()
        states, mask = (jnp.asarray(text[name]) for name in ("text_embeddings", "token_mask"))
        image = jnp.zeros((1, *self.view.shape[1:]))
        return layers.init(self.network, key, image, states, mask)

    def trained(self, tree: PyTree) -> PyTree:
        """As `Stage.trained`: all of it."""
        return tree

    def abstract_batch(self, batch_size: int, image_frames: int = 0) -> Batch:
        """Shapes and dtypes of a training batch."""
        del image_frames
        text = self.text_encoder.example()
        shapes = {
            name: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype)
            for name, value in text.items()
        }
        return {"video": jax.ShapeDtypeStruct((batch_size, *self.clip_shape), np.uint8), **shapes}

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], frozen: Frozen = NO_FROZEN
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean cross-entropy, in nats, of images among captions and of captions among images.

        Metrics: the share of images whose likeliest caption is theirs, and the similarities'
        scale.
        """
        del key, frozen
        video = batch["video"]
        if video.shape[1:] != self.clip_shape:
            raise ValueError(
                f"batch: video has shape {video.shape[1:]}, the pair's is {self.clip_shape} "
                "(frames, height, width, channels)"
            )
        images = rearrange(self.view.frames(from_uint8(video)), "b 1 h w c -> b h w c")
        states, mask = jnp.asarray(batch["text_embeddings"]), jnp.asarray(batch["token_mask"])
        scores = self.network.apply({"params": params}, images, states, mask)
        same = same_texts(states, mask)
        loss = (cross_entropy(scores, same) + cross_entropy(scores.T, same)) / 2
        found = same[jnp.arange(len(same)), scores.argmax(1)]
        return loss, {"accuracy": found.mean(), "scale": jnp.exp(params["logit_scale"])}


def same_texts(states: Float[Array, "n l d"], mask: Bool[Array, "n l"]) -> Bool[Array, "n n"]:
    """Which texts of a batch are equal, by their tokens' states."""
    rows = jnp.where(mask[..., None], states, 0).reshape(len(states), -1).astype(jnp.float32)
    # Equal rows have equal sums in the same order; a random sum tells unequal ones apart.
    sums = rows @ jax.random.normal(jax.random.key(0), (rows.shape[1], 4))
    return (sums[:, None] == sums).all(-1)


def cross_entropy(scores: Float[Array, "n n"], same: Bool[Array, "n n"]) -> Float[Array, ""]:
    """Of each row against the uniform distribution over the columns that are the same."""
    targets = same / same.sum(-1, keepdims=True)
    return -(targets * jax.nn.log_softmax(scores, axis=-1)).sum(-1).mean()
