"""A stage from the sections of a configuration: what the systems' `build` functions share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.data.source import OF_FILES
from vdm_jax.diffusion.process import make_process
from vdm_jax.models.text.words import TextEncoder
from vdm_jax.stage.conditions.prompt import Label, Text, TextOrNull
from vdm_jax.stage.conditions.scalar import FrameRate, GuidanceScale
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.protocols import Condition
from vdm_jax.stage.refinement import Plain, Refinement
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.view import View


class FrozenPart(NamedTuple):
    """Parameters that a stage uses and that are not trained, as NumPy arrays.

    Attributes:
      params: the arrays.
      named: a `layers.Named` of the shape of each.
    """

    params: PyTree
    named: PyTree

    def abstract_params(self) -> PyTree:
        """As `Stage.abstract_params`: what a plan on a mesh is made of."""
        return self.named


def stage_section(**fields: Any) -> ConfigDict:
    """The section `stage` of a stage of a cascade: `cascade_parts` and `prompt_conditions` read it.

    Fields: name; shape and low_res, (f, h, w) of what it makes and of what it refines, () for a
    base; fill and max_augmentation, see `LowResVideo`; residual, residual_of_acceleration and
    residual_of_contrast, see `Refinement`, residual 0 = none; crop, frame_strides and data_fps, see
    `View`. `fields` replace the defaults.
    """
    defaults = {
        "name": "",
        "shape": (),
        "low_res": (),
        "fill": "repeat",
        "residual": 0.0,
        "residual_of_acceleration": 0.0,
        "residual_of_contrast": 0.0,
        "max_augmentation": 1.0,
        "crop": (),
        "frame_strides": (),
        "data_fps": 0.0,
    }
    return ConfigDict({**defaults, **fields})


def prompt_conditions(
    config: ConfigDict, text_encoder: TextEncoder | None
) -> tuple[Condition, ...]:
    """Text, labels and a distilled network's guidance scale, where the configuration has them."""
    drop, found = config.train.cond_dropout, []
    if text_encoder is not None:
        found.append(text_condition(text_encoder, drop))
    if config.model.num_labels:
        found.append(Label(count=config.model.num_labels, drop=drop))
    return (*found, *guidance_conditions(config))


def clip_view(data: ConfigDict, channels: int, size: Sequence[int] = ()) -> View:
    """How clips of `size`, (frames, height, width), are made from the data's.

    Sources of video files scale clips to that size; of rendered clips it is a random part. Without
    a size it is `data.part`, and () there stands for whole clips.
    """
    whole = (data.num_frames, data.image_size, data.image_width or data.image_size)
    shape = tuple(size or data.get("part", ()) or whole)
    if shape == whole or (size and data.name in OF_FILES):
        return View(shape=(*shape, channels))
    return View(shape=(*shape, channels), data_shape=(*whole, channels), part=True)


def guidance_conditions(config: ConfigDict) -> tuple[GuidanceScale, ...]:
    """The guidance scale as a condition of a network that was distilled from a guided one."""
    if not config.model.get("guidance_embedding", False):
        return ()
    distill = config.get("distill", {})
    trained = (distill["guidance_min"], distill["guidance_max"]) if distill else None
    return (GuidanceScale(trained=trained),)


def cascade_parts(config: ConfigDict, *, frame_rate: bool) -> dict[str, Any]:
    """Process, space, view, parametrisation and the conditions other than prompts of a stage of a
    cascade, as fields of `Stage`.

    frame_rate: whether the network takes the frame rate. Raises ValueError where a value of the
    section `stage` is not allowed.
    """
    stage, process = config.stage, make_process(config.process)
    view = make_view(config, config.model.out_channels)
    shape, channels = view.shape, view.shape[-1]
    conditions = [FrameRate(fps=view.fps, trained=view.rates)] if frame_rate else []
    refinement = _refinement(stage, shape)
    if stage.low_res:
        low_res = LowResVideo(
            shape=shape,
            low_res_shape=(*stage.low_res, channels),
            fill=stage.fill,
            schedule=process.schedule,
            max_augmentation=stage.max_augmentation,
            refinement=refinement,
        )
        conditions.append(low_res)
    return {
        "process": process,
        "space": PixelSpace(data_shape=shape),
        "view": view,
        "parametrisation": refinement or Plain(),
        "conditions": tuple(conditions),
    }


def make_view(config: ConfigDict, channels: int) -> View:
    """How the clips of a stage of a cascade are made of the data's. Raises ValueError where a value
    of the section `stage` is not allowed."""
    stage, data = config.stage, config.data
    return View(
        shape=(*stage.shape, channels),
        data_shape=(
            data.num_frames,
            data.image_size,
            data.image_width or data.image_size,
            channels,
        ),
        data_fps=float(stage.data_fps),
        frame_strides=tuple(stage.frame_strides),
        crop=tuple(stage.crop),
    )


def text_condition(encoder: TextEncoder, drop: float) -> Text:
    """The text of an encoder, dropped in training with the chance `drop`."""
    kind = Text if encoder.null_text is None else TextOrNull
    return kind(encoder=encoder, drop=drop)


def _refinement(stage: ConfigDict, shape: tuple[int, int, int, int]) -> Refinement | None:
    if not stage.residual:
        for name in ("residual_of_acceleration", "residual_of_contrast"):
            if stage[name]:
                raise ValueError(f"stage.{name} = {stage[name]}: needs stage.residual above 0")
        return None
    if not stage.low_res:
        raise ValueError(f"stage.residual = {stage.residual}: this stage refines no video")
    return Refinement(
        shape=shape,
        low_res_shape=(*stage.low_res, shape[-1]),
        fill=stage.fill,
        deviation=stage.residual,
        acceleration=stage.residual_of_acceleration,
        contrast=stage.residual_of_contrast,
    )
