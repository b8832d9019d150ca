"""A stage: one trainable diffusion model. Training trains stages, sampling samples them."""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from vdm_jax.diffusion.process import Denoiser, Process
from vdm_jax.models import cost, layers
from vdm_jax.models.layers import Layout
from vdm_jax.models.text.words import TextEncoder
from vdm_jax.stage.conditions.prompt import NEGATIVE, Prompt, Text
from vdm_jax.stage.conditions.scalar import GuidanceScale
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.protocols import (
    Batch,
    Cond,
    Condition,
    Encoding,
    Example,
    Frozen,
    Parametrisation,
    Shapes,
    Space,
)
from vdm_jax.stage.refinement import Plain, Refinement
from vdm_jax.stage.space import from_uint8, to_uint8
from vdm_jax.stage.view import View
from vdm_jax.stage.window import AT_THE_PLACE, Reach, Reading

NO_FROZEN: Frozen = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Network, diffusion process, space, conditions, and how its clips come from the data's.

    Attributes:
      network: see `protocols.Network`.
      process: noise, prediction and loss.
      space: what z is.
      view: how the stage's clips are made from the data's.
      conditions: what the network is conditioned on.
      parametrisation: what the network's raw output stands for.
      train_only: a regular expression. Only parameters whose path, such as
        "down_0_block_0/conv_in/kernel", matches it are trained; "" = all.
      new: a regular expression. Parameters whose path matches it may be missing from the model that
        training starts from, and are then drawn; "" = none.
      wider: a regular expression. Kernels whose path matches it may have more inputs than those of
        the model that training starts from; the further inputs start at zero. "" = none.
    """

    network: Any
    process: Process
    space: Space
    view: View
    conditions: tuple[Condition, ...] = ()
    parametrisation: Parametrisation = Plain()
    train_only: str = ""
    new: str = ""
    wider: str = ""

    def __post_init__(self):
        if isinstance(self.parametrisation, Refinement) and self.process.prediction != "v":
            raise ValueError(
                "residual: a refinement needs process.prediction = 'v', not "
                f"{self.process.prediction!r}"
            )
        if self.view.shape != self.space.data_shape:
            raise ValueError(f"clips of {self.view.shape}: the space has {self.space.data_shape}")
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError(f"conditions: {', '.join(names)}: each name must be there once")
        self._check_space()
        for condition in self.conditions:
            if condition.reach is None and self.reading.crops:
                raise ValueError(
                    f"stage.crop = {self.view.crop}: the condition {condition.name} is drawn over "
                    f"whole clips, of {self.view.shape[:3]} (frames, height, width), and the "
                    "workers read only a crop; set stage.crop = ()"
                )

    def _check_space(self) -> None:
        """Raises ValueError where a part does not fit what z is."""
        multiple, crop = self.space.multiple, self.view.crop_shape
        if any(size % multiple for size in crop[1:]):
            raise ValueError(
                f"stage.crop = {self.view.crop}: height and width must be multiples of {multiple}, "
                "the pixels that become one of z"
            )
        if not self.space.pixels and isinstance(self.parametrisation, Refinement):
            raise ValueError("residual: a refinement measures pixels; this stage's z are latents")
        for condition in self.conditions:
            shapes = condition.cond_shapes(1, 0)
            for name in condition.like_z:
                if name in shapes and shapes[name].shape[1:4] != self.z_shape[:3]:
                    raise ValueError(
                        f"{condition.name}: {name} has shape {shapes[name].shape[1:4]} (frames, "
                        f"height, width), and z {self.z_shape[:3]}"
                    )
            if condition.like_z and self.reading.crops and not self.space.pixels:
                raise ValueError(
                    f"stage.crop = {self.view.crop}: the condition {condition.name} is a video, "
                    "and a stage of latents has no crops of videos; set stage.crop = ()"
                )

    # --- parameters -----------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Parameters (float32), drawn from `key`."""
        return nn.meta.unbox(self._boxed_init(key))

    def abstract_params(self) -> PyTree:
        """For each parameter a `layers.Named`: shape, logical axis names, the dtype that it is
        computed in. Nothing is computed."""
        with layers.shapes_only():
            return jax.eval_shape(self._boxed_init, jax.random.key(0))

    def trained(self, tree: PyTree) -> PyTree:
        """A tree like the parameters' with None, an empty tree, for each that is not trained."""
        return matching(tree, self.train_only)

    def _boxed_init(self, key: Key[Array, ""]) -> PyTree:
        cond = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), self.cond_shapes(1, 0))
        z = jnp.zeros((1, *self.z_shape))
        return layers.init(self.network, key, z, jnp.zeros(1), cond)

    # --- shapes and cost ------------------------------------------------------------------------

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of the videos that the stage makes, in pixels."""
        return self.space.data_shape

    @property
    def z_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of z."""
        return self.space.z_shape

    @property
    def reading(self) -> Reading:
        """What the data's workers read of a clip for one example."""
        reaches = [condition.reach for condition in self.conditions if condition.reach]
        along = zip(AT_THE_PLACE, *reaches, strict=True)
        return self.view.reading(tuple(_farthest(axis) for axis in along))

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of the videos of a training batch: what is read of the data's clips."""
        return (*self.reading.video_shape, self.view.data_shape[3])

    def find(self, kind: type) -> Any:
        """The stage's condition of this kind, or None."""
        return next((c for c in self.conditions if isinstance(c, kind)), None)

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The encoder of the stage's text, if it has text."""
        text = self.find(Text)
        return None if text is None else text.encoder

    @property
    def takes_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input, because it was distilled from
        a guided teacher."""
        return self.find(GuidanceScale) is not None

    def with_layout(self, layout: Layout) -> "Stage":
        """The same stage with its network's activations laid out on a mesh by `layout`."""
        return dataclasses.replace(self, network=self.network.clone(layout=layout))

    def abstract_batch(self, batch_size: int, image_frames: int = 0) -> Batch:
        """Shapes and dtypes of a training batch, with `image_frames` images beside each clip."""
        video = jax.ShapeDtypeStruct((batch_size, *self.clip_shape), np.uint8)
        batch = {"video": video}
        if image_frames:
            shape = (batch_size, image_frames, *self.clip_shape[1:])
            batch["images"] = jax.ShapeDtypeStruct(shape, np.uint8)
        for name, (shape, dtype) in self.reading.entries.items():
            batch[name] = jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for condition in self.conditions:
            batch |= condition.batch_shapes(batch_size, image_frames)
        return batch

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        """Shapes of the condition as the network takes it."""
        shapes = {}
        for condition in self.conditions:
            shapes |= condition.cond_shapes(n, image_frames)
        return shapes

    def cost(self, image_frames: int = 0) -> list[cost.LevelCost]:
        """Parameters and operations of one evaluation of one clip, a row a level, from shapes."""
        frames, *rest = self.z_shape
        cond = self.cond_shapes(1, image_frames)
        return cost.level_table(self.network, (frames + image_frames, *rest), cond, image_frames)

    def train_flops(self, image_frames: int = 0) -> int:
        """Operations that a training update needs for one clip: forward, and twice that backward.

        What rematerialisation repeats is not counted, as is usual for the utilisation (MFU;
        Chowdhery et al. 2022, appendix B).
        """
        return 3 * sum(level.flops for level in self.cost(image_frames))

    # --- training -------------------------------------------------------------------------------

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], frozen: Frozen = NO_FROZEN
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The training loss, averaged over the batch, and scalar metrics."""
        params = self.network_params(params, frozen)
        process_key, dropout_key = jax.random.split(key)
        x, cond, num_images = self.example(batch, jax.random.fold_in(key, 3), frozen)

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

        def weight(logsnr):
            return self.parametrisation.weight(logsnr, cond)

        losses, metrics = self.process.loss(process_key, network_fn, x, weight)
        return losses.mean(), metrics

    def example(
        self, batch: Batch, key: Key[Array, ""], frozen: Frozen = NO_FROZEN
    ) -> tuple[Float[Array, "b f h w c"], dict[str, Array], int]:
        """What is learnt from a batch: z without noise, images appended to the clips as their last
        frames; the condition; and the number of images. Raises ValueError for another shape."""
        clip, images = self._pixels(batch)
        fps = batch.get("fps", jnp.full(len(clip), self.view.fps))
        encode = Encoding(self.space, frozen)
        example = Example(batch, clip, images, fps, encode, self.space.encode_mask)
        cond = {}
        for condition in self.conditions:
            cond |= condition.example(example, key_for(key, condition.name))
        x = clip if images is None else jnp.concatenate([clip, images], axis=1)
        if self.reading.crops:
            like = [name for c in self.conditions for name in c.like_z if name in cond]
            videos = [x, *(cond[name] for name in like)]
            x, *parts = self.view.cropped(videos, batch["crop_place"], example.num_images)
            cond |= dict(zip(like, parts, strict=True))
        images = {"num_images": example.num_images} if example.num_images else {}
        return (
            self.space.encode(x, frozen, key_for(key, "space"), **images),
            cond,
            example.num_images,
        )

    def _pixels(
        self, batch: Batch
    ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b k h w c"] | None]:
        """What was read of the clips of a batch and of the images beside them, in [-1, 1], in the
        stage's resolution."""
        video = batch["video"]
        if video.shape[1:] != self.clip_shape:
            raise ValueError(
                f"batch: video has shape {video.shape[1:]}, the stage wants {self.clip_shape} "
                "(frames, height, width, channels): make the data set by the stage's `reading`"
            )
        if lacking := [name for name in self.reading.entries if name not in batch]:
            raise ValueError(
                f"batch: lacks {', '.join(lacking)}: make the data set by the stage's `reading`"
            )
        clip, images = self.view.frames(from_uint8(video)), batch.get("images")
        return clip, None if images is None else self.view.frames(from_uint8(images))

    # --- sampling -------------------------------------------------------------------------------

    def encode(
        self,
        prompts: Sequence[str],
        *,
        negatives: Sequence[str] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A user's inputs, a row a sample, as arrays on the host that `begin` takes.

        Args:
          prompts: texts, or the numbers of classes; "" for a model of neither.
          negatives: prompts that guidance leads away from, in the place of the null condition.
          inputs: of other conditions by their names, such as "low_res", uint8 (n, f, h, w, c).

        Raises ValueError for what the model was not trained with.
        """
        n, inputs = len(prompts), dict(inputs or {})
        if not any(isinstance(condition, Prompt) for condition in self.conditions):
            if any(prompts):
                raise ValueError(
                    "prompts were given, but this model was trained without text; omit --prompt"
                )
            if negatives is not None:
                raise ValueError("negative: this model was trained without text")
        known = {condition.name for condition in self.conditions}
        if unknown := sorted(set(inputs) - known):
            raise ValueError(
                f"{', '.join(unknown)}: this model takes no such input; it has: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        found = {}
        for condition in self.conditions:
            is_prompt = isinstance(condition, Prompt)
            given = (prompts, negatives) if is_prompt else inputs.get(condition.name)
            found |= condition.encode(given, n)
        return found

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises ValueError where a prompt does not fit the model."""
        prompt = next((c for c in self.conditions if isinstance(c, Prompt)), None)
        if prompt is not None:
            prompt.rows(prompts)
        elif any(prompts):
            self.encode(prompts)

    def abstract_inputs(self, n: int) -> Shapes:
        """Shapes and dtypes of what `encode` returns for n samples."""
        shapes = {}
        for condition in self.conditions:
            shapes |= condition.input_shapes(n)
        return shapes

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        frozen: Frozen = NO_FROZEN,
    ) -> Cond:
        """`encode`'s arrays as the network takes them, once a sample.

        settings: floats by name, of the conditions' `settings`.
        """
        found, encode = dict(cond), Encoding(self.space, frozen)
        for condition in self.conditions:
            found |= condition.begin(cond, n, key, settings, encode)
        return found

    def null(self, cond: Cond, names: Sequence[str] | None = None) -> Cond:
        """`cond` with the null conditions in the places of those named; None = of all."""
        for condition in self.conditions:
            if names is None or condition.name in names:
                cond = condition.null(cond)
        return cond

    def coarse(self, clips: UInt8[np.ndarray, "n f h w c"]) -> np.ndarray | None:
        """What a super-resolution stage would refine to make these clips; None for a base."""
        low_res = self.find(LowResVideo)
        if low_res is None:
            return None
        return np.asarray(to_uint8(low_res.coarse(from_uint8(jnp.asarray(clips)))))

    @property
    def of_stage_before(self) -> Condition | None:
        """The condition that a cascade makes of the samples of the stage before; None for a first
        stage. Raises ValueError for several."""
        found = [one for one in self.conditions if getattr(one, "of_stage_before", False)]
        if len(found) > 1:
            names = ", ".join(one.name for one in found)
            raise ValueError(f"conditions {names}: only one can be made of the stage before")
        return found[0] if found else None

    @property
    def sample_shape(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one sample."""
        return jax.ShapeDtypeStruct(self.video_shape, np.uint8)

    def samples(self, decoded: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
        """What sampling returns of decoded videos in [-1, 1]."""
        return to_uint8(decoded)

    def network_params(self, params: PyTree, frozen: Frozen) -> PyTree:
        """The network's parameters, made of the stage's and the frozen ones. Here: the stage's."""
        del frozen
        return params

    def denoiser(self, params: PyTree, frozen: Frozen = NO_FROZEN) -> Denoiser:
        """The network with the stage's parameters bound, as a Denoiser of z."""
        bound = self.network_params(params, frozen)
        return self.process.denoiser(functools.partial(self.raw_output, bound))

    def raw_output(
        self,
        params: PyTree,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        **options: Any,
    ) -> Float[Array, "b f h w c"]:
        """What `process.prediction` names.

        params: the network's (`network_params`). options: its own (num_images, train, rngs).
        """
        cond = {name: entry for name, entry in cond.items() if name != NEGATIVE}
        raw = self.network.apply({"params": params}, z, logsnr, cond, **options)
        return self.parametrisation.output(raw, z, logsnr, cond)


def matching(tree: PyTree, pattern: str) -> PyTree:
    """`tree` with None, an empty tree, for each leaf whose path does not match `pattern`, a regular
    expression."""

    def keep(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf if re.search(pattern, name) else None

    return jax.tree_util.tree_map_with_path(keep, tree)


def key_for(key: Key[Array, ""], purpose: str) -> Key[Array, ""]:
    """A key of its own for each purpose, whatever other parts a stage has."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def _farthest(reaches: Sequence[Reach]) -> Reach:
    """What holds all of them, along one axis."""
    return Reach(
        grid=math.lcm(*(reach.grid for reach in reaches)),
        before=max(reach.before for reach in reaches),
        after=max(reach.after for reach in reaches),
    )
