"""From a stage, its parameters and prompts to videos: one compiled function, streamed in batches.

Sample i is drawn with the key fold_in(key, i), alone in its noise, so it does not depend on the
batch that it was computed in, nor on how many samples were asked for.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from vdm_jax.diffusion import conditional, grids, guidance, samplers, windows
from vdm_jax.diffusion.measurements import Mask, Measurement
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.parallel import heap, sharding
from vdm_jax.stage.stage import from_uint8, to_uint8

# callback(step, steps), called while a batch is being sampled.
Callback = Callable[[int, int], None]
# preview(step, steps, videos), called now and then with what the videos of a batch look like so
# far: x̂, uint8 n f h w c, a padded batch whole.
Preview = Callable[[int, int, np.ndarray], None]
PREVIEWS = 8  # of a batch

THRESHOLDS = ("none", "static", "dynamic")
# What each step rule takes from a configuration, which lists the fields of all of them.
_CHURN = ("churn", "churn_min", "churn_max", "churn_noise", "steps")
_RULE_FIELDS = {"ddim": ("eta",), "ancestral": ("gamma",), "euler": _CHURN, "heun": _CHURN}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of n videos: y = A x.

    measurement: A, its arrays (a `Mask`'s) with a row a video; y: float32, a row a video, in
    [-1, 1] where it holds pixels.
    """

    measurement: Measurement
    y: Any


def guided_denoiser(
    stage, params: PyTree, scale: float | Float[Array, "*b"], threshold: str
) -> Denoiser:
    """A stage's Denoiser under guidance and thresholding.

    scale, threshold: as in `Sampler`; the scale may be one for each example.
    """
    return _thresholded(_guided(stage, stage.denoiser(params), scale), threshold)


def _guided(stage, denoiser: Denoiser, scale: float | Float[Array, "*b"]) -> Denoiser:
    if stage.takes_guidance:
        return guidance.distilled(denoiser, scale)
    return guidance.classifier_free(denoiser, scale, stage.null)


def _thresholded(denoiser: Denoiser, threshold: str) -> Denoiser:
    if threshold == "static":
        return guidance.static_clip(denoiser)
    if threshold == "dynamic":
        return guidance.dynamic_threshold(denoiser)
    return denoiser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a stage is sampled.

    Attributes:
      stage: what is sampled.
      sampler: name of the step rule, see `diffusion.samplers.make_rule`.
      steps: number of denoising steps; of an explicit `grid`, what that has.
      grid: the log-SNRs that are stepped through: a spacing of `diffusion.grids.logsnr_grid`
        (time, logsnr, karras, trailing, leading), or increasing log-SNRs, as numbers or as text.
      rho: of the grid "karras".
      sigma_min, sigma_max: of the grids "karras" and "logsnr", their range in noise over signal.
      guidance: classifier-free guidance g: ε_null + g (ε_cond − ε_null); 1 = no guidance. A model
        that was distilled from a guided one is told g instead.
      oscillate_after: steps of constant guidance, after which 1 and g take turns (Imagen Video);
        0 = always g.
      augmentation: α²/σ² of the noise put on the video that a stage of a cascade refines, 0 = none.
      fps: the frame rate that a stage of a cascade is told; 0 = as trained.
      tile, tile_overlap: height and width of the tiles in which each step is computed, and their
        overlap; 0 = whole frames. Exact for fully convolutional networks, with half of the overlap
        at least the network's reach.
      window, window_overlap: the same for frames, overlapping predictions averaged by a ramp.
      eta: of "ddim", 0 deterministic to 1 ancestral.
      gamma: of "ancestral", 0 lower to 1 upper bound of the variance.
      churn, churn_min, churn_max, churn_noise: of "euler" and "heun": the noise added over all
        steps, where (in noise over signal), and its factor; churn 0 is deterministic.
      corrector: δ of VDM's Langevin step after each step, 0.1 in the paper; 0 = none.
      threshold: of x̂ at each step: none, static (clipped to [-1, 1]) or dynamic (by percentile).
      batch_size: samples computed at once; the last batch is padded and cut.
      num_frames: frames of a sample, None = as trained.
      method, weight: how what is known of a video is used, see `diffusion.conditional.condition`;
        weight None = the method's own. Method "trained": a network that was trained for it is told.
      remat: of the network, where a method differentiates it: "none", or "dots" or "full" to keep
        less (`models.layers.remat`).
      plan: how the stage lies on a mesh, None = one device. Every process of a mesh runs the same
        calls and is given all samples.
    """

    stage: Any
    sampler: str = "ddim"
    steps: int = 64
    guidance: float = 1.0
    oscillate_after: int = 0
    augmentation: float = 0.0
    fps: float = 0.0
    tile: int = 0
    tile_overlap: int = 0
    window: int = 0
    window_overlap: int = 0
    grid: str | Sequence[float | int] = "time"
    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    eta: float = 0.0
    gamma: float = 0.3
    churn: float = 0.0
    churn_min: float = 0.05
    churn_max: float = 50.0
    churn_noise: float = 1.003
    corrector: float = 0.0
    threshold: str = "static"
    batch_size: int = 16
    num_frames: int | None = None
    method: str = "reconstruction"
    weight: float | None = None
    remat: str = "none"
    plan: sharding.Plan | None = None

    def __post_init__(self):
        if self.threshold not in THRESHOLDS:
            raise ValueError(
                f"threshold = {self.threshold!r}: must be one of {', '.join(THRESHOLDS)}"
            )
        for name in ("steps", "batch_size", "num_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        for name in ("oscillate_after", "augmentation", "fps", "tile", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must not be negative")
        grid = grids.parse_grid(self.grid)
        object.__setattr__(self, "grid", grid)
        if not isinstance(grid, str):
            object.__setattr__(self, "steps", len(grid) - 1)
        if self.tile:
            self._check_tile()
        if self.method == "trained":
            self._check_told()
        else:
            conditional.check(self.method, self.weight)
        # An unknown sampler, a value out of its range and steps that the grid cannot have are told
        # here.
        _ = self.rule
        jax.eval_shape(self.logsnrs)

    def _check_told(self) -> None:
        if self.weight is not None:
            raise ValueError(f"weight={self.weight} has no effect with method='trained'")
        if "masked_video" not in self.stage.network.reads:
            raise ValueError(
                "method = 'trained': this model was not trained with videos of which a part is "
                "known (stage.masks)"
            )

    def _check_tile(self) -> None:
        reach = self.stage.network.reach
        if reach is None:
            raise ValueError(
                f"tile = {self.tile}: tiles are for fully convolutional networks "
                "(model.spatial_attention = 'none', model.norm_groups = 0)"
            )
        if self.tile_overlap < 2 * reach:
            raise ValueError(
                f"tile_overlap = {self.tile_overlap}: must be at least {2 * reach}, twice the "
                "network's reach, for tiles to be what the whole would be"
            )

    @classmethod
    def from_config(cls, stage, sample, **changes) -> "Sampler":
        """A sampler from the `sample` section of a configuration; `changes` that are None count
        as not given."""
        fields = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in sample.items() if name in fields}
        given.update({name: value for name, value in changes.items() if value is not None})
        return cls(stage=stage, **given)

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of one sample."""
        frames, *rest = self.stage.video_shape
        return (self.num_frames or frames, *rest)

    @functools.cached_property
    def rule(self) -> Any:
        """The step rule."""
        names = _RULE_FIELDS.get(self.sampler, ())
        rule = samplers.make_rule(self.sampler, **{name: getattr(self, name) for name in names})
        if self.corrector == 0.0:
            return rule
        return samplers.Corrector(rule=rule, delta=self.corrector)

    def logsnrs(self) -> Float[Array, "steps_plus_1"]:
        """The log-SNRs that are stepped through."""
        if not isinstance(self.grid, str):
            return jnp.asarray(self.grid, jnp.float32)
        return grids.logsnr_grid(
            self.stage.process.schedule,
            self.steps,
            spacing=self.grid,
            rho=self.rho,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )

    def denoiser_and_rule(
        self, params: PyTree, known: "Known | None" = None
    ) -> tuple[Denoiser, samplers.Rule]:
        """The stage's Denoiser, guided towards what is known, and the rule that steps with it."""
        stage = self.stage
        if self.plan is not None:
            # Samples are mapped over: inside the map there is one clip, not a batch of them.
            stage = stage.with_layout(self.plan.layout(batch_axes=()))
            params = self.plan.gather(params)
        if self.remat != "none":
            stage = dataclasses.replace(stage, network=stage.network.clone(remat=self.remat))
        denoiser, rule = self._guide(stage, self._cut(stage, stage.denoiser(params))), self.rule
        if known is not None and self.method == "trained":
            denoiser = conditional.told(denoiser, known.measurement, known.y)
        elif known is not None:
            denoiser, rule = conditional.condition(
                self.method, denoiser, rule, known.measurement, known.y, weight=self.weight
            )
        return _thresholded(denoiser, self.threshold), rule

    def _guide(self, stage, denoiser: Denoiser) -> Denoiser:
        if not self.oscillate_after:
            return _guided(stage, denoiser, self.guidance)
        scales = guidance.oscillation(self.steps, self.guidance, constant=self.oscillate_after)
        return guidance.scheduled(
            lambda scale: _guided(stage, denoiser, scale), scales, self.logsnrs()
        )

    def _cut(self, stage, denoiser: Denoiser) -> Denoiser:
        """The Denoiser in tiles and windows, where they are asked for."""
        if self.tile:
            for axis in (2, 3):
                denoiser = windows.windowed(
                    denoiser,
                    axis=axis,
                    size=self.tile,
                    overlap=self.tile_overlap,
                    multiple=stage.network.multiple,
                )
        if self.window:
            denoiser = windows.windowed(
                denoiser, axis=1, size=self.window, overlap=self.window_overlap, weights="ramp"
            )
        return denoiser

    def stream(
        self,
        params: PyTree,
        key: Key[Array, ""],
        prompts: Sequence[str],
        callback: Callback | None = None,
        known: "Known | None" = None,
        preview: Preview | None = None,
        low_res: UInt8[np.ndarray, "n f2 h2 w2 c"] | None = None,
        start: UInt8[np.ndarray, "n f h w c"] | None = None,
        first: int = 0,
    ) -> Iterator[UInt8[np.ndarray, "n f h w c"]]:
        """Yields videos of the prompts, in order, a batch at a time.

        known: what is known of the videos, a row a prompt. low_res: the videos that a stage of a
        cascade refines, one a prompt. start: videos that are noised to where the grid begins, one
        a prompt; without them sampling begins with noise alone. first: number of the first sample.
        callback and preview are called by the device's threads while it goes on; with either the
        compiled function cannot be kept in the persistent compilation cache.

        Raises FloatingPointError when a sample is not finite, and ValueError for a preview where
        several processes sample.
        """
        if not prompts:
            raise ValueError("no prompts")
        for name, given in (("known", known), ("low_res", low_res), ("start", start)):
            rows = {leaf.shape[0] for leaf in jax.tree.leaves(given)}
            if rows - {len(prompts)}:
                raise ValueError(
                    f"{name} has {sorted(rows)} rows: must be {len(prompts)}, one a prompt"
                )
        if preview is not None and jax.process_count() > 1:
            raise ValueError("preview: no process of several has a whole batch")
        size = self._size(min(self.batch_size, len(prompts)))
        plain = callback is None and preview is None
        compiled = self.compiled if plain else self._compile(callback, preview)
        for at in range(0, len(prompts), size):
            chosen = list(prompts[at : at + size])
            padded = chosen + [chosen[-1]] * (size - len(chosen))
            # The last prompt is repeated, and so is what is known of its video.
            places = np.minimum(np.arange(at, at + size), len(prompts) - 1)
            indices = np.arange(first + at, first + at + size, dtype=np.uint32)
            cond = dict(self.stage.encode_prompts(padded))
            for name, given in (("low_res", low_res), ("start", start)):
                if given is not None:
                    cond[name] = given[places]
            part = jax.tree.map(lambda leaf, places=places: leaf[places], known)
            if self.plan is not None:
                indices, cond, part = jax.device_put((indices, cond, part), self.plan.batch)
            video, finite = compiled(params, key, indices, cond, part)
            _ = self._trimmed
            if not np.all(finite[: len(chosen)]):
                raise FloatingPointError(
                    f"samples {at}..{at + len(chosen) - 1} are not finite: "
                    "the parameters or the guidance are beyond use"
                )
            yield np.asarray(video[: len(chosen)])

    def abstract_inputs(self, frames_known: bool = False) -> tuple[Any, Any, Any, Any]:
        """Shapes and places of what `compiled` takes beside the parameters, on a mesh: the key, the
        numbers of a batch's samples, their condition, and what is known of them: nothing, or
        frames."""
        cond = self.stage.abstract_prompts(self._size(self.batch_size))
        key = jax.eval_shape(lambda: jax.random.key(0))
        indices = jax.ShapeDtypeStruct(cond["keep"].shape, jnp.uint32)
        known = None
        if frames_known:
            shape = (*indices.shape, *self.video_shape)
            mask = Mask(known=jax.ShapeDtypeStruct((*shape[:2], 1, 1, 1), bool))
            known = Known(measurement=mask, y=jax.ShapeDtypeStruct(shape, jnp.float32))
        return (
            jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.plan.everywhere),
            *jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.plan.batch),
                (indices, cond, known),
            ),
        )

    def _size(self, wanted: int) -> int:
        """The batch that holds `wanted` samples and can be cut as the mesh asks."""
        shards = 1 if self.plan is None else self.plan.batch_shards
        return -(-wanted // shards) * shards

    @functools.cached_property
    def compiled(self) -> Callable:
        """(params, key, numbers of samples, condition, what is known of them or None) -> (uint8
        videos, whether all is finite)."""
        return self._compile(None, None)

    @functools.cached_property
    def _trimmed(self) -> bool:
        """Once, at the first use: hands back what compiling left."""
        heap.trim()
        return True

    def _compile(self, callback: Callback | None, preview: Preview | None) -> Callable:
        def one(
            params: PyTree, key: Key[Array, ""], index: Array, cond: PyTree, known: PyTree
        ) -> tuple[UInt8[Array, "f h w c"], Array]:
            key = jax.random.fold_in(key, index)
            start_key, steps_key = jax.random.split(key)
            noise = jax.random.normal(start_key, (1, *self.video_shape))
            cond, known = jax.tree.map(lambda leaf: leaf[None], (cond, known))
            if "start" in cond:
                cond = dict(cond)
                begin = from_uint8(cond.pop("start"))
                noise = self.stage.process.add_noise(begin, noise, self.logsnrs()[:1])
            cond = self.stage.begin(
                cond, jax.random.fold_in(key, 2), augmentation=self.augmentation, fps=self.fps
            )
            denoiser, rule = self.denoiser_and_rule(params, known)
            video = samplers.sample(
                steps_key,
                denoiser,
                rule,
                self.logsnrs(),
                noise,
                cond,
                callback,
                None if preview is None else _watch(preview, self.steps, self.plan),
            )[0]
            return to_uint8(video), jnp.all(jnp.isfinite(video))

        axes = (None, None, 0, 0, 0)
        if self.plan is None:
            return jax.jit(jax.vmap(one, in_axes=axes))
        plan = self.plan
        return jax.jit(
            jax.vmap(one, in_axes=axes, spmd_axis_name=sharding.BATCH_AXES),
            in_shardings=(plan.params, plan.everywhere, plan.batch, plan.batch, plan.batch),
            # Whole on every process: whichever writes files has what it needs.
            out_shardings=plan.everywhere,
            compiler_options=sharding.compiler_options(plan.mesh),
        )


def _watch(
    preview: Preview, steps: int, plan: sharding.Plan | None
) -> Callable[[Array, Array], None]:
    """What `samplers.sample` calls to have `preview` called."""
    every = -(-steps // PREVIEWS)

    def tell(step: Array, videos: Array) -> None:
        pixels = to_uint8(videos)
        if plan is not None:
            pixels = jax.lax.with_sharding_constraint(pixels, plan.everywhere)
        jax.debug.callback(
            lambda step, pixels: preview(int(step), steps, np.asarray(pixels)), step, pixels
        )

    # Samples are mapped over; a callback that is mapped is called for each, this for all at once.
    @jax.custom_batching.custom_vmap
    def report(step: Array, x: Array) -> Array:
        tell(step, x)
        return step

    @report.def_vmap
    def report_all(size: int, batched: Any, step: Array, x: Array) -> tuple[Array, bool]:
        tell(step, x[:, 0])
        return step, False

    def watch(step: Array, x: Array) -> None:
        jax.lax.cond(step % every == 0, report, lambda step, x: step, step, x)

    return watch
