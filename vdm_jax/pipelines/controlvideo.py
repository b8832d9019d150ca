"""ControlVideo over any latent image model: `adapt` one, then sample videos that follow others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Key, UInt8

from vdm_jax.diffusion.plms import PLMS
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.pipelines.model import Model
from vdm_jax.stage.sampler import Sampler
from vdm_jax.systems import controlvideo
from vdm_jax.weights import controlnet as controlnet_weights
from vdm_jax.weights import rife as rife_weights

GUIDANCE = 12.5  # of the paper


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlVideo:
    """An image model that samples videos which follow control videos.

    Attributes:
      model: its stage makes videos, its parameters are the U-Net's and the ControlNet's.
      smoother: of frames, None = none.
    """

    model: Model
    smoother: controlvideo.Smoother | None
    _samplers: dict[str, Sampler] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def sampler(self, **changes: Any) -> Sampler:
        """The sampler: one frame's noise for all, a video at a time, guidance 12.5. The same
        changes as at the last call give the same sampler, which is compiled once.

        changes: of `stage.sampler.FIELDS`; None = not given. Raises ValueError for a step rule that
        the smoother does not fit, and as `Sampler`.
        """
        if changes.get("num_frames") is not None:
            raise ValueError(
                f"num_frames = {changes['num_frames']}: ControlVideo has the control video's frames"
            )
        given = {name: value for name, value in changes.items() if value is not None}
        name = repr(sorted(given.items()))
        if name not in self._samplers:
            self._samplers.clear()  # each holds a compiled program
            self._samplers[name] = self._make_sampler(given)
        return self._samplers[name]

    def _make_sampler(self, given: dict[str, Any]) -> Sampler:
        sampler = self.model.sampler(**{"guidance": GUIDANCE, "batch_size": 1, **given})
        guidance = sampler.guidance
        if "sampler" not in given and isinstance(sampler.rule, PLMS):
            sampler = dataclasses.replace(sampler, rule=DDIM())  # as the published code samples
        if self.smoother is not None:
            if sampler.rule != DDIM(eta=0.0):
                raise ValueError(
                    f"sampler = {sampler.rule_name!r}: the smoother is made for 'ddim' with eta = "
                    "0; choose that, or no smoother"
                )
            self.smoother.steps_left(sampler.steps)
            guidance = (*guidance, self.smoother)
        noise = dataclasses.replace(sampler.noise, shared=True)
        return dataclasses.replace(sampler, noise=noise, guidance=guidance)

    def sample(
        self,
        key: Key[Array, ""],
        controls: UInt8[np.ndarray, "n f h w 3"],
        prompts: Sequence[str],
        **changes: Any,
    ) -> UInt8[np.ndarray, "n f h w c"]:
        """Draws a video for each control video (`data.controls`) and its prompt.

        changes: see `sampler`. The same key and arguments give the same videos.
        """
        stream = self.sampler(**changes).stream(
            self.model.params, key, prompts, inputs={controlvideo.HINT: controls}
        )
        return np.concatenate(list(stream))


def adapt(
    model: Model,
    controlnet: str | Path | controlnet_weights.Loaded,
    frames: int,
    *,
    smoother: controlvideo.Smoother | None = None,
    interpolator: rife_weights.Loaded | None = None,
    **options: Any,
) -> ControlVideo:
    """A latent image model with a ControlNet as a model of videos of `frames` frames.

    Args:
      controlnet: the folder of a published ControlNet, or what `weights.controlnet` read.
      smoother: None = none.
      interpolator: the smoother's network; None = RIFE's published weights, which are fetched once.
      options: of `systems.controlvideo.build`: attention, hierarchical, scale and further.

    Raises FileNotFoundError, fetch.WeightsUnavailable; ValueError naming what does not fit.
    """
    if isinstance(controlnet, str | Path):
        controlnet = controlnet_weights.read_folder(controlnet)
    stage = controlvideo.build(model.stage, controlnet.network, frames, **options)
    frozen = dict(model.frozen)
    if smoother is not None:
        loaded = rife_weights.load() if interpolator is None else interpolator
        smoother = dataclasses.replace(smoother, interpolator=loaded.network)
        smoother.check(stage)
        frozen[controlvideo.INTERPOLATOR] = loaded.params
    params = controlvideo.add_params(model.params, controlnet.params)
    adapted = Model(stage=stage, params=params, config=model.config, frozen=frozen)
    return ControlVideo(model=adapted, smoother=smoother)
