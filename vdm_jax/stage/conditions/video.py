"""Conditions that are videos of z's shape, concatenated to z as channels.

In a stage of latents they are latents: the stage's space encodes them.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8

from vdm_jax.diffusion import losses, masks
from vdm_jax.diffusion.schedules import Schedule, alpha_sigma, expand
from vdm_jax.stage import resize
from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.protocols import Cond, Encode, Example, Shapes
from vdm_jax.stage.refinement import Refinement
from vdm_jax.stage.space import from_uint8
from vdm_jax.stage.window import Reach, Reaches


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowResVideo(Base):
    """The video that a super-resolution stage refines, in space (SSR) or time (TSR), noised by a
    known amount (noise conditioning augmentation; Ho et al. 2021, Cascaded diffusion, section 4.2).

    `Cond`: low_res float (b, f, h, w, c), of z's shape: the video resized to the refined video's
    shape, encoded as z is, and then noised; low_res_logsnr (b,), the log-SNR of that noise; with a
    refinement low_res_residual (b, f, h, w, 1), the standard deviation of the video about it.

    Attributes:
      shape, low_res_shape: (f, h, w, c) of the refined and of the low-resolution video.
      z_shape: (f, h, w, c) of z; None = `shape`, the video itself.
      fill: how the low-resolution video gets the refined video's frames, see `resize.refine`.
      schedule: of the noise levels in training.
      max_augmentation: in training the noise has the log-SNRs of the times from 0 to this; 1 = all,
        0 = no noise is added, and the network takes the log-SNR of the time 0.
      refinement: the parameterisation that needs low_res_residual, if the stage has it.
    """

    name = "low_res"
    mechanism = "channels"
    like_z = ("low_res", "low_res_residual")
    settings = ("augmentation",)
    of_stage_before = True

    shape: tuple[int, int, int, int]
    low_res_shape: tuple[int, int, int, int]
    z_shape: tuple[int, int, int, int] | None = None
    fill: str = "repeat"
    schedule: Schedule
    max_augmentation: float = 1.0
    refinement: Refinement | None = None

    def __post_init__(self):
        resize.ratios(self.shape, self.low_res_shape)
        if self.fill not in resize.FILLS:
            raise ValueError(f"fill = {self.fill!r}: allowed are {', '.join(resize.FILLS)}")
        if not 0 <= self.max_augmentation <= 1:
            raise ValueError(f"max_augmentation = {self.max_augmentation}: must be from 0 to 1")

    @functools.cached_property
    def trained(self) -> tuple[float, float]:
        """The lowest and the highest log-SNR of the noise on the video in training."""
        with jax.ensure_compile_time_eval():
            return tuple(float(self.schedule(jnp.array(t))) for t in (self.max_augmentation, 0.0))

    @functools.cached_property
    def reach(self) -> Reaches:
        """Enlarging takes the low-resolution pixels about each, blending the frame after, and a
        refinement measures further around."""
        grid = resize.ratios(self.shape, self.low_res_shape)
        before, after = (0, grid[0] if self.fill == "blend" and grid[0] > 1 else 0)
        about = 0
        if self.refinement is not None:
            about = self.refinement.reach
            if self.refinement.acceleration:  # differences of the given frames around
                before, after = grid[0], 2 * grid[0]
        space = (Reach(g, about + g // 2, about + g // 2) for g in grid[1:])
        return (Reach(grid[0], before, after), *space)

    def check(self, settings: Mapping[str, float]) -> None:
        augmentation = settings.get("augmentation", 0.0)
        lowest, highest = (math.exp(logsnr) for logsnr in self.trained)
        # Equality is rounded: schedules are float32.
        if augmentation and not 0.999 * lowest <= augmentation <= 1.001 * highest:
            raise ValueError(
                f"augmentation = {augmentation:g}: this model was trained with α²/σ² from "
                f"{lowest:.3g} to {highest:.3g}; 0 is the least noise"
            )

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        frames, *rest = self.z_shape or self.shape
        return {
            "low_res": shape(n, frames + image_frames, *rest, dtype=jnp.float32),
            "low_res_logsnr": shape(n, dtype=jnp.float32),
        }

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        time_key, noise_key = jax.random.split(key)
        low, known = self._resized(example)
        times = losses.low_discrepancy_times(time_key, len(low)) * self.max_augmentation
        noise = noise_key if self.max_augmentation else None
        z, logsnr = example.encode(low), self.schedule(times)
        return self._entries(low, z, known, logsnr, noise, example.num_images)

    def coarse(self, clips: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h2 w2 c"]:
        """The low-resolution video of clips of the stage's or of a finer shape."""
        return resize.coarsen(clips, self.low_res_shape[:3])

    def input_shapes(self, n: int) -> Shapes:
        return {"low_res": shape(n, *self.low_res_shape, dtype=jnp.uint8)}

    def encode(self, given: UInt8[np.ndarray, "n f h w c"] | None, n: int) -> dict[str, Any]:
        if given is None:
            raise ValueError("low_res: this stage refines a video, and none was given")
        _, *size = self.low_res_shape
        if given.dtype != np.uint8 or list(given.shape[2:]) != size:
            raise ValueError(
                f"low_res: {given.dtype}{list(given.shape)} was given, this stage refines uint8 "
                f"[n, f, {', '.join(map(str, size))}]"
            )
        return {"low_res": given}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        """The setting `augmentation` is α²/σ² of the noise; 0, the default, adds none.

        Without noise the network takes the least noise level of training, the nearest to none that
        it knows. A level beyond those of training costs up to 2 dB, and adding the noise of the
        least level costs more than it gains (benchmarks/RESULTS.md).
        """
        lowest, highest = self.trained
        augmentation = settings.get("augmentation", 0.0)
        level = min(max(math.log(augmentation), lowest), highest) if augmentation else highest
        low = resize.refine(from_uint8(cond["low_res"]), self.shape[:3], self.fill)
        known, logsnr = self._filled(self.shape[0]), jnp.full(n, level)
        return self._entries(low, encode(low), known, logsnr, key if augmentation else None, 0)

    def _entries(
        self,
        low: Float[Array, "b f h w c"],
        z: Float[Array, "b f2 h2 w2 c2"],
        known: Bool[np.ndarray, "f 1 1 1"],
        logsnr: Float[Array, "b"],
        key: Key[Array, ""] | None,
        num_images: int,
    ) -> dict[str, Array]:
        """The entries of `Cond`. z: of `low`. key: of the noise; None = no noise is added."""
        alpha, sigma = (expand(c, z.ndim) for c in alpha_sigma(logsnr))
        noisy = z if key is None else alpha * z + sigma * jax.random.normal(key, z.shape)
        found = {"low_res": jnp.where(known, noisy, 0.0), "low_res_logsnr": logsnr}
        if self.refinement is not None:
            found["low_res_residual"] = self.refinement.deviations(low, num_images)
        return found

    def _filled(self, frames: int) -> Bool[np.ndarray, "{frames} 1 1 1"]:
        """Which frames of a resized video of so many are not blank."""
        step = self.shape[0] // self.low_res_shape[0] if self.fill == "blank" else 1
        return (np.arange(frames) % step == 0)[:, None, None, None]

    def _resized(
        self, example: Example
    ) -> tuple[Float[Array, "b _ h w c"], Bool[np.ndarray, "_ 1 1 1"]]:
        """The low-resolution video in z's shape, without noise, and which frames are not blank."""
        size, ratios = example.clip.shape[1:4], resize.ratios(self.shape, self.low_res_shape)
        coarse = tuple(fine // ratio for fine, ratio in zip(size, ratios, strict=True))
        low = resize.refine(resize.coarsen(example.clip, coarse), size, self.fill)
        known, count = self._filled(size[0]), example.num_images
        if not count:
            return low, known
        # A TSR stage has no frames to give to an image: its condition is blank.
        images = resize.refine(
            resize.coarsen(example.images, (count, *coarse[1:])), (count, *size[1:])
        )
        known = np.concatenate([known, np.full((count, 1, 1, 1), ratios[0] == 1)])
        return jnp.concatenate([low, images], axis=1), known


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedVideo(Base):
    """Known pixels of the video itself (Lumiere, Bar-Tal et al. 2024, section 4.2).

    `Cond`: mask float (b, f, h, w, 1), 1 where all pixels that z stands for are known, and
    masked_video (b, f, h, w, c), the known pixels encoded as z is, zero elsewhere. Without them the
    network takes nothing as known. Sampling sets them by the method "trained"
    (`conditional.masked`).

    Attributes:
      shape: (f, h, w, c) of the clips.
      z_shape: (f, h, w, c) of z; None = `shape`, the video itself.
      kinds: of `diffusion.masks.KINDS`, drawn in training.
    """

    name = "masked_video"
    mechanism = "channels"
    like_z = ("masked_video", "mask")

    shape: tuple[int, int, int, int]
    z_shape: tuple[int, int, int, int] | None = None
    kinds: tuple[str, ...]

    @property
    def reach(self) -> None:
        """Masks are drawn over whole clips: a box or a first frame of a part is another one."""

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        frames, height, width, channels = self.z_shape or self.shape
        size = (frames + image_frames, height, width)
        return {
            "masked_video": shape(n, *size, channels, dtype=jnp.float32),
            "mask": shape(n, *size, 1, dtype=jnp.float32),
        }

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        clip, count = example.clip, example.num_images
        mask = masks.draw(key, len(clip), clip.shape[1:4], self.kinds)
        known, z_mask = example.encode(clip * mask), example.encode_mask(mask)
        pad = [(0, 0), (0, count), (0, 0), (0, 0), (0, 0)]
        return {"masked_video": jnp.pad(known * z_mask, pad), "mask": jnp.pad(z_mask, pad)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextFrames(MaskedVideo):
    """Known frames that guidance leads towards (context guidance; Video LDM, Blattmann et al. 2023,
    section 3.2). The null is that nothing is known, where training draws that: the kind "none"."""

    def null(self, cond: Cond) -> Cond:
        if "mask" not in cond or "none" not in self.kinds:
            return cond
        return {**cond, **{name: jnp.zeros_like(cond[name]) for name in self.like_z}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyFrames(MaskedVideo):
    """Known frames, between and beyond which the others are made (Make-A-Video, Singer et al. 2022,
    section 3.3). Sampling takes every `skip`-th frame of the clip, uint8 (n, given, h, w, c).

    Attributes:
      given: frames that the stage before makes.
      skip: frames from one of them to the next.
    """

    of_stage_before = True

    given: int
    skip: int

    def __post_init__(self):
        span = (self.given - 1) * self.skip + 1
        if self.given < 1 or self.skip < 1 or span > self.shape[0]:
            raise ValueError(
                f"key frames: {self.given} with {self.skip} frames from one to the next take "
                f"{span} frames, and clips have {self.shape[0]}"
            )

    def input_shapes(self, n: int) -> Shapes:
        return {"masked_video": shape(n, self.given, *self.shape[1:], dtype=jnp.uint8)}

    def encode(self, given: UInt8[np.ndarray, "n f h w c"] | None, n: int) -> dict[str, Any]:
        """None: nothing is known, or the method "trained" says what."""
        if given is None:
            return {}
        wanted = (n, self.given, *self.shape[1:])
        if given.dtype != np.uint8 or given.shape != wanted:
            raise ValueError(
                f"masked_video: {given.dtype}{list(given.shape)} was given, this stage takes key "
                f"frames uint8 {list(wanted)}"
            )
        return {"masked_video": given}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        if "masked_video" not in cond:
            return {}
        frames, height, width, _ = self.z_shape or self.shape
        places = np.arange(self.given) * self.skip
        known = encode(from_uint8(cond["masked_video"]))
        video = jnp.zeros((n, frames, *known.shape[2:])).at[:, places].set(known)
        mask = jnp.zeros((n, frames, height, width, 1)).at[:, places].set(1.0)
        return {"masked_video": video, "mask": mask}
