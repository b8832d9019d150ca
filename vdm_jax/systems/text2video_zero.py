"""Text2Video-Zero (Khachatryan et al. 2023): an image model makes a video, untrained.

- Motion in latents (section 3.3.1): the first frame is denoised to T', its latent is shifted by
  k · δ for frame k, noised to T, and all frames are denoised from there.
- Cross-frame attention (section 3.3.2): the pixels of each frame attend to those of the first.
- Background smoothing (section 3.3.3): at T the background of all frames is mixed with the first
  frame's, where masks of the objects are known, and the frames are denoised from there.
- With a ControlNet (section 4.2) all frames begin with the same noise, and cross-frame attention
  is in the ControlNet too. With an image model that edits by instruction (section 4.3) each frame
  begins with noise of its own.

The sampler keeps the image model's grid and step rule. Videos longer than a chunk are sampled in
chunks, each behind the first frame, which is the same in all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from vdm_jax.diffusion import latent_motion, samplers
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.models.blocks.cross_frame import FIRST, CrossFrame, attending
from vdm_jax.models.controlnet import Control, ControlNet
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.stage.conditions.hint import Hint
from vdm_jax.stage.conditions.prompt import Text
from vdm_jax.stage.conditions.source import Foreground, SourceVideo
from vdm_jax.stage.guidance import ClassifierFree, Guidance, Nested
from vdm_jax.stage.sampler import Callback, Sampler
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems.controlvideo import check_controlnet

NAME = "text2video_zero"
FRAMES = 8  # of a video in the paper
MOTION, INDEPENDENT, SHARED = "motion", "independent", "shared"
STARTS = (MOTION, INDEPENDENT, SHARED)
_DILATION = 5  # latent places, of the masks of objects
_BY_FRAME = (Hint.name, SourceVideo.name)  # entries of the condition with a row a frame

Masks = Callable[[UInt8[np.ndarray, "n f h w 3"]], Bool[np.ndarray, "n f h w"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text2VideoZero:
    """The paper's choices. The defaults are the paper's for text alone.

    Attributes:
      start: how frames begin. motion: as section 3.3.1. independent: each frame with noise of its
        own. shared: all frames with the same noise.
      motion: δ, (x, y). Content moves to the left and up for positive numbers.
      unit: of δ: picture, pixels of a picture of 512 x 512, as in the paper; or latent, places of
        the latent. Small latents turn the former into a staircase.
      t_prime, t: T' and T, timesteps of 1000. The nearest of the sampler's steps are taken.
      attention: the frames that a frame attends to, in the U-Net and in its ControlNet.
      chunk: the most frames that are denoised together, the first frame included.
      background: α of eq. 8, the first frame's weight in the background of the others.
      masks: where videos show their objects, from their pixels; they are sampled once before.
        None = masks are an input, or there are none.
      exact_noise: whether the noise between T' and T is exactly that of these timesteps. The
        published code takes that of the timesteps one below.
    """

    start: str = MOTION
    motion: tuple[float | int, float | int] = (12.0, 12.0)
    unit: str = latent_motion.PICTURE
    t_prime: int = 881
    t: int = 941
    attention: CrossFrame = CrossFrame(frames=FIRST)
    chunk: int = FRAMES
    background: float = 0.6
    masks: Masks | None = None
    exact_noise: bool = False

    def __post_init__(self):
        if self.start not in STARTS:
            raise ValueError(f"start = {self.start!r}: allowed are {', '.join(STARTS)}")
        if self.unit not in latent_motion.UNITS:
            allowed = ", ".join(latent_motion.UNITS)
            raise ValueError(f"unit = {self.unit!r}: allowed are {allowed}")
        if not np.isfinite(self.motion).all():
            raise ValueError(f"motion = {self.motion}: must be two finite numbers")
        if not 0 <= self.t_prime < self.t < 1000:
            raise ValueError(
                f"t_prime = {self.t_prime}, t = {self.t}: must be 0 <= t_prime < t < 1000"
            )
        if self.chunk < 2:
            raise ValueError(f"chunk = {self.chunk}: must be at least 2, the first frame included")
        if not 0 <= self.background <= 1:
            raise ValueError(f"background = {self.background}: must be from 0 to 1")

    def offsets(
        self, frames: int, height: int, width: int
    ) -> tuple[Int[np.ndarray, "f h"], Int[np.ndarray, "f w"]]:
        """The rows and the columns of the first frame that each frame is made of."""
        numbers = np.arange(frames, dtype=np.float64)
        x, y = self.motion
        return (
            latent_motion.sources(height, y * numbers, self.unit),
            latent_motion.sources(width, x * numbers, self.unit),
        )


def build(
    stage: Stage,
    frames: int,
    zero: Text2VideoZero,
    *,
    controlnet: ControlNet | None = None,
    scale: float = 1.0,
    foreground: bool = False,
) -> Stage:
    """The stage of videos of `frames` frames.

    Its parameters are those of `stage` and, with a ControlNet, its as "control_hint".

    Args:
      stage: of a latent image model.
      controlnet: for the same U-Net; its hint is the condition "hint".
      scale: of what the ControlNet adds.
      foreground: whether masks of the objects are an input, "foreground".

    Raises ValueError, naming what does not fit.
    """
    network = stage.network
    if type(stage) is not Stage or not isinstance(network, LatentUNet):
        raise ValueError(
            "Text2Video-Zero needs a latent image model, whose network is a LatentUNet; write a "
            "LoRA with its base first (vdm convert --to=diffusers --merged)"
        )
    if frames < 1:
        raise ValueError(f"num_frames = {frames}: must be at least 1")
    zero.attention.table(frames)  # its frames are there
    conditions, controls = [], ()
    shape = (frames, *stage.space.data_shape[1:])
    space = dataclasses.replace(stage.space, data_shape=shape)
    for condition in stage.conditions:
        if isinstance(condition, SourceVideo):
            condition = dataclasses.replace(condition, shape=shape, z_shape=space.z_shape)
        conditions.append(condition)
    if controlnet is not None:
        check_controlnet(stage, controlnet)
        control = Control(network=controlnet.clone(time=network.time), hint=Hint.name, scale=scale)
        controls = (control,)
        conditions.append(Hint(shape=shape))
    if foreground:
        if zero.start != MOTION:
            raise ValueError(
                f"start = {zero.start!r}: masks of a foreground are for frames that begin with "
                "motion"
            )
        conditions.append(Foreground(shape=(*shape[:3], 1)))
    network = attending(network.clone(controls=controls), zero.attention, controls=zero.attention)
    return dataclasses.replace(
        stage,
        network=network,
        space=space,
        view=View(shape=shape, data_fps=stage.view.fps),
        conditions=tuple(conditions),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotSampler(Sampler):
    """Samples `build`'s stage: the noise of frames becomes their start, and chunks are denoised.

    All chunks use the same noise in steps that add noise.
    """

    zero: Text2VideoZero

    def __post_init__(self):
        super().__post_init__()
        if self.zero.start == MOTION and self.video_shape[0] > 1:
            _ = self.places  # steps that are too few are refused here

    @classmethod
    def of(
        cls, sampler: Sampler, stage: Stage, zero: Text2VideoZero, image_guidance: float = 1.0
    ) -> "ZeroShotSampler":
        """An image model's sampler as one of `build`'s stage.

        image_guidance: of the video that is edited, where the stage has one.
        """
        fields = {field.name: getattr(sampler, field.name) for field in dataclasses.fields(Sampler)}
        if stage.find(SourceVideo) is not None:
            fields["guidance"] = _by_both(sampler.guidance, image_guidance)
        noise = dataclasses.replace(sampler.noise, shared=zero.start == SHARED)
        fields |= {"stage": stage, "num_frames": None, "noise": noise}
        return cls(**fields, zero=zero)

    @property
    def guidance_scale(self) -> float:
        """The scale of guidance by the text; 1 = none."""
        nested = [part for part in self.guidance if isinstance(part, Nested)]
        return dict(nested[0].scales)[Text.name] if nested else super().guidance_scale

    @functools.cached_property
    def places(self) -> tuple[int, int]:
        """The steps before which z is at T and at T'. Raises ValueError for fewer than two
        steps."""
        schedule = self.stage.process.schedule
        with jax.ensure_compile_time_eval():
            times = np.asarray(schedule.inverse(self.logsnrs()[:-1]))
        if len(times) < 2:
            raise ValueError(f"steps = {len(times)}: motion in latents needs at least 2")
        at_t, at_t_prime = (
            int(np.abs(times - timestep / 999).argmin())
            for timestep in (self.zero.t, self.zero.t_prime)
        )
        at_t = min(at_t, len(times) - 2)
        return at_t, max(at_t_prime, at_t + 1)

    def run(
        self,
        key: Key[Array, ""],
        denoiser: Denoiser,
        rule: samplers.Rule,
        z: Float[Array, "b f h w c"],
        cond: PyTree,
        callback: Callback | None = None,
        watch: Callable[[Array, Array], None] | None = None,
    ) -> Float[Array, "b f h w c"]:
        """See `Sampler`. callback and watch are called for the steps of each chunk."""
        cond, begin = dict(cond), 0
        foreground = cond.pop(Foreground.name, None)
        if self.zero.start == MOTION and z.shape[1] > 1:
            begin, _ = self.places
            z = self.moved(key, denoiser, rule, z, cond)
        if foreground is not None:
            factor = self.stage.space.multiple
            foreground = latent_motion.dilated(foreground[:, :, ::factor, ::factor], _DILATION)
            rows = self.zero.offsets(*z.shape[1:4])
            z = latent_motion.smooth_background(z, foreground, *rows, self.zero.background)
        report = None
        if callback is not None:
            report = lambda step, steps: callback(begin + step, begin + steps)  # noqa: E731
        look = None if watch is None else lambda step, x: watch(begin + step, x)

        def chunk(numbers: Int[Array, "k"]) -> Float[Array, "b k h w c"]:
            part, of_chunk = jnp.take(z, numbers, axis=1), _frames(cond, numbers)
            levels = self.logsnrs()[begin:]
            return samplers.sample(key, denoiser, rule, levels, part, of_chunk, report, look)

        return _in_chunks(chunk, z.shape[1], self.zero.chunk)

    def moved(
        self,
        key: Key[Array, ""],
        denoiser: Denoiser,
        rule: samplers.Rule,
        noise: Float[Array, "b f h w c"],
        cond: PyTree,
    ) -> Float[Array, "b f h w c"]:
        """z of all frames at T (section 3.3.1, eq. 5 to 7).

        noise: of the first frame, where its grid begins; of the others, between T' and T.
        """
        at_t, at_t_prime = self.places
        of_first = _frames(cond, jnp.zeros(1, int))

        def denoised(z: Array, begin: int, end: int) -> Array:
            if begin == end:
                return z
            levels, own_key = self.logsnrs()[begin : end + 1], jax.random.fold_in(key, end)
            return samplers.sample(own_key, denoiser, rule, levels, z, of_first)

        first = denoised(noise[:, :1], 0, at_t)
        further = denoised(first, at_t, at_t_prime)
        shifted = latent_motion.shift(further, *self.zero.offsets(*noise.shape[1:4]))
        others = latent_motion.add_noise_between(shifted[:, 1:], noise[:, 1:], self.kept_share)
        return jnp.concatenate([first, others], axis=1)

    @functools.cached_property
    def kept_share(self) -> float:
        """The ratio of α² at T to α² at T', in float64."""
        schedule = self.stage.process.schedule
        grid = schedule.grid()
        timesteps = np.arange(len(grid), dtype=np.float64)
        with jax.ensure_compile_time_eval():
            levels = np.asarray(self.logsnrs(), np.float64)[list(self.places)]
        found = np.interp(levels, grid[::-1], timesteps[::-1])
        if not self.zero.exact_noise:
            found = np.maximum(np.round(found) - 1, 0)
        high, low = 1 / (1 + np.exp(-np.interp(found, timesteps, grid)))
        return float(high / low)

    def stream(
        self,
        params: PyTree,
        key: Key[Array, ""],
        prompts: Sequence[str],
        callback: Callback | None = None,
        known: Any = None,
        preview: Any = None,
        *,
        inputs: Any = None,
        start: Any = None,
        first: int = 0,
    ) -> Iterator[UInt8[np.ndarray, "n f h w c"]]:
        """See `Sampler.stream`. With `zero.masks` a batch is sampled, its objects are found, and it
        is sampled again with a smooth background."""
        if known is not None or start is not None:
            raise ValueError("known, start: Text2Video-Zero begins with noise alone")
        if self.zero.masks is None:
            yield from super().stream(
                params, key, prompts, callback, preview=preview, inputs=inputs, first=first
            )
            return
        inputs, done = dict(inputs or {}), 0
        for videos in self._plain.stream(
            params, key, prompts, callback, preview=preview, inputs=inputs, first=first
        ):
            rows = slice(done, done + len(videos))
            masks = np.asarray(self.zero.masks(videos)).astype(np.uint8)[..., None]
            found = {name: values[rows] for name, values in inputs.items()}
            yield from super().stream(
                params,
                key,
                prompts[rows],
                callback,
                preview=preview,
                inputs={**found, Foreground.name: masks},
                first=first + done,
            )
            done += len(videos)

    @functools.cached_property
    def _plain(self) -> "ZeroShotSampler":
        """The same without masks."""
        conditions = [c for c in self.stage.conditions if not isinstance(c, Foreground)]
        stage = dataclasses.replace(self.stage, conditions=tuple(conditions))
        zero = dataclasses.replace(self.zero, masks=None)
        return dataclasses.replace(self, stage=stage, zero=zero)


def _frames(cond: PyTree, numbers: Int[Array, "k"]) -> PyTree:
    """The condition of some frames."""
    return {
        name: jnp.take(entry, numbers, axis=1) if name in _BY_FRAME else entry
        for name, entry in cond.items()
    }


def _in_chunks(
    chunk: Callable[[Int[Array, "k"]], Float[Array, "b k h w c"]], frames: int, size: int
) -> Float[Array, "b f h w c"]:
    """All frames, from chunks of `size` numbers of frames of which the first is 0. The last number
    is repeated where the last chunk has fewer."""
    if frames <= size:
        return chunk(jnp.arange(frames))
    count = -(-(frames - 1) // (size - 1))
    others = np.minimum(np.arange(count * (size - 1)) + 1, frames - 1).reshape(count, size - 1)
    numbers = np.concatenate([np.zeros((count, 1), int), others], axis=1)
    z = jax.lax.map(chunk, jnp.asarray(numbers))
    others = rearrange(z[:, :, 1:], "k b f h w c -> b (k f) h w c")[:, : frames - 1]
    return jnp.concatenate([z[0, :, :1], others], axis=1)


def _by_both(guidance: tuple[Guidance, ...], image_guidance: float) -> tuple[Guidance, ...]:
    """Guidance by the video first and then by the text (InstructPix2Pix, eq. 3)."""
    found: list[Guidance] = []
    for part in guidance:
        if isinstance(part, ClassifierFree):
            if part.oscillate_after:
                raise ValueError("oscillate_after: an edit's guidance is the same at all steps")
            scales = ((SourceVideo.name, image_guidance), (Text.name, part.scale))
            part = Nested(scales=scales)
        found.append(part)
    return tuple(found)
