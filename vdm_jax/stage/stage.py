"""A stage: one trainable diffusion model. Training trains stages, sampling samples them."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree, UInt8

from vdm_jax.diffusion.process import Denoiser, Process
from vdm_jax.models import cost as flops
from vdm_jax.models.condition import Cond
from vdm_jax.models.layers import Layout
from vdm_jax.models.text.words import TextEncoder

Batch = Mapping[str, ArrayLike | jax.ShapeDtypeStruct]
"""What a data pipeline yields: "video" uint8 (b, f, h, w, c); "token_mask" (b, l) with "tokens"
(b, l) or "text_embeddings" (b, l, d), or "label" (b,) where the stage has text or labels; for joint
training "images" uint8 (b, k, h, w, c), with the same of the images, of one axis k more, as
"image_tokens" and so on."""

_CLIP_KEYS = ("tokens", "text_embeddings", "token_mask", "label")
_IMAGE_KEYS = tuple(f"image_{key}" for key in _CLIP_KEYS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Network, diffusion process, and how the network's condition is made from a batch.

    Attributes:
      network: linen module `(z, logsnr, cond, *, num_images, train) -> raw output`.
      process: noise, prediction and loss.
      video_shape: (f, h, w, c) of the clips it is trained on.
      text_encoder: for stages with text.
      num_labels: classes, for stages with labels.
      cond_dropout: chance of the null condition in training, for guidance.
      takes_guidance: whether the network is told the guidance scale (`cond["guidance"]`) instead of
        being guided: it has been distilled from a guided one.
      train_only: a regular expression: trained are the parameters in whose path, such as
        "down_0_block_0/conv_in/kernel", it is found, the others stay as they are. "" = all.
    """

    network: nn.Module
    process: Process
    video_shape: tuple[int, int, int, int]
    text_encoder: TextEncoder | None = None
    num_labels: int = 0
    cond_dropout: float = 0.1
    takes_guidance: bool = False
    train_only: str = ""

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Parameters (float32), drawn from `key`."""
        return nn.meta.unbox(self._boxed_init(key))

    def abstract_params(self) -> PyTree:
        """For each parameter a `layers.Named`: shape, logical axis names, dtype that it is computed
        in. Nothing is computed."""
        return jax.eval_shape(self._boxed_init, jax.random.key(0))

    def trained(self, tree: PyTree) -> PyTree:
        """A tree as of the parameters with None, an empty tree, for each that is not trained."""

        def keep(path: tuple, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return leaf if re.search(self.train_only, name) else None

        return jax.tree_util.tree_map_with_path(keep, tree)

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of the data's clips, from which the examples are made."""
        return self.video_shape

    def with_layout(self, layout: Layout) -> "Stage":
        """The same stage, its network's activations laid out as `layout` says."""
        return dataclasses.replace(self, network=self.network.clone(layout=layout))

    def abstract_batch(self, batch_size: int, image_frames: int = 0) -> Batch:
        """Shapes and dtypes of a training batch, with `image_frames` images beside each clip."""
        cond = jax.tree.map(np.asarray, dict(self._example_cond()))
        batch = {"video": np.zeros((1, *self.clip_shape), np.uint8), **cond}
        if image_frames:
            batch["images"] = np.zeros((1, image_frames, *self.clip_shape[1:]), np.uint8)
            batch |= {
                f"image_{key}": np.repeat(leaf[:, None], image_frames, axis=1)
                for key, leaf in cond.items()
            }
        return {
            key: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype)
            for key, leaf in batch.items()
        }

    def _boxed_init(self, key: Key[Array, ""]) -> PyTree:
        z = jnp.zeros((1, *self.video_shape))
        cond = self._completed(self._example_cond(), 0)
        return self.network.init(key, z, jnp.zeros(1), cond)["params"]

    def _example_cond(self) -> Cond:
        cond = {}
        if self.text_encoder is not None:
            cond |= jax.tree.map(jnp.asarray, dict(self.text_encoder.example()))
        if self.num_labels:
            cond["label"] = jnp.zeros(1, jnp.int32)
        return cond

    def _completed(self, cond: Cond, image_frames: int) -> Cond:
        """The condition of one example as the network takes it: with what no batch holds."""
        return {**cond, "guidance": jnp.ones(1)} if self.takes_guidance else cond

    def cost(self, image_frames: int = 0) -> list[flops.LevelCost]:
        """Parameters and operations of one evaluation of one clip, a row a level, from shapes."""
        cond = self.conditioning(self.abstract_batch(1, image_frames))
        cond = self._completed(cond, image_frames)
        frames, *rest = self.video_shape
        return flops.level_table(self.network, (frames + image_frames, *rest), cond, image_frames)

    def train_flops(self, image_frames: int = 0) -> int:
        """Operations that a training update needs a clip: forward, and twice that backward.

        What rematerialisation does again is not counted, as is usual for the utilisation (MFU;
        Chowdhery et al. 2022, appendix B).
        """
        return 3 * sum(level.flops for level in self.cost(image_frames))

    def conditioning(self, batch: Batch) -> dict[str, ArrayLike | jax.ShapeDtypeStruct]:
        """The network's condition in a batch of data, all kept."""
        keys = _CLIP_KEYS + (_IMAGE_KEYS if "images" in batch else ())
        cond = {key: batch[key] for key in keys if key in batch}
        return {**cond, "keep": jnp.ones(batch["video"].shape[0], bool)}

    def null(self, cond: Cond) -> Cond:
        """The same condition with every example's replaced by the null condition."""
        return {**cond, "keep": jnp.zeros_like(cond["keep"])}

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The condition of prompts, one an example, all kept.

        A stage with text takes texts, one with labels a class's number, one with neither "".
        Raises ValueError where a prompt cannot be said to this model.
        """
        cond = {"keep": np.ones(len(prompts), bool)}
        if self.text_encoder is not None:
            return cond | self.text_encoder.encode(prompts, strict=True)
        if self.num_labels:
            return cond | {"label": np.array([self._label(prompt) for prompt in prompts])}
        if any(prompts):
            raise ValueError("prompts were given, but this model was trained without text")
        return cond

    def _label(self, prompt: str) -> np.int32:
        if not prompt.isdecimal() or int(prompt) >= self.num_labels:
            raise ValueError(
                f"prompt {prompt!r}: this model knows classes, 0 to {self.num_labels - 1}"
            )
        return np.int32(prompt)

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The training loss, averaged over the batch, and scalar metrics."""
        process_key, keep_key, dropout_key = jax.random.split(key, 3)
        x, cond, num_images = self.example(batch, jax.random.fold_in(key, 3))
        if self.cond_dropout:
            cond["keep"] = jax.random.bernoulli(keep_key, 1 - self.cond_dropout, (len(x),))

        def network_fn(z, logsnr):
            return self.raw_output(
                params,
                z,
                logsnr,
                cond,
                num_images=num_images,
                train=True,
                rngs={"dropout": dropout_key},
            )

        weight_fn = functools.partial(self.loss_weight, cond)
        losses, metrics = self.process.loss(process_key, network_fn, x, weight_fn)
        return losses.mean(), metrics

    def loss_weight(self, cond: Cond, logsnr: Float[Array, "b"]) -> Float[Array, "b *frames"]:
        """What the squared errors of each example are multiplied by, or of each of its frames."""
        return jnp.ones_like(logsnr)

    def example(
        self, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, "b f h w c"], dict[str, ArrayLike], int]:
        """What is learnt from a batch: the videos in [-1, 1], images appended to them as last
        frames, their condition, all kept, and how many images there are.

        key: of what a kind of stage draws. Raises ValueError where the batch has another shape.
        """
        clip, images = self._pixels(batch)
        num_images = 0 if images is None else images.shape[1]
        x = clip if images is None else jnp.concatenate([clip, images], axis=1)
        return x, self.conditioning(batch), num_images

    def _pixels(
        self, batch: Batch
    ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b k h w c"] | None]:
        """The clips of a batch and the images beside them, in [-1, 1]."""
        video = batch["video"]
        if video.shape[1:] != self.clip_shape:
            raise ValueError(
                f"batch: video has shape {video.shape[1:]}, the stage wants {self.clip_shape} "
                "(frames, height, width, channels)"
            )
        images = batch.get("images")
        return from_uint8(video), None if images is None else from_uint8(images)

    def begin(
        self, cond: Cond, key: Key[Array, ""], *, augmentation: float = 0.0, fps: float = 0.0
    ) -> Cond:
        """The condition of prompts (`encode_prompts`) as the network takes it, once a sample.

        augmentation, fps: of stages of a cascade, see `cascade.CascadeStage.begin`.
        """
        return cond

    def coarse(self, clips: UInt8[np.ndarray, "n f h w c"]) -> np.ndarray | None:
        """What a stage of a cascade would refine to make these clips of the data; else None."""
        return None

    def abstract_prompts(self, n: int) -> Cond:
        """Shapes and dtypes of the condition of n prompts, as `begin` takes it."""
        return self.conditioning(self.abstract_batch(n))

    def denoiser(self, params: PyTree) -> Denoiser:
        """The network with `params` bound, as a Denoiser of clips."""

        return self.process.denoiser(functools.partial(self.raw_output, params))

    def raw_output(
        self,
        params: PyTree,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        **options: Any,
    ) -> Float[Array, "b f h w c"]:
        """What `process.prediction` names; options: of the network (num_images, train, rngs)."""
        return self.network.apply({"params": params}, z, logsnr, cond, **options)


def from_uint8(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to [-1, 1], float32."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] to 0..255, values outside clipped."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
