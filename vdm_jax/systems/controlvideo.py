"""ControlVideo (Zhang et al. 2023): an image model and its ControlNet make a video, untrained.

- Full cross-frame attention (section 3.1): in the U-Net the pixels of each frame attend to those of
  all frames. The ControlNet's attention stays within frames.
- One frame's noise for all frames: `FirstNoise.shared`.
- The interleaved-frame smoother (section 3.2): at two steps in succession the estimate of every
  second frame, then of the others, is replaced by the interpolation of its neighbours.
- The hierarchical sampler (section 3.3): key frames first, with full attention among them; then the
  clips between two key frames, whose frames attend to both. N frames take the memory of √N.

The published code differs: its clips attend to the first key frame and to the clip's last inner
frame (`reference_bug`), and its group normalisations take their statistics over all frames
(`norm_over_frames`).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, PyTree

from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.models import rife
from vdm_jax.models.blocks.cross_frame import ALL, CrossFrame, attending
from vdm_jax.models.controlnet import Control, ControlNet
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.stage.conditions.hint import Hint
from vdm_jax.stage.guidance import Guidance, LogSNRs
from vdm_jax.stage.protocols import Cond, Frozen
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

HINT = Hint.name
CONTROLNET = f"control_{HINT}"  # its parameters among the U-Net's
INTERPOLATOR = "interpolator"  # its parameters in `Frozen`
FRAMES = 15  # of a video in the paper
_SMOOTHED = 0.4  # share of the steps that is left when the smoother first acts
LEAST_WINDOW = 3  # frames of a clip of the hierarchical sampler, both key frames included


def build(
    stage: Stage,
    controlnet: ControlNet,
    frames: int,
    *,
    attention: str = ALL,
    hierarchical: bool = False,
    scale: float = 1.0,
    norm_over_frames: bool = False,
    reference_bug: bool = False,
) -> Stage:
    """The stage of videos of `frames` frames that follow a control video.

    Its parameters are those of `stage` and, as "control_hint", the ControlNet's.

    Args:
      stage: of a latent image model.
      controlnet: for the same U-Net.
      attention: what a frame attends to, of `cross_frame.KINDS`. The paper compares "all" with
        "first" and "own".
      hierarchical: whether to make key frames and the clips between them, see `HierarchicalStage`.
      scale: of what the ControlNet adds.
      norm_over_frames, reference_bug: as the published code does, see above.

    Raises ValueError, naming what does not fit.
    """
    network = stage.network
    if type(stage) is not Stage or not isinstance(network, LatentUNet):
        raise ValueError(
            "ControlVideo needs a latent image model, whose network is a LatentUNet; write a LoRA "
            "with its base first (vdm convert --to=diffusers --merged)"
        )
    check_controlnet(stage, controlnet)
    least = 2 if attention == ALL else 1
    if frames < least:
        raise ValueError(f"frames = {frames}: must be at least {least}")
    if hierarchical and attention != ALL:
        raise ValueError(
            f"attention = {attention!r}: the hierarchical sampler has full attention among key "
            "frames, 'all'"
        )
    settings = dataclasses.replace(network.settings, norm_over_frames=norm_over_frames)
    controlnet = controlnet.clone(
        time=network.time,
        settings=dataclasses.replace(controlnet.settings, norm_over_frames=norm_over_frames),
    )
    control = Control(network=controlnet, hint=HINT, scale=scale)
    network = attending(
        network.clone(settings=settings, controls=(control,)), CrossFrame(frames=attention)
    )
    shape = (frames, *stage.space.data_shape[1:])
    fields = {
        **{field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)},
        "network": network,
        "space": dataclasses.replace(stage.space, data_shape=shape),
        "view": View(shape=shape, data_fps=stage.view.fps),
        "conditions": (*stage.conditions, Hint(shape=shape)),
    }
    if not hierarchical:
        return Stage(**fields)
    return HierarchicalStage(**fields, window=math.isqrt(frames), reference_bug=reference_bug)


def add_params(params: PyTree, controlnet: PyTree) -> dict[str, Any]:
    """The parameters of `build`'s stage."""
    return {**params, CONTROLNET: controlnet}


def check_controlnet(stage: Stage, controlnet: ControlNet) -> None:
    """Raises ValueError where a ControlNet does not fit an image model."""
    network = stage.network
    for name in ("unet", "in_channels", "settings"):
        ours, theirs = getattr(network, name), getattr(controlnet, name)
        if ours != theirs:
            raise ValueError(f"controlnet: its {name} is {theirs}, the model's {ours}")
    factor = 2 ** (len(controlnet.hint_widths) - 1)
    if factor != stage.space.multiple:
        raise ValueError(
            f"controlnet: conditioning_embedding_out_channels = {controlnet.hint_widths} shrinks "
            f"the control video {factor} times, the model's autoencoder {stage.space.multiple} "
            "times"
        )
    if controlnet.hint_channels != 3:
        raise ValueError(f"controlnet: conditioning_channels = {controlnet.hint_channels}: not 3")


# --- the hierarchical sampler, section 3.3 -------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class HierarchicalStage(Stage):
    """A stage that evaluates its network on key frames, then on one clip between them at a time.

    A clip is two key frames and the frames between; only these are kept of its output. All
    evaluations of a step take z from before the step.

    Attributes:
      window: frames of a clip, key frames included; ⌊√N⌋ in the paper.
      reference_bug: whether frames of a clip attend to the first key frame and the last inner frame
        in the place of the second key frame, as in the published code.
    """

    window: int
    reference_bug: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.window < LEAST_WINDOW:
            raise ValueError(
                f"window = {self.window}: must be at least {LEAST_WINDOW}, which takes "
                f"{LEAST_WINDOW**2} frames"
            )

    def raw_output(
        self,
        params: PyTree,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        **options: Any,
    ) -> Float[Array, "b f h w c"]:
        """See `Stage`."""
        keys = key_frames(z.shape[1], self.window)
        attended = CrossFrame(frames=(0, -1) if self.reference_bug else (0, 1))
        between = dataclasses.replace(self, network=attending(self.network, attended))

        def output(stage: Stage, places: Int[Array, "k"]) -> Float[Array, "b k h w c"]:
            part = {**cond, HINT: jnp.take(cond[HINT], places, axis=1)}
            z_part = jnp.take(z, places, axis=1)
            return Stage.raw_output(stage, params, z_part, logsnr, part, **options)

        result = jnp.zeros(z.shape, jnp.float32)
        result = result.at[:, keys].set(output(self, jnp.asarray(keys)))
        for places in clips(keys):  # of equal lengths in one loop
            inner = jax.lax.map(lambda row: output(between, row)[:, 2:], jnp.asarray(places))
            inner = rearrange(inner, "n b m ... -> b (n m) ...")
            result = result.at[:, places[:, 2:].reshape(-1)].set(inner)
        return result


def key_frames(frames: int, window: int) -> Int[np.ndarray, "k"]:
    """The numbers of the key frames: every (window − 1)th, and the last."""
    return np.unique([*range(0, frames, window - 1), frames - 1])


def clips(keys: Int[np.ndarray, "k"]) -> list[Int[np.ndarray, "n m"]]:
    """The clips between key frames, those of one length as the rows of an array: the numbers of
    both key frames, then of the frames between. Neighbouring key frames have no clip."""
    rows: dict[int, list[list[int]]] = {}
    for first, second in zip(keys[:-1].tolist(), keys[1:].tolist(), strict=True):
        if second - first > 1:
            row = [first, second, *range(first + 1, second)]
            rows.setdefault(len(row), []).append(row)
    return [np.array(equal) for equal in rows.values()]


# --- the interleaved-frame smoother, section 3.2 --------------------------------------------------


class Interleaved(NamedTuple):
    """The frames that a step of the smoother replaces, and the neighbours that it interpolates."""

    targets: Int[Array | np.ndarray, "*n"]
    before: Int[Array | np.ndarray, "*n"]
    after: Int[Array | np.ndarray, "*n"]


def interleaved(frames: int, parity: int) -> Interleaved:
    """The frames of one parity.

    A first or last frame of parity 0 is replaced by the interpolation of itself and its neighbour,
    as in the published code; a last frame of parity 1 stays.
    """
    last = frames - 1
    targets = np.array([j for j in range(parity, frames, 2) if not (parity and j == last)], int)
    return Interleaved(targets, np.maximum(targets - 1, 0), np.minimum(targets + 1, last))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoother:
    """The interleaved-frame smoother, as guidance that is outermost in a DDIM sampler.

    x̂ is decoded, every second frame replaced, and the video encoded again, by the mode of the
    posterior (the published code draws from it). ε̂ stays as predicted, so that DDIM's step is
    √ᾱ_s x̂' + √(1 − ᾱ_s) ε̂.

    Attributes:
      remaining: the steps at which it acts, by how many are left, that step included. The first
        replaces frames 1, 3, …, the next frames 0, 2, …, in turn. None = with 40% of the steps
        left, and one later: 20 and 19 of the paper's 50.
      interpolator: makes the frame between two; its parameters are `frozen["interpolator"]`.
    """

    remaining: tuple[int, ...] | None = None
    interpolator: rife.MotionNetwork = rife.MotionNetwork()

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        if stage.video_shape[0] < 3:
            raise ValueError(
                f"smoother: a video of {stage.video_shape[0]} frames has none between two others"
            )

    def steps_left(self, steps: int) -> tuple[int, ...]:
        """`remaining` of a sampler of so many steps. Raises ValueError where it never comes
        there."""
        left = self.remaining
        if left is None:
            first = max(2, round(_SMOOTHED * steps))
            left = (first, first - 1)
        if bad := [number for number in left if not 1 <= number <= steps]:
            raise ValueError(
                f"smoother: acts with {', '.join(map(str, bad))} steps left: must be from 1 to "
                f"{steps}, the sampler's steps"
            )
        return left

    def bind(self, frozen: Frozen) -> Guidance:
        """See `guidance.UsesFrozen`."""
        if INTERPOLATOR not in frozen:
            raise ValueError(f"frozen: lacks {INTERPOLATOR!r}, the parameters of the smoother")
        return _BoundSmoother(smoother=self, frozen=frozen)

    def actions(self, steps: int) -> Int[np.ndarray, "{steps}"]:
        """For each step 0, nothing; 1, replace frames of parity 1; 2, of parity 0."""
        found = np.zeros(steps, int)
        for number, left in enumerate(self.steps_left(steps)):
            found[steps - left] = 1 + number % 2
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BoundSmoother:
    """A smoother with the parameters that it uses."""

    smoother: Smoother
    frozen: Frozen

    def check(self, stage: Stage) -> None:
        self.smoother.check(stage)

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        steps = logsnrs.shape[0] - 1
        actions = jnp.asarray(self.smoother.actions(steps))
        frames = stage.z_shape[0]
        # Both parities have one program: the shorter one's last frame is computed again.
        both = [interleaved(frames, parity) for parity in (1, 0)]
        most = max(len(places.targets) for places in both)
        table = Interleaved(
            *(
                jnp.stack([jnp.pad(part, (0, most - len(part)), mode="edge") for part in parts])
                for parts in zip(*both, strict=True)
            )
        )

        def denoise(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
            prediction = denoiser(z, logsnr, cond)
            step = jnp.argmin(jnp.abs(logsnrs[:-1] - logsnr[0]))
            action = actions[step]
            places = Interleaved(*(rows[jnp.maximum(action - 1, 0)] for rows in table))
            x = jax.lax.cond(
                action > 0,
                lambda x: self.smoothed(x, stage, places),
                lambda x: x,
                prediction.x,
            )
            return dataclasses.replace(prediction, x=x)

        return denoise

    def smoothed(
        self, x: Float[Array, "b f h w c"], stage: Stage, places: Interleaved
    ) -> Float[Array, "b f h w c"]:
        """z's clean data with some frames interpolated."""
        video = jnp.clip((stage.space.decode(x, self.frozen) + 1) / 2, 0, 1)
        network, params = self.smoother.interpolator, self.frozen[INTERPOLATOR]
        return stage.space.encode(2 * interpolate(network, params, video, places) - 1, self.frozen)


def interpolate(
    network: rife.MotionNetwork,
    params: PyTree,
    video: Float[Array, "b f h w 3"],
    places: Interleaved,
) -> Float[Array, "b f h w 3"]:
    """A video in [0, 1] some of whose frames are made of their neighbours, one after the other in
    the memory of one."""

    def one(pair: tuple[Array, Array]) -> Array:
        first, second = (jnp.take(video, place, axis=1) for place in pair)
        return rife.between(network, params, first, second)

    frames = jax.lax.map(one, (jnp.asarray(places.before), jnp.asarray(places.after)))
    return video.at[:, places.targets].set(jnp.moveaxis(frames, 0, 1))
