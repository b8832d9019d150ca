"""Tune-A-Video in and out of folders as its code writes them: a whole pipeline after tuning."""

from pathlib import Path

import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.systems import latent_image, pipeline_folder, tune_a_video
from vdm_jax.systems.tune_a_video import NAME
from vdm_jax.weights import published
from vdm_jax.weights import tune_a_video as weights

__all__ = [
    "CLASS",
    "NAME",
    "published_digest",
    "read_published",
    "read_published_params",
    "write_published",
]
CLASS = "TuneAVideoPipeline"
published_digest = latent_image.published_digest


def read_published(folder: Path) -> ConfigDict:
    """The configuration of a published pipeline, a folder of model_index.json, unet/, vae/,
    text_encoder/, tokenizer/ and scheduler/.

    Its normalisations take their statistics over all frames. Raises FileNotFoundError; ValueError
    naming a part or a value that is not understood.
    """
    path = folder / "unet" / "config.json"
    image = latent_image.read_pipeline(
        folder, lambda: weights.image_config(published.read_json(path), path)
    )
    recipe = tune_a_video.default_config()
    recipe.model.dtype = image.model.dtype
    recipe.temporal.norm_over_frames = True
    recipe.train.tuning.separate = False
    config = tune_a_video.inflated_config(image, recipe)
    if pipeline_folder.OURS in published.read_json(folder / published.PIPELINE):
        with config.unlocked():
            config.data, config.sample = image.data, image.sample
    return config


def read_published_params(folder: Path) -> PyTree:
    """The parameters of a published pipeline's U-Net. Raises as `weights.tune_a_video`."""
    return weights.read_folder(folder / "unet").params


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes a published pipeline, and returns the names of its parts; see
    `latent_image.write_published`.

    params: the network's, all of them. Raises FileExistsError; ValueError for a model whose
    normalisations take their statistics over each frame, which the published class does not have.
    """
    if not config.temporal.norm_over_frames:
        raise ValueError(
            "temporal.norm_over_frames = False: Tune-A-Video's own class takes the statistics of "
            "its normalisations over all frames and would compute something else; tune with "
            "vdm tune --norm_over_frames to write such a folder"
        )
    network = tune_a_video.build(config).network
    weights.write_folder(folder / "unet", network, params, jnp.dtype(dtype))
    index = {**latent_image.INDEX, "_class_name": CLASS, "unet": ["models", weights.CLASS]}
    return latent_image.write_pipeline(folder, config, weights.config(network), index)
