"""Text2Video-Zero over any latent image model: `adapt` one, then sample videos."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Key, UInt8

from vdm_jax.diffusion.plms import PLMS
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.pipelines.model import Model
from vdm_jax.stage.conditions.source import SourceVideo
from vdm_jax.systems import text2video_zero
from vdm_jax.systems.controlvideo import add_params
from vdm_jax.systems.text2video_zero import INDEPENDENT, SHARED, Text2VideoZero, ZeroShotSampler
from vdm_jax.weights import controlnet as controlnet_weights

# Of the published demonstrations, where they are not the image model's own.
WITH_CONTROLNET = {"steps": 20, "guidance": 9.0}
IMAGE_GUIDANCE = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """An image model that samples videos.

    Attributes:
      model: its stage makes videos, its parameters are the U-Net's and the ControlNet's.
      zero: how.
      defaults: of the sampler, where they are not the model's.
    """

    model: Model
    zero: Text2VideoZero
    defaults: Mapping[str, Any]

    def sampler(self, image_guidance: float | None = None, **changes: Any) -> ZeroShotSampler:
        """The sampler, a video at a time if not told otherwise.

        Args:
          image_guidance: of the video that is edited; None = 1.
          changes: of `stage.sampler.FIELDS`; None = the default.

        Raises ValueError as `Sampler`, and for an image guidance of a model that edits no video.
        """
        edits = self.model.stage.find(SourceVideo) is not None
        if image_guidance is not None and not edits:
            raise ValueError(
                f"image_guidance = {image_guidance:g}: this model edits no video; leave it out"
            )
        if changes.pop("num_frames", None) is not None:
            raise ValueError("num_frames: is chosen where the model is adapted")
        given = {name: value for name, value in changes.items() if value is not None}
        sampler = self.model.sampler(**{"batch_size": 1, **self.defaults, **given})
        if "sampler" not in given and isinstance(sampler.rule, PLMS):
            sampler = dataclasses.replace(sampler, rule=DDIM())  # as the published code samples
        guidance = IMAGE_GUIDANCE if image_guidance is None else image_guidance
        return ZeroShotSampler.of(sampler, self.model.stage, self.zero, guidance)

    def sample(
        self,
        key: Key[Array, ""],
        prompts: Sequence[str],
        inputs: Mapping[str, UInt8[np.ndarray, "n ..."]] | None = None,
        **changes: Any,
    ) -> UInt8[np.ndarray, "n f h w c"]:
        """Draws a video for each prompt.

        inputs: by name, a row a prompt: "hint", control videos (`data.controls`) for a ControlNet;
        "source", the videos that are edited; "foreground", masks (n, f, h, w, 1). changes: see
        `sampler`. The same key and arguments give the same videos.
        """
        sampler = self.sampler(**changes)
        return np.concatenate(list(sampler.stream(self.model.params, key, prompts, inputs=inputs)))


def adapt(
    model: Model,
    frames: int = text2video_zero.FRAMES,
    zero: Text2VideoZero | None = None,
    *,
    controlnet: str | Path | controlnet_weights.Loaded | None = None,
    foreground: bool = False,
    scale: float = 1.0,
) -> Adapted:
    """A latent image model as a model of videos of `frames` frames.

    Args:
      zero: None = the paper's choices: motion for text alone, the same noise in all frames with a
        ControlNet, noise of their own for frames that are edited.
      controlnet: the folder of a published ControlNet, or what `weights.controlnet` read.
      foreground: whether masks of the objects are an input; also with `zero.masks`.
      scale: of what the ControlNet adds.

    Raises FileNotFoundError; ValueError naming what does not fit.
    """
    edits = model.stage.find(SourceVideo) is not None
    if zero is None:
        own = INDEPENDENT if edits else SHARED
        zero = Text2VideoZero() if controlnet is None and not edits else Text2VideoZero(start=own)
    if isinstance(controlnet, str | Path):
        controlnet = controlnet_weights.read_folder(controlnet)
    stage = text2video_zero.build(
        model.stage,
        frames,
        zero,
        controlnet=None if controlnet is None else controlnet.network,
        scale=scale,
        foreground=foreground or zero.masks is not None,
    )
    params = model.params if controlnet is None else add_params(model.params, controlnet.params)
    adapted = Model(stage=stage, params=params, config=model.config, frozen=model.frozen)
    defaults = {} if controlnet is None else WITH_CONTROLNET
    return Adapted(model=adapted, zero=zero, defaults=defaults)
