"""The systems of the field, one file each, composed of the library's parts."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from vdm_jax.parallel import sharding
from vdm_jax.stage.contrast import Contrast
from vdm_jax.stage.control import ControlStage
from vdm_jax.stage.low_rank import BASE, LowRank
from vdm_jax.stage.reconstruction import Reconstruction
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import (
    autoencoder,
    gen1,
    image_text,
    imagen_video,
    latent_image,
    lumiere,
    make_a_video,
    stable_video,
    stable_video_folder,
    tune_a_video,
    tune_a_video_folder,
    vdm,
    video_dit,
    video_dit_folder,
    video_ldm,
)
from vdm_jax.systems.network import is_offloaded
from vdm_jax.weights import published
from vdm_jax.weights.flow_scheduler import FlowScheduler
from vdm_jax.weights.scheduler import Scheduler

SYSTEMS = {
    "vdm": vdm.build,
    "imagen_video": imagen_video.build,
    "lumiere": lumiere.build,
    latent_image.NAME: latent_image.build,
    stable_video.NAME: stable_video.build,
    video_ldm.NAME: video_ldm.build,
    make_a_video.NAME: make_a_video.build,
    gen1.NAME: gen1.build,
    tune_a_video.NAME: tune_a_video.build,
    video_dit.NAME: video_dit.build,
    autoencoder.NAME: autoencoder.build,
    image_text.NAME: image_text.build,
}
# The systems with parameters that are not trained, and with a published scheduler.
_LATENT = {
    system.NAME: system
    for system in (
        latent_image,
        stable_video,
        video_ldm,
        make_a_video,
        gen1,
        tune_a_video,
        video_dit,
    )
}
_FROZEN = {name: system.read_frozen for name, system in _LATENT.items()}
_FROZEN_NETWORKS = {name: system.frozen_networks for name, system in _LATENT.items()}
_SCHEDULERS = {name: system.make_scheduler for name, system in _LATENT.items()}
# Sections of `train`, and the field of each that chooses it.
_ADAPTED_BY = {"lora": "rank", "control": "source", "tuning": "separate"}
# The systems that take and write published LoRA files.
_LORAS = {latent_image.NAME: latent_image, stable_video.NAME: stable_video_folder}
# The systems of published pipelines, by the class that model_index.json names.
_PIPELINES = {
    **dict.fromkeys((latent_image.GENERATES, latent_image.EDITS), latent_image),
    "StableVideoDiffusionPipeline": stable_video_folder,
    tune_a_video_folder.CLASS: tune_a_video_folder,
    "WanPipeline": video_dit_folder,
}
# The systems whose models are written in a published format.
_WRITTEN = {system.NAME: system for system in (*_PIPELINES.values(), autoencoder, image_text)}


def build(config) -> Stage | Reconstruction | Contrast:
    """The stage that a configuration describes, or the training of an autoencoder or of an
    image-text pair; `config.system` names the system.

    With `train.lora.rank` above 0 its parameters are low-rank changes of those of `build_base`,
    with `train.control.source` those of a ControlNet, with `train.tuning.separate` those that are
    tuned. Raises ValueError where a field's value is not allowed.
    """
    adapted = adaptation(config)
    if adapted == "tuning":
        return tune_a_video.tuned(config)
    stage = build_base(config)
    if adapted == "lora":
        lora = config.train.lora
        alpha = lora.alpha or float(lora.rank)
        return LowRank.adapt(stage, rank=lora.rank, alpha=alpha, targets=lora.targets)
    return latent_image.add_control(stage, config) if adapted == "control" else stage


def adaptation(config) -> str:
    """The section of `config.train` that names the model whose parameters are frozen and adapted:
    a key of `_ADAPTED_BY`, or "" for a model of its own. Raises ValueError for several."""
    found = [name for name, field in _ADAPTED_BY.items() if config.train.get(name, {}).get(field)]
    if len(found) > 1:
        both = " and ".join(f"train.{name}" for name in found)
        raise ValueError(f"{both}: a run trains one of them")
    return found[0] if found else ""


def build_base(config) -> Stage | Reconstruction | Contrast:
    """`build` without low-rank changes and ControlNets; of what is tuned, the image model. Raises
    as `build`."""
    if config.system not in SYSTEMS:
        raise ValueError(f"system = {config.system!r}: allowed are {', '.join(SYSTEMS)}")
    if adaptation(config) == "tuning":
        return latent_image.build(config)
    return SYSTEMS[config.system](config)


def read_frozen(config, mesh: Mapping[str, int] | None = None) -> dict[str, sharding.Frozen]:
    """The parameters beside the trained ones that a configuration's stage uses.

    mesh: sizes of the mesh's axes, over which they are spread; None = on one device. Raises
    ValueError, FileNotFoundError, MeshError.
    """
    read = _FROZEN.get(config.system)
    found = {}
    for name, part in {} if read is None else read(config).items():
        plan = frozen_plan(part, config, mesh)
        found[name] = sharding.Frozen(params=jax.device_put(part.params, plan.params), plan=plan)
    return found


def abstract_frozen(
    config, mesh: Mapping[str, int], devices: Sequence[jax.Device]
) -> dict[str, sharding.Frozen]:
    """Shapes and places of the parameters beside the trained ones, also of an adapted base.

    mesh: sizes of the axes of a mesh of `devices`. No weights are read. Raises ValueError,
    FileNotFoundError, MeshError.
    """
    networks = _FROZEN_NETWORKS.get(config.system)
    parts = {} if networks is None else dict(networks(config))
    if adaptation(config):
        parts[BASE] = build_base(config)
    found = {}
    for name, part in parts.items():
        plan = frozen_plan(part, config, mesh, devices)
        shapes = nn.meta.unbox(part.abstract_params())
        params = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            plan.params,
        )
        found[name] = sharding.Frozen(params=params, plan=plan)
    return found


def has_frozen(config) -> bool:
    """Whether a configuration's stage uses parameters beside the trained ones. Raises as
    `abstract_frozen`."""
    networks = _FROZEN_NETWORKS.get(config.system)
    return bool(adaptation(config) or (networks is not None and networks(config)))


def frozen_plan(
    part,
    config,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> sharding.Plan:
    """How a frozen part of a configuration's model lies on a mesh, or beside it in the host's
    memory (config.mesh.offload).

    part: has `abstract_params`. mesh: None = one device. devices: of the mesh, all unless given.
    Raises MeshError.
    """
    if mesh is None:
        mesh, devices = {"data": 1}, jax.local_devices()[:1]
    plan = sharding.make_plan(part, mesh, devices)
    return dataclasses.replace(plan, offload=is_offloaded(config))


def scheduler(config) -> Scheduler | FlowScheduler | None:
    """How a configuration's model is sampled where that is published; None = by `config.sample`, as
    a student is that was distilled for a sampler of its own."""
    make = _SCHEDULERS.get(config.get("system"))
    return None if make is None or "distill" in config else make(config)


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published pipeline or autoencoder."""
    return (folder / published.PIPELINE).is_file() or autoencoder.is_published(folder)


def read_published(folder: Path):
    """The configuration of a published pipeline. Raises FileNotFoundError; ValueError naming the
    part or the value that is not understood."""
    return _pipeline(folder).read_published(folder)


def read_published_params(folder: Path) -> PyTree:
    """The parameters of a published pipeline's network, as NumPy arrays. Raises ValueError,
    FileNotFoundError."""
    return _pipeline(folder).read_published_params(folder)


def write_published(folder: Path, config, params: PyTree, dtype: str) -> list[str]:
    """Writes a model in its published format, and returns the names of the parts. Raises
    FileExistsError; ValueError where there is no published format of the model's system."""
    if config.system not in _WRITTEN:
        raise ValueError(
            f"system = {config.system!r}: no published format is of this kind; allowed are "
            f"{', '.join(_WRITTEN)}"
        )
    return _WRITTEN[config.system].write_published(folder, config, params, dtype)


def read_loras(config, loras: Mapping[str, float]) -> tuple[Any, dict[str, np.ndarray]]:
    """A configuration with LoRA files in it, and what is added to its network's parameters, float32
    by path.

    loras: files and their scales. Raises FileNotFoundError; ValueError naming what is not
    understood, or a system that takes no such files.
    """
    return _lora_system(config).read_loras(config, loras)


def write_lora(file: Path, config, pairs: Mapping[str, Any], scale: float, dtype: str) -> None:
    """Writes low-rank changes as a published LoRA file; see `weights.lora.write`. Raises
    FileExistsError; ValueError where there are no such files of the system."""
    _lora_system(config).write_lora(file, config, pairs, scale, dtype)


def write_control(folder: Path, stage: ControlStage, params: PyTree, dtype: str) -> None:
    """Writes a trained ControlNet as a published folder. Raises FileExistsError."""
    latent_image.write_control(folder, stage, params, dtype)


def _lora_system(config):
    if config.system not in _LORAS:
        raise ValueError(
            f"system = {config.system!r}: there are no published LoRA files of it; allowed are "
            f"{', '.join(_LORAS)}"
        )
    return _LORAS[config.system]


def published_digest(folder: Path) -> str:
    """What names a published pipeline's network: a SHA-256 of its files'. Raises ValueError,
    FileNotFoundError."""
    return _pipeline(folder).published_digest(folder)


def _pipeline(folder: Path):
    if autoencoder.is_published(folder):
        return autoencoder
    path = folder / published.PIPELINE
    index = published.read_json(path)
    return _PIPELINES[published.config_value(index, path, "_class_name", _PIPELINES)]
