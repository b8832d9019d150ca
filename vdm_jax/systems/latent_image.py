"""Latent diffusion of images (Rombach et al. 2022), as Stable Diffusion 1 and 2 are published, and
InstructPix2Pix (Brooks et al. 2023), whose U-Net takes the latents of the image that is edited too.

A frozen autoencoder makes latents of an image (section 3.1). A U-Net is trained on them by noise or
velocity prediction on a discrete grid of timesteps (section 3.2). Pixels attend to the states of a
frozen text encoder, and the null condition is the empty text (section 3.3). An image is a video of
one frame.

The values of a configuration are those of the published folder: `model.unet` is the U-Net's
config.json, `model.scheduler` is scheduler_config.json, and `model.autoencoder` is the folder of
the autoencoder. So a published pipeline and a network that is trained here are one thing.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.diffusion import schedules
from vdm_jax.diffusion.process import Process
from vdm_jax.models.autoencoder import Autoencoder, AutoencoderKL
from vdm_jax.models.condition import Concatenated
from vdm_jax.models.controlnet import ControlNet
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.stage.conditions.hint import Hint
from vdm_jax.stage.conditions.prompt import TextOrNull
from vdm_jax.stage.conditions.source import SourceVideo
from vdm_jax.stage.control import ControlStage
from vdm_jax.stage.space import AUTOENCODER, LatentSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems import vdm
from vdm_jax.systems.composition import FrozenPart
from vdm_jax.systems.network import DTYPES, make_text_encoder
from vdm_jax.systems.pipeline_folder import (
    OURS,
    copy_parts,
    own_sections,
    part_folder,
    take_own_sections,
    write_json,
)
from vdm_jax.weights import autoencoder as autoencoder_weights
from vdm_jax.weights import controlnet, latent_unet, lora, published, scheduler

NAME = "latent_image"
GENERATES, EDITS = "StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline"
# Of the published pipeline: parts that are read, parts that sampling does not need, and settings of
# those.
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_SETTINGS = ("requires_safety_checker", "force_zeros_for_empty_prompt")
_HERE = Path("configuration")  # what errors name in the place of a file


def build(config: ConfigDict) -> Stage:
    """The model: U-Net, process and latent space. Raises ValueError, FileNotFoundError."""
    size, frames = config.data.image_size, config.data.num_frames
    network, process = make_network(config), make_process(config)
    autoencoder = make_autoencoder(config)
    encoder = make_text_encoder(config)
    if encoder is None or encoder.embedding_width != network.settings.text_width:
        raise ValueError(
            f"text.encoder = {config.text.encoder!r}: model.unet.cross_attention_dim = "
            f"{network.settings.text_width} asks for an encoder of that width"
        )
    shape = (frames, size, config.data.image_width or size, autoencoder.in_channels)
    space = LatentSpace(data_shape=shape, autoencoder=autoencoder, decode_frames=1)
    conditions = [TextOrNull(encoder=encoder, drop=config.train.cond_dropout)]
    if network.in_channels == 2 * autoencoder.latent_channels:  # it edits another image
        source = SourceVideo(shape=shape, z_shape=space.z_shape, scale=autoencoder.scaling_factor)
        network = network.clone(videos=(Concatenated(key=source.name),))
        conditions.append(source)
    return Stage(
        network=network,
        process=process,
        space=space,
        view=View(shape=shape),
        conditions=tuple(conditions),
    )


def make_network(config: ConfigDict) -> LatentUNet:
    """The U-Net of `config.model`. Raises ValueError."""
    model = config.model
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    return latent_unet.from_config(model.unet.to_dict(), _HERE).clone(
        time=make_scheduler(config).time, dtype=DTYPES[model.dtype], remat=model.remat
    )


def make_process(config: ConfigDict) -> Process:
    """The noise levels, the prediction and the loss of `config.model`. Raises ValueError."""
    schedule = make_scheduler(config)
    return Process(
        schedule=schedule.schedule,
        prediction=schedule.prediction,
        loss_name=f"{schedule.prediction}_mse",
        training_schedule=_training_schedule(config, schedule),
    )


def _training_schedule(
    config: ConfigDict, published_schedule: scheduler.Scheduler
) -> schedules.Schedule | None:
    """The noise levels of training; None = uniform timesteps, as published models are trained.

    With model.training = "cosine" they are those of the cosine schedule within the range of the
    timesteps: half of them lie where the noise has .4 to 2.4 times the data's deviation, where
    objects take shape, and few in almost pure noise. Raises ValueError.
    """
    if (kind := config.model.get("training", "timesteps")) == "timesteps":
        return None
    if kind != "cosine":
        raise ValueError(f"model.training = {kind!r}: allowed are timesteps, cosine")
    levels = published_schedule.schedule.grid()
    levels = levels[np.isfinite(levels)]
    return schedules.CosineSchedule(logsnr_min=float(levels.min()), logsnr_max=float(levels.max()))


def add_control(stage: Stage, config: ConfigDict) -> ControlStage:
    """The stage that trains a ControlNet for a model (Zhang et al. 2023), as `train.control` says.
    Raises ValueError."""
    control, network = config.train.control, stage.network
    added = ControlNet(
        unet=network.unet,
        settings=network.settings,
        in_channels=network.in_channels,
        time=network.time,
        dtype=network.dtype,
        remat=network.remat,
        hint_widths=tuple(control.hint_widths),
    )
    if (factor := 2 ** (len(control.hint_widths) - 1)) != stage.space.multiple:
        raise ValueError(
            f"train.control.hint_widths = {control.hint_widths}: shrinks the hint {factor} times, "
            f"the model's autoencoder {stage.space.multiple} times"
        )
    shape = (*stage.space.data_shape[:3], added.hint_channels)
    return ControlStage.add(stage, added, Hint(shape=shape, source=control.source))


def make_scheduler(config: ConfigDict) -> scheduler.Scheduler:
    """The noise schedule and the sampler of a configuration. Raises ValueError."""
    return scheduler.from_config(config.model.scheduler.to_dict(), _HERE)


def read_frozen(config: ConfigDict) -> dict[str, FrozenPart]:
    """The parameters that are not trained: the autoencoder's. Raises ValueError,
    FileNotFoundError."""
    network, params = autoencoder_weights.read_folder(part_folder(config.model.autoencoder))
    return {AUTOENCODER: FrozenPart(params, network.abstract_params())}


def frozen_networks(config: ConfigDict) -> dict[str, Autoencoder]:
    """The networks of `read_frozen`. No weights are read."""
    return {AUTOENCODER: make_autoencoder(config)}


def default_config() -> ConfigDict:
    """Every field of a configuration, with Stable Diffusion 1.5's values."""
    base = vdm.default_config().to_dict()
    config = ConfigDict(
        {
            **base,
            "system": NAME,
            "model": {
                "unet": latent_unet.config(latent_unet.LatentUNet()),
                "scheduler": dict(_SCHEDULER),
                "autoencoder": "",
                # The noise levels of training: timesteps or cosine, see `_training_schedule`.
                "training": "timesteps",
                "dtype": "bfloat16",
                "remat": "none",
            },
        }
    )
    del config["process"]  # `model.scheduler` is it
    config.data.update({"num_frames": 1, "image_size": 512})
    with config.unlocked():
        # A ControlNet: what it is trained for ("" = none), the entry of data.extras that is its
        # hint, and the model that it is added to, whose digest training fills.
        config.train.control = ConfigDict(
            {"source": "", "hint_widths": (16, 32, 96, 256), "base": "", "digest": ""}
        )
        config.data.extras = ()
    # The null condition is the empty text, whichever encoder there is.
    config.text.update({"encoder": "clip_l", "max_length": 77, "null_text": ""})
    config.sample.update({"sampler": "ddim", "steps": 50, "guidance": 7.5, "threshold": "none"})
    config.sample.batch_size = 1
    return config.lock()


_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


def read_published(folder: Path) -> ConfigDict:
    """The configuration of a published pipeline, a folder of model_index.json, unet/, vae/,
    text_encoder/, tokenizer/ and scheduler/. A pipeline that `write_published` wrote for another
    text encoder has no folders of it.

    Raises FileNotFoundError; ValueError naming a part or a value that is not understood.
    """
    path = folder / "unet" / "config.json"
    return read_pipeline(folder, lambda: published.read_json(path))


def read_pipeline(folder: Path, read_unet: Callable[[], Mapping[str, Any]]) -> ConfigDict:
    """`read_published` of a pipeline with another U-Net.

    read_unet: reads its config.json as that of this system's U-Net.
    """
    index = published.read_json(folder / published.PIPELINE)
    known = {*_PARTS, *_OPTIONAL, *_SETTINGS}
    if unknown := sorted(n for n in index if n not in known and not n.startswith("_")):
        raise ValueError(f"{folder / published.PIPELINE}: {', '.join(unknown)}: not understood")
    for part in _PARTS if OURS not in index else ("unet", "vae", "scheduler"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder / part}: no such folder; the pipeline needs it")
    unet = read_unet()
    latent_unet.from_config(unet, folder / "unet" / "config.json")  # errors name the file
    schedule = scheduler.read_folder(folder / "scheduler")
    if schedule.clips:
        raise ValueError(
            f"{folder / 'scheduler' / scheduler.FILE}: clip_sample = true: latents have no limits "
            "to clip them to; allowed is false"
        )
    config = default_config()
    with config.unlocked():
        config.model.unet = ConfigDict(unet)
        config.model.scheduler = ConfigDict(
            published.read_json(folder / "scheduler" / scheduler.FILE)
        )
    config.model.autoencoder, config.model.dtype = str(folder / "vae"), "float32"
    config.text.encoder, config.text.weights = "clip", str(folder)
    take_own_sections(config, index)
    factor = autoencoder_weights.read_config(folder / "vae").factor
    config.data.image_size = int(unet.get("sample_size") or 64) * factor
    config.sample.sampler = schedule.kind
    return config


def read_published_params(folder: Path) -> PyTree:
    """The parameters of a published pipeline's U-Net. Raises as `weights.latent_unet`."""
    return latent_unet.read_folder(folder / "unet").params


def read_loras(
    config: ConfigDict, loras: Mapping[str, float]
) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """What LoRA files, with their scales, change: the configuration, whose text encoder takes their
    entries for it, and what is added to the U-Net's parameters, by path. Raises ValueError,
    FileNotFoundError."""
    read = [(lora.read(file), scale) for file, scale in loras.items()]
    network = latent_unet.from_config(config.model.unet.to_dict(), _HERE)
    names = latent_unet.name_function(network)
    changes = lora.changes(read, lora.UNET, latent_unet.shapes(network), names)
    if text := tuple((str(one.file), scale) for one, scale in read if one.parts[lora.TEXT]):
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.text.loras = text
    return config, changes


def write_lora(
    file: Path, config: ConfigDict, pairs: Mapping[str, Any], scale: float, dtype: str
) -> None:
    """Writes low-rank changes of the U-Net as diffusers reads them; see `weights.lora.write`."""
    network = latent_unet.from_config(config.model.unet.to_dict(), _HERE)
    names = latent_unet.name_function(network)
    lora.write(file, pairs, names, scale=scale, dtype=jnp.dtype(dtype))


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes a published pipeline, and returns the names of its parts.

    The autoencoder and the text encoder are copied from where the model reads them. With a text
    encoder that the published pipeline does not have, model_index.json names it and the settings
    of sampling for this library; the published one loads the parts. dtype: of the U-Net's tensors.
    Raises FileExistsError, ValueError.
    """
    network = latent_unet.from_config(config.model.unet.to_dict(), _HERE)
    latent_unet.write_folder(folder / "unet", network, params, jnp.dtype(dtype))
    edits = network.in_channels == 2 * make_autoencoder(config).latent_channels
    index = {**INDEX, "_class_name": EDITS} if edits else INDEX
    return write_pipeline(folder, config, latent_unet.config(network), index)


def write_pipeline(
    folder: Path, config: ConfigDict, unet: Mapping[str, Any], index: Mapping[str, Any]
) -> list[str]:
    """Writes what a published pipeline has beside the tensors of its U-Net, and returns the names
    of all parts.

    Args:
      unet: its config.json, which receives the size of images, from where the published pipeline
        takes it.
      index: of the pipeline, completed here.

    Raises FileExistsError, ValueError.
    """
    factor = make_autoencoder(config).factor
    values = {**unet, "sample_size": config.data.image_size // factor}
    write_json(folder / "unet" / "config.json", values)
    write_json(folder / "scheduler" / scheduler.FILE, config.model.scheduler.to_dict())
    copied = {"vae": part_folder(config.model.autoencoder)}
    weights = Path(config.text.weights).expanduser()
    has_clip = config.text.encoder.startswith("clip") and config.text.weights
    if has_clip and (weights / "text_encoder").is_dir():
        copied |= {part: weights / part for part in ("text_encoder", "tokenizer")}
    copy_parts(folder, copied)
    index = {**index, "scheduler": ["diffusers", config.model.scheduler["_class_name"]]}
    if "tokenizer" not in copied:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
        index[OURS] = own_sections(config)
    write_json(folder / published.PIPELINE, index)
    return ["unet", "scheduler", *copied]


def write_control(folder: Path, stage: ControlStage, params: PyTree, dtype: str) -> None:
    """Writes a ControlNet as a published folder. Raises FileExistsError."""
    (control,) = stage.network.controls
    controlnet.write_folder(folder, control.network, params[control.name], jnp.dtype(dtype))


INDEX = {
    "_class_name": GENERATES,
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def published_digest(folder: Path) -> str:
    """What names the U-Net and the scheduler. Raises ValueError, FileNotFoundError."""
    digests = published.Tensors(folder / "unet", published.DIFFUSERS).digests
    text = (folder / "scheduler" / scheduler.FILE).read_text(encoding="utf-8")
    return hashlib.sha256(f"{digests.name} {text}".encode()).hexdigest()


def make_autoencoder(config: ConfigDict) -> Autoencoder:
    """That of the folder; without one Stable Diffusion's, so that shapes are known. Raises
    ValueError, FileNotFoundError."""
    folder = config.model.autoencoder
    return autoencoder_weights.read_config(part_folder(folder)) if folder else AutoencoderKL()
