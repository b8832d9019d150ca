"""Stable Video Diffusion in and out of folders as it is published, and its LoRA files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.systems import latent_image
from vdm_jax.systems.image_embedding import part_folder
from vdm_jax.systems.pipeline_folder import copy_parts, write_json
from vdm_jax.systems.stable_video import HERE, NAME, default_config, make_autoencoder
from vdm_jax.weights import autoencoder as autoencoder_weights
from vdm_jax.weights import lora, published, scheduler
from vdm_jax.weights import stable_video as weights

__all__ = [
    "NAME",
    "published_digest",
    "read_loras",
    "read_published",
    "read_published_params",
    "write_lora",
    "write_published",
]
_PARTS = ("unet", "vae", "image_encoder", "feature_extractor", "scheduler")
# Of the published pipeline, whose U-Nets' sample_size is 96 and which makes 576 x 1024 pixels.
_PUBLISHED_SIZE, _PUBLISHED_PIXELS = 96, (576, 1024)
published_digest = latent_image.published_digest


def read_published(folder: Path) -> ConfigDict:
    """The configuration of a published pipeline, a folder of model_index.json, unet/, vae/,
    image_encoder/, feature_extractor/ and scheduler/. It is sampled with the defaults of the
    published library.

    Raises FileNotFoundError; ValueError naming a part or a value that is not understood.
    """
    index = published.read_json(folder / published.PIPELINE)
    if unknown := sorted(n for n in index if n not in _PARTS and not n.startswith("_")):
        raise ValueError(f"{folder / published.PIPELINE}: {', '.join(unknown)}: not understood")
    for part in _PARTS:
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder / part}: no such folder; the pipeline needs it")
    unet = published.read_json(folder / "unet" / "config.json")
    weights.from_config(unet, folder / "unet" / "config.json")  # errors name the file
    schedule = scheduler.read_folder(folder / "scheduler")
    if schedule.kind != "euler" or not schedule.continuous:
        raise ValueError(
            f"{folder / 'scheduler' / scheduler.FILE}: allowed is EulerDiscreteScheduler with "
            "timestep_type = 'continuous'"
        )
    config = default_config()
    with config.unlocked():
        config.model.unet = ConfigDict(unet)
        settings = published.read_json(folder / "scheduler" / scheduler.FILE)
        config.model.scheduler = ConfigDict(settings)
    config.model.update({"autoencoder": str(folder / "vae"), "image_encoder": str(folder)})
    config.model.dtype = "float32"
    factor = autoencoder_weights.read_config(folder / "vae").factor
    height, width = _pixels(unet.get("sample_size"), factor)
    config.data.update({"image_size": height, "image_width": width, "fps": config.sample.fps})
    config.data.update({"num_frames": unet.get("num_frames", 25), "name": "video_folder"})
    return config


def _pixels(sample_size: int | list[int] | None, factor: int) -> tuple[int, int]:
    """Height and width of clips, of the latents' that a U-Net's config.json names."""
    if sample_size in (None, _PUBLISHED_SIZE):
        return _PUBLISHED_PIXELS
    both = sample_size if isinstance(sample_size, list) else [sample_size] * 2
    return both[0] * factor, both[1] * factor


def read_published_params(folder: Path) -> PyTree:
    """The parameters of a published pipeline's U-Net. Raises as `weights.stable_video`."""
    return weights.read_folder(folder / "unet").params


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes a published pipeline, and returns the names of its parts.

    The autoencoder and the image encoder are copied from where the model reads them. dtype: of the
    U-Net's tensors. Raises FileExistsError; ValueError for a model that takes text or no image.
    """
    model = config.model
    if not (model.still and model.context == "still"):
        raise ValueError(
            f"model.still = {model.still}, model.context = {model.context!r}: the published "
            "pipeline takes the image that a clip begins with, and no text"
        )
    factor, data = make_autoencoder(config).factor, config.data
    weights.write_folder(
        folder / "unet",
        weights.from_config(model.unet.to_dict(), HERE),
        params,
        jnp.dtype(dtype),
        sample_size=(data.image_size // factor, (data.image_width or data.image_size) // factor),
        num_frames=data.num_frames,
    )
    write_json(folder / "scheduler" / scheduler.FILE, model.scheduler.to_dict())
    encoder = part_folder(model.image_encoder, "image_encoder")
    copied = {"vae": part_folder(model.autoencoder, "autoencoder")}
    copied |= {part: encoder / part for part in ("image_encoder", "feature_extractor")}
    copy_parts(folder, copied)
    write_json(folder / published.PIPELINE, _INDEX)
    return ["unet", "scheduler", *copied]


_INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


def read_loras(
    config: ConfigDict, loras: Mapping[str, float]
) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """The configuration, and what LoRA files, with their scales, add to the U-Net's parameters, by
    path. Raises ValueError, FileNotFoundError."""
    read = [(lora.read(file), scale) for file, scale in loras.items()]
    network = weights.from_config(config.model.unet.to_dict(), HERE)
    names = weights.name_function(network)
    return config, lora.changes(read, lora.UNET, weights.shapes(network), names)


def write_lora(
    file: Path, config: ConfigDict, pairs: Mapping[str, Any], scale: float, dtype: str
) -> None:
    """Writes low-rank changes of the U-Net as diffusers reads them; see `weights.lora.write`."""
    network = weights.from_config(config.model.unet.to_dict(), HERE)
    lora.write(file, pairs, weights.name_function(network), scale=scale, dtype=jnp.dtype(dtype))
