"""Guidance and thresholds as values: each owns its fields and checks and maps a stage's Denoiser to
a Denoiser. A sampler nests them in the order in which they are given, the first innermost."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.diffusion import guidance, windows
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.stage.conditions.scalar import GuidanceScale
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.stage import Stage

LogSNRs = Float[Array, "steps_plus_1"]


@runtime_checkable
class Guidance(Protocol):
    """A function from Denoiser to Denoiser that may look at the stage and the sampler's grid."""

    def check(self, stage: Stage) -> None:
        """Raises ValueError where the stage cannot be guided so."""

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        """The guided Denoiser."""


@runtime_checkable
class UsesFrozen(Protocol):
    """What becomes a guidance with parameters that are not trained, such as an interpolator's."""

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""

    def bind(self, frozen: Frozen) -> Guidance:
        """The guidance with the parameters. Raises ValueError where they are missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """ε_null + g (ε_cond − ε_null) (Ho & Salimans 2021). A distilled network takes g as an input.

    Attributes:
      scale: g; 1 = no guidance.
      oscillate_after: steps with constant g, after which 1 and g take turns (Imagen Video, Ho et
        al. 2022, section 2.6); 0 = always g.
      first: g of a clip's first frame, from which it rises linearly over the frames to `scale` at
        the last (Stable Video Diffusion, Blattmann et al. 2023, section 4.3); None = `scale`.
      start, end: shares of the steps between which guidance acts; before and after g = 1, and a
        step is one evaluation (Kynkäänniemi et al. 2024).
    """

    scale: float = 1.0
    oscillate_after: int = 0
    first: float | None = None
    start: float = 0.0
    end: float = 1.0

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        if self.first is not None and (self.oscillate_after or stage.takes_guidance):
            other = "oscillate_after" if self.oscillate_after else "a distilled network"
            raise ValueError(f"first_guidance = {self.first}: cannot be combined with {other}")
        if self.oscillate_after < 0:
            raise ValueError(f"oscillate_after = {self.oscillate_after}: must not be negative")
        self._check_interval()
        if (condition := stage.find(GuidanceScale)) is not None:
            for scale in {self.scale, 1.0} if self.oscillate_after else {self.scale}:
                condition.check_scale(scale)

    def scales(self, steps: int) -> list[float]:
        """g of each of a sampler's steps, where all frames have the same."""
        if self.oscillate_after:
            return guidance.oscillation(steps, self.scale, constant=self.oscillate_after)
        return guidance.interval(steps, self.scale, start=self.start, end=self.end)

    def _check_interval(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"guidance_start = {self.start}, guidance_end = {self.end}: shares of the steps, "
                "0 to 1, the start below the end"
            )
        if (self.start, self.end) == (0.0, 1.0):
            return
        if self.first is not None or self.oscillate_after:
            other = "oscillate_after" if self.oscillate_after else "first_guidance"
            raise ValueError(
                f"guidance_start = {self.start}, guidance_end = {self.end}: cannot be combined "
                f"with {other}"
            )

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        if (first := self.first) is not None and first != self.scale:

            def rising(z: Array, logsnr: Array, cond: Any) -> Prediction:
                scales = jnp.linspace(first, self.scale, z.shape[1])[None]
                return guided(denoiser, stage, scales)(z, logsnr, cond)

            return rising
        scales = self.scales(logsnrs.shape[0] - 1)
        if set(scales) == {self.scale}:
            return guided(denoiser, stage, self.scale)
        return guidance.scheduled(
            lambda scale: guided(denoiser, stage, scale),
            scales,
            logsnrs,
            None if stage.takes_guidance else denoiser,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temporal(ClassifierFree):
    """Classifier-free guidance with a scale of its own for consistency in time (Esser et al. 2023,
    Gen-1, section 3.4); see `diffusion.guidance.temporal`.

    Attributes:
      temporal: ω_t; 1 = classifier-free guidance.
    """

    temporal: float = 1.0

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        super().check(stage)
        if self.temporal < 0:
            raise ValueError(f"temporal = {self.temporal}: must not be negative")
        for name, value in (
            ("first_guidance", self.first is not None),
            ("oscillate_after", self.oscillate_after),
            ("guidance_start or guidance_end", (self.start, self.end) != (0.0, 1.0)),
            ("a distilled network", stage.takes_guidance),
        ):
            if value:
                raise ValueError(f"temporal = {self.temporal}: cannot be combined with {name}")
        if stage.z_shape[0] != stage.video_shape[0]:
            raise ValueError(
                f"temporal = {self.temporal}: this model's z has {stage.z_shape[0]} frames for "
                f"{stage.video_shape[0]} of the video; frames must be encoded one by one"
            )

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        like = _like_z(stage)
        return guidance.temporal(denoiser, self.scale, self.temporal, stage.null, like)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested:
    """Guidance of several conditions, each by its own scale, added one after the other:

    ε(∅) + g_1 (ε(c_1) − ε(∅)) + g_2 (ε(c_1, c_2) − ε(c_1)) + …, as InstructPix2Pix does (Brooks et
    al. 2023, eq. 3).

    Attributes:
      scales: (name of a condition, its g), in the order in which they are added.
    """

    scales: tuple[tuple[str, float], ...]

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        names = {condition.name for condition in stage.conditions}
        if unknown := [name for name, _ in self.scales if name not in names]:
            raise ValueError(
                f"guidance of {', '.join(unknown)}: the model's conditions are "
                f"{', '.join(sorted(names)) or 'none'}"
            )

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        names = [name for name, _ in self.scales]
        scales = [1.0, *(scale for _, scale in self.scales), 0.0]

        def nulled(later: list[str]) -> Any:
            return lambda cond: stage.null(cond, later)

        # The term with the first k conditions has the weight g_k − g_{k+1}.
        terms = [
            (scales[k] - scales[k + 1], nulled(names[k:])) for k in range(len(self.scales) + 1)
        ]
        return guidance.weighted(denoiser, terms)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """Each step is computed in square tiles: exact for networks that are fully convolutional.

    Attributes:
      size: height and width of a tile.
      overlap: of neighbouring tiles, at least twice the network's reach.
    """

    size: int
    overlap: int

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        reach = stage.network.reach
        if reach is None:
            raise ValueError(
                f"tile = {self.size}: tiles are for fully convolutional networks "
                "(model.spatial_attention = 'none', model.norm_groups = 0)"
            )
        if self.overlap < 2 * reach:
            raise ValueError(
                f"tile_overlap = {self.overlap}: must be at least {2 * reach}, twice the "
                "network's reach, for tiles to be what the whole would be"
            )

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        for axis in (2, 3):
            denoiser = windows.windowed(
                denoiser,
                axis=axis,
                size=self.size,
                overlap=self.overlap,
                like=_like_z(stage),
                multiple=stage.network.multiple,
            )
        return denoiser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Each step is computed in windows of frames; overlapping predictions are averaged by a ramp
    (MultiDiffusion, Bar-Tal et al. 2023; Lumiere, Bar-Tal et al. 2024, section 3.2).

    Attributes:
      size: frames of a window.
      overlap: frames that neighbouring windows share.
    """

    size: int
    overlap: int

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        if not 0 <= self.overlap < self.size:
            raise ValueError(
                f"window_overlap = {self.overlap}: must be from 0 to {self.size - 1}, below window"
            )

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        return windows.windowed(
            denoiser,
            axis=1,
            size=self.size,
            overlap=self.overlap,
            weights="ramp",
            like=_like_z(stage),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticThreshold:
    """x̂ clipped to [−1, 1] at each step."""

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        _check_pixels("static", stage)

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        return guidance.static_clip(denoiser)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicThreshold:
    """x̂ clipped by a percentile of its values at each step (Saharia et al. 2022, Imagen, 2.3)."""

    percentile: float = 0.995

    def check(self, stage: Stage) -> None:
        """See `Guidance`."""
        _check_pixels("dynamic", stage)
        if not 0.0 < self.percentile <= 1.0:
            raise ValueError(f"percentile = {self.percentile}: must be above 0, at most 1")

    def __call__(self, denoiser: Denoiser, stage: Stage, logsnrs: LogSNRs) -> Denoiser:
        return guidance.dynamic_threshold(denoiser, self.percentile)


def _check_pixels(threshold: str, stage: Stage) -> None:
    if not stage.space.pixels:
        raise ValueError(
            f"threshold = {threshold!r}: clips pixels, and this stage's z are latents; set "
            "threshold = 'none'"
        )


THRESHOLDS = {"none": None, "static": StaticThreshold(), "dynamic": DynamicThreshold()}


def guided(denoiser: Denoiser, stage: Stage, scale: float | Float[Array, "*bf"]) -> Denoiser:
    """Classifier-free guidance by `scale`, a number or one for each example or each frame, or the
    scale as an input of a network that was distilled from a guided one."""
    if stage.takes_guidance:
        return guidance.distilled(denoiser, scale)
    return guidance.classifier_free(denoiser, scale, stage.null)


def _like_z(stage: Stage) -> tuple[str, ...]:
    return tuple(name for condition in stage.conditions for name in condition.like_z)
