"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G), trained.

An image is encoded to a normal distribution of latents, of which one is drawn and decoded. The loss
is the reconstruction's absolute error, and squared error where it has a weight, with a slight KL
penalty that keeps the latents near a standard normal distribution. Each frame of a clip is an image
of its own.

`model.autoencoder` is the config.json of the published folder (`vdm convert --to=diffusers` writes
it), which `model.autoencoder` of a latent image model then names.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.data import pipeline
from vdm_jax.models.autoencoder import AutoencoderKL
from vdm_jax.stage import reconstruction
from vdm_jax.stage.reconstruction import Reconstruction, Term
from vdm_jax.stage.space import from_uint8
from vdm_jax.stage.view import View
from vdm_jax.systems import vdm
from vdm_jax.systems.network import DTYPES
from vdm_jax.weights import autoencoder as weights

NAME = "autoencoder"
_MEASURED = 512  # clips from which the latents' deviation is measured
_BATCH = 16


def build(config: ConfigDict) -> Reconstruction:
    """The autoencoder and its loss. Raises ValueError where a value is not allowed."""
    model, size = config.model, config.data.image_size
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    network = weights.from_config(model.autoencoder.to_dict(), Path("configuration"))
    network = network.clone(dtype=DTYPES[model.dtype])
    terms = (
        Term(name="l1", function=reconstruction.absolute_error, weight=config.loss.l1),
        Term(name="l2", function=reconstruction.squared_error, weight=config.loss.l2),
        Term(name="kl", function=reconstruction.kl_divergence, weight=config.loss.kl),
    )
    shape = (config.data.num_frames, size, config.data.image_width or size, network.in_channels)
    return Reconstruction(
        network=network,
        view=View(shape=shape),
        terms=tuple(term for term in terms if term.weight),
        foreground=config.loss.foreground,
        train_only=model.train_only,
    )


def default_config() -> ConfigDict:
    """Every field of a configuration, with the values of Stable Diffusion's autoencoder.

    loss.l1, loss.l2 and loss.kl are the weights of the terms, 0 = without. loss.foreground and
    model.train_only are those of `Reconstruction`.
    """
    base = vdm.default_config().to_dict()
    config = ConfigDict(
        {
            **base,
            "system": NAME,
            "model": {
                "autoencoder": weights.config(AutoencoderKL()),
                "dtype": "float32",
                "train_only": "",
            },
            "loss": {"l1": 1.0, "l2": 0.0, "kl": 1e-6, "foreground": 0.0},
        }
    )
    del config["process"]
    del config["sample"]
    with config.unlocked():
        config.data.update({"num_frames": 1, "image_size": 256, "extras": ()})
    return config.lock()


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes the autoencoder as a published folder, and returns the names of its parts.

    Its scaling_factor is 1 over the standard deviation of the latents of clips of the training
    data, drawn from the encoder's distribution. Raises FileExistsError; DataError where the data is
    missing.
    """
    stage = build(config)
    network = stage.network.clone(scaling_factor=1.0 / measure_deviation(stage, config, params))
    weights.write_folder(folder, network, params, jnp.dtype(dtype))
    return ["the autoencoder"]


def measure_deviation(stage: Reconstruction, config: ConfigDict, params: PyTree) -> float:
    """The standard deviation of the latents of `_MEASURED` clips of `config.data`, over all of
    their values. Raises DataError."""
    dataset = pipeline.make_dataset(
        config, text_encoder=None, batch_size=_BATCH, seed=0, report=None, reading=stage.reading
    )

    @jax.jit
    def moments(video: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = from_uint8(video).reshape(-1, *video.shape[2:])
        posterior = stage.network.apply({"params": params}, images, method="encode")
        latents = posterior.sample(key)
        return latents.mean(), jnp.square(latents).mean()

    found, iterator = [], iter(dataset)
    for number in range(_MEASURED // _BATCH):
        found.append(moments(next(iterator)["video"], jax.random.key(number)))
    iterator.close()
    mean, square = np.asarray(found).mean(0)
    return float(np.sqrt(square - mean**2))
