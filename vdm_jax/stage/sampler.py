"""From a stage, its parameters and prompts to videos: one compiled function, streamed in batches.

Sample i is drawn with the key fold_in(key, i) and independently of its batch, so it depends neither
on the batch that it was computed in nor on how many samples were asked for.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from vdm_jax.diffusion import conditional, grids, samplers
from vdm_jax.diffusion.measurements import Mask, Measurement
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.reuse import Reuse
from vdm_jax.parallel import heap, sharding
from vdm_jax.stage import sampler_fields, sampler_program, watching
from vdm_jax.stage.conditions.video import MaskedVideo
from vdm_jax.stage.guidance import (
    ClassifierFree,
    Guidance,
    Nested,
    StaticThreshold,
    UsesFrozen,
    Windows,
)
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.stage import NO_FROZEN, Stage
from vdm_jax.stage.watching import Callback, Preview

# Videos, or z of samples.
Start = UInt8[np.ndarray, "n f h w c"] | Float[np.ndarray, "n f2 h2 w2 c2"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of n videos: y = A x.

    measurement: A, its arrays (a `Mask`'s) with a row a video; y: float32, a row a video, in
    [-1, 1] where it holds pixels. A stage of latents takes masks of whole pixels: it encodes y, and
    takes as known what stands for known pixels alone.
    """

    measurement: Measurement
    y: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a stage is sampled. Each part is a value that owns its fields and checks.

    Attributes:
      stage: what is sampled.
      rule: the step rule, of `diffusion.samplers.RULES`.
      grid: the log-SNRs that are stepped through.
      guidance: applied to the stage's Denoiser in this order, the first innermost.
      threshold: of x̂ at each step, outside of all guidance; None = none.
      method: how what is known of a video is used, of `diffusion.conditional.METHODS`.
      settings: floats by the names that the stage's conditions list, such as the augmentation of a
        low-resolution video (α²/σ² of the noise on it) or fps.
      negative: a prompt that guidance leads away from, in the place of the null condition.
      noise: that sampling begins with.
      batch_size: samples computed at once; the last batch is padded and cut.
      num_frames, height, width: of a sample, in frames and pixels; None = as trained.
      remat: of the network, where a method differentiates it: "none", or "dots" or "full" to keep
        less (`models.layers.remat`).
      frozen: parameters that the stage uses and that are not trained, by the part's name.
      plan: how the stage lies on a mesh; None = on one device. Every process of a mesh makes the
        same calls and gets all samples.
    """

    stage: Stage
    rule: samplers.Rule = samplers.DDIM()
    grid: grids.Spaced | grids.Explicit = grids.Spaced()
    guidance: tuple[Guidance | UsesFrozen, ...] = ()
    threshold: Guidance | None = StaticThreshold()
    method: conditional.Method = conditional.ByReconstruction()
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    negative: str | None = None
    noise: samplers.FirstNoise = samplers.FirstNoise()
    batch_size: int = 16
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    remat: str = "none"
    frozen: Frozen = dataclasses.field(default_factory=dict)
    plan: sharding.Plan | None = None

    def __post_init__(self):
        for name in ("batch_size", "num_frames", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        self._check_size()
        for part in (*self.guidance, *([] if self.threshold is None else [self.threshold])):
            part.check(self.stage)
        has = [name for condition in self.stage.conditions for name in condition.settings]
        for name, value in self.settings.items():
            if name not in has:
                raise ValueError(
                    f"{name} = {value}: this model has no such setting; it has: "
                    f"{', '.join(has) or 'none'}"
                )
            if value < 0:
                raise ValueError(f"{name} = {value}: must not be negative")
        for condition in self.stage.conditions:
            condition.check(self.settings)
        self._check_length()
        if isinstance(self.rule, Reuse) and not hasattr(self.stage.network, "embed_noise"):
            raise ValueError(
                f"reuse = {self.rule.threshold}: is for networks whose blocks take one embedding "
                "of the noise level, such as video transformers"
            )
        if isinstance(self.method, conditional.ByTraining) and self.stage.find(MaskedVideo) is None:
            raise ValueError(
                "method = 'trained': this model was not trained with masked videos (stage.masks)"
            )
        unguided = self.stage.takes_guidance or (
            self.guidance_scale == 1 and not any(isinstance(p, Nested) for p in self.guidance)
        )
        if self.negative is not None and unguided:
            raise ValueError(
                f"negative = {self.negative!r}: acts through classifier-free guidance, and this "
                "sampler has none (guidance = 1, or a model that takes the guidance scale as input)"
            )
        jax.eval_shape(self.logsnrs)  # steps that the schedule cannot have are refused here

    def _check_size(self) -> None:
        """Raises ValueError where a sample of this height and width cannot be."""
        multiple = self.stage.space.multiple * self.stage.network.multiple
        for name, trained in zip(("height", "width"), self.stage.video_shape[1:3], strict=True):
            value = getattr(self, name)
            if value in (None, trained):
                continue
            if value % multiple:
                raise ValueError(f"{name} = {value}: must be a multiple of {multiple}")
            if videos := [c.name for c in self.stage.conditions if c.like_z]:
                raise ValueError(
                    f"{name} = {value}: this model's condition {videos[0]} is a video of the "
                    "trained size; omit it"
                )

    def _check_length(self) -> None:
        """Warns of frames beyond those of training, which each window has where there are any."""
        trained = self.stage.view.crop_shape[0]
        wanted = self.video_shape[0]
        for part in self.guidance:
            wanted = min(wanted, part.size) if isinstance(part, Windows) else wanted
        if wanted > max(trained, self.stage.video_shape[0]):
            warnings.warn(
                f"num_frames = {wanted}: this model was trained with {trained} frames; more are an "
                "extrapolation (window = F samples in windows of F frames)",
                stacklevel=4,
            )

    @classmethod
    def from_config(
        cls, stage: Stage, sample: Mapping[str, Any] | ml_collections.ConfigDict, **changes: Any
    ) -> "Sampler":
        """A sampler from the section `sample` of a configuration, see `sampler_fields.read`."""
        return cls(stage=stage, **sampler_fields.read(sample, changes))

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return self.grid.steps

    @property
    def rule_name(self) -> str:
        """The step rule's name in `diffusion.samplers.RULES`."""
        rule = self.rule
        while isinstance(rule, samplers.Corrector | Reuse):
            rule = rule.rule
        names = {kind: name for name, kind in samplers.RULES.items()}
        return next(names[kind] for kind in type(rule).__mro__ if kind in names)

    @property
    def guidance_scale(self) -> float:
        """The scale of classifier-free guidance; 1 = none."""
        scales = [part.scale for part in self.guidance if isinstance(part, ClassifierFree)]
        return scales[0] if scales else 1.0

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of one sample, in pixels."""
        frames, height, width, channels = self.stage.video_shape
        sizes = (self.num_frames or frames, self.height or height, self.width or width)
        return (*sizes, channels)

    @property
    def z_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of z of one sample."""
        if self.video_shape == self.stage.video_shape:
            return self.stage.z_shape
        return self.stage.space.z_shape_for(self.video_shape)

    def logsnrs(self) -> Float[Array, "steps_plus_1"]:
        """The log-SNRs that are stepped through."""
        return self.grid.logsnrs(self.stage.process.schedule)

    def denoiser_and_rule(
        self, params: PyTree, known: Known | None = None, frozen: Frozen = NO_FROZEN
    ) -> tuple[Denoiser, samplers.Rule]:
        """The guided Denoiser, led towards what is known, and the rule that steps with it.

        frozen: of the stage, where its network uses any.
        """
        stage = self.stage
        if self.plan is not None:
            # Samples are mapped over: inside the map is one clip, not a batch of them.
            stage = stage.with_layout(self.plan.layout(batch_axes=()))
            params = self.plan.gather(params)
        if self.remat != "none":
            stage = dataclasses.replace(stage, network=stage.network.clone(remat=self.remat))
        denoiser, rule, logsnrs = stage.denoiser(params, frozen), self.rule, self.logsnrs()
        if isinstance(rule, Reuse):
            bound = {"params": stage.network_params(params, frozen)}
            embed = stage.network.apply(bound, logsnrs[:-1], method="embed_noise")
            rule = rule.at(logsnrs[:-1], embed)
        for part in self.guidance:
            if isinstance(part, UsesFrozen):
                part = part.bind(frozen)
            denoiser = part(denoiser, stage, logsnrs)
        if known is not None:
            denoiser, rule = self.method(denoiser, rule, known.measurement, known.y)
        if self.threshold is not None:
            denoiser = self.threshold(denoiser, stage, logsnrs)
        return denoiser, rule

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
        """z at the end of the grid, from z at its beginning: what a subclass does otherwise.

        callback, watch: see `diffusion.samplers.sample`.
        """
        return samplers.sample(key, denoiser, rule, self.logsnrs(), z, cond, callback, watch)

    def stream(
        self,
        params: PyTree,
        key: Key[Array, ""],
        prompts: Sequence[str],
        callback: Callback | None = None,
        known: Known | None = None,
        preview: Preview | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        start: Start | None = None,
        first: int = 0,
    ) -> Iterator[UInt8[np.ndarray, "n f h w c"]]:
        """Yields videos of the prompts, in order, a batch at a time.

        Args:
          params: of the stage.
          key: sample i is drawn with fold_in(key, i).
          prompts: one a sample; a class's number, or "", for models without text.
          callback, preview: called by the device's threads while sampling goes on; without both,
            those of `watching.watched`. With either, the compiled function cannot be kept in the
            persistent compilation cache; the sampler keeps it for calls with the same ones.
          known: what is known of the videos, a row a prompt.
          inputs: of the stage's other conditions by name, a row a prompt, such as low_res: the
            videos that a super-resolution stage refines.
          start: one a prompt: uint8 videos that are noised to where the grid begins, or float32 z
            with which sampling begins. Without them sampling begins with pure noise.
          first: number of the first sample.

        Raises FloatingPointError when a sample is not finite, and ValueError for inputs that do not
        fit, and for a preview where several processes sample.
        """
        if not prompts:
            raise ValueError("no prompts")
        self._check_rows(len(prompts), {"known": known, "start": start, **(inputs or {})})
        if callback is None and preview is None and (watcher := watching.current()):
            callback, preview = watcher.callback, watcher.preview
        if preview is not None and jax.process_count() > 1:
            raise ValueError("preview: no process of several has a whole batch")
        if preview is not None and isinstance(self.rule, Reuse):
            raise ValueError("preview: goes with reuse = 0, where every step has an estimate")
        size = self._size(min(self.batch_size, len(prompts)))
        compiled = self._compiled_for(callback, preview)
        for at in range(0, len(prompts), size):
            # The last prompt is repeated, and so is what was given with it.
            places = np.minimum(np.arange(at, at + size), len(prompts) - 1)
            count = min(size, len(prompts) - at)
            indices = np.arange(first + at, first + at + size, dtype=np.uint32)
            cond = self.stage.encode(
                [prompts[i] for i in places],
                negatives=None if self.negative is None else [self.negative] * size,
                inputs={name: rows[places] for name, rows in (inputs or {}).items()},
            )
            begin, part = jax.tree.map(lambda leaf, places=places: leaf[places], (start, known))
            batch = (indices, cond, begin, part)
            if self.plan is not None:
                batch = jax.device_put(batch, self.plan.batch)
            video, finite = compiled(params, self.frozen, key, *batch)
            _ = self._trimmed
            # Slices and comparisons of JAX's arrays would each compile a program.
            if not np.asarray(finite)[:count].all():
                raise FloatingPointError(
                    f"samples {at}..{at + count - 1} are not finite: "
                    "the parameters or the guidance are beyond use"
                )
            yield np.asarray(video)[:count]

    def _check_rows(self, count: int, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            rows = {len(leaf) for leaf in jax.tree.leaves(value)}
            if rows - {count}:
                raise ValueError(f"{name} has {sorted(rows)} rows: must be {count}, one a prompt")

    def abstract_inputs(self, frames_known: bool = False) -> tuple[Any, ...]:
        """Shapes and places, on a mesh, of what `compiled` takes after the parameters.

        These are the frozen parameters, the key, the numbers of a batch's samples, their
        condition, where they start (None), and what is known of them: nothing, or frames.
        """
        if (plan := self.plan) is None:
            raise ValueError("plan = None: shapes have places on a mesh alone")
        size = self._size(self.batch_size)
        key = jax.eval_shape(lambda: jax.random.key(0))
        indices, known = jax.ShapeDtypeStruct((size,), jnp.uint32), None
        if frames_known:
            shape = (size, *self.video_shape)
            mask = Mask(known=jax.ShapeDtypeStruct((*shape[:2], 1, 1, 1), bool))
            known = Known(measurement=mask, y=jax.ShapeDtypeStruct(shape, jnp.float32))
        batch = (indices, self.stage.abstract_inputs(size), None, known)
        return (
            self.frozen,
            jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=plan.everywhere),
            *jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=plan.batch),
                batch,
            ),
        )

    def _size(self, wanted: int) -> int:
        """The batch that holds `wanted` samples and can be cut as the mesh asks."""
        shards = 1 if self.plan is None else self.plan.batch_shards
        return -(-wanted // shards) * shards

    @functools.cached_property
    def compiled(self) -> Callable:
        """(params, frozen, key, numbers of samples, condition, start or None, what is known of them
        or None) -> (samples, whether each is finite)."""
        return sampler_program.compile_sampler(self)

    @functools.cached_property
    def reporting(self) -> dict[tuple, Callable]:
        """Of the last callback and preview that were called, a function as `compiled`."""
        return {}

    def _compiled_for(self, callback: Callback | None, preview: Preview | None) -> Callable:
        calls = (callback, preview)
        if calls == (None, None):
            return self.compiled
        if calls not in self.reporting:
            self.reporting.clear()
            self.reporting[calls] = sampler_program.compile_sampler(self, callback, preview)
        return self.reporting[calls]

    @functools.cached_property
    def _trimmed(self) -> bool:
        """Once, at the first use: hands back the memory that compiling left."""
        heap.trim()
        return True
