"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G), trained.

An image is encoded to a normal distribution of latents, of which one is drawn and decoded. The loss
is the reconstruction's absolute error, and squared error where it has a weight, with a slight KL
penalty that keeps the latents near a standard normal distribution. Each frame of a clip is an image
of its own. A causal video autoencoder (Wan Team 2025, section 4.1) is trained by the same loss on
clips; its class in `model.autoencoder` chooses it.

With `loss.adversarial` a discriminator of clips is trained beside it. So the decoder of an image
autoencoder becomes one of clips (Video LDM, Blattmann et al. 2023, section 3.1.1): with the class
AutoencoderKLFrameDecoder it has layers over frames, and `model.train_only` leaves the encoder as it
is, so that diffusion models of its latents stay as they are too. `train.init_from` names the
published folder of the image autoencoder, or a run.

`model.autoencoder` is the config.json of the published folder (`vdm convert --to=diffusers` writes
it), which `model.autoencoder` of a latent image model then names.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict

from vdm_jax.models.autoencoder import AutoencoderKL
from vdm_jax.models.discriminator import PatchDiscriminator
from vdm_jax.stage import reconstruction
from vdm_jax.stage.adversarial import AdversarialReconstruction
from vdm_jax.stage.reconstruction import Reconstruction, Term
from vdm_jax.systems import vdm
from vdm_jax.systems.composition import clip_view
from vdm_jax.systems.network import DTYPES
from vdm_jax.weights import autoencoder as weights
from vdm_jax.weights import causal_autoencoder, published

NAME = "autoencoder"
CLASSES = (*weights.CLASSES, causal_autoencoder.CLASS)
_CONFIG = "config.json"  # of a published folder
_MEASURED = 512  # clips from which the latents' deviation is measured
_BATCH = 16
# Paths of parameters that an image autoencoder lacks.
_NEW = "_temporal/|^discriminator/"


def build(config: ConfigDict) -> Reconstruction:
    """The autoencoder and its loss. Raises ValueError where a value is not allowed."""
    model = config.model
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    values = model.autoencoder.to_dict()
    network = _published(values).from_config(values, Path("configuration"))
    network = network.clone(dtype=DTYPES[model.dtype])
    view = clip_view(config.data, network.in_channels)
    if network.encodes_clips:  # short ones: all frames at once are the fastest
        network = network.clone(at_once=view.shape[0])
    terms = (
        Term(name="l1", function=reconstruction.absolute_error, weight=config.loss.l1),
        Term(name="l2", function=reconstruction.squared_error, weight=config.loss.l2),
        Term(name="kl", function=reconstruction.kl_divergence, weight=config.loss.kl),
    )
    parts = {
        "network": network,
        "view": view,
        "terms": tuple(term for term in terms if term.weight),
        "foreground": config.loss.foreground,
        "train_only": model.train_only,
        "new": _NEW,
    }
    if not (adversarial := config.loss.get("adversarial", 0.0)):
        return Reconstruction(**parts)
    discriminator = PatchDiscriminator(channels=tuple(model.discriminator))
    return AdversarialReconstruction(**parts, discriminator=discriminator, adversarial=adversarial)


def _published(values: Mapping[str, Any]) -> ModuleType:
    """The module of the published class that a config.json names. Raises ValueError."""
    is_causal = values.get("_class_name") == causal_autoencoder.CLASS
    return causal_autoencoder if is_causal else weights  # which refuses another class by name


def default_config() -> ConfigDict:
    """Every field of a configuration, with the values of Stable Diffusion's autoencoder.

    loss.l1, loss.l2, loss.kl and loss.adversarial are the weights of the terms, 0 = without; with
    the last, model.discriminator is the width of each level of the discriminator. loss.foreground
    and model.train_only are those of `Reconstruction`, data.part is explained at `clip_view`.
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
                "discriminator": (32, 64, 128),
            },
            "loss": {"l1": 1.0, "l2": 0.0, "kl": 1e-6, "foreground": 0.0, "adversarial": 0.0},
        }
    )
    del config["process"]
    del config["sample"]
    with config.unlocked():
        config.data.update({"num_frames": 1, "image_size": 256, "part": (), "extras": ()})
    return config.lock()


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes the autoencoder as a published folder, and returns the names of its parts.

    Its latents are scaled to a deviation of 1 by what is measured on clips of the training data,
    drawn from the encoder's distribution: scaling_factor, or the mean and the deviation of each
    channel of a causal autoencoder. An encoder that was not trained keeps the scale of
    `model.autoencoder`, as models of its latents need it. Raises FileExistsError; DataError where
    the data is missing.
    """
    stage = build(config)
    params = stage.network_params(params, {})
    fields = {}
    if jax.tree.leaves(stage.trained({"encoder": params["encoder"]})):
        fields = _measured_scale(stage, config, params)
    module = _published(config.model.autoencoder.to_dict())
    module.write_folder(folder, stage.network.clone(**fields), params, jnp.dtype(dtype))
    return ["the autoencoder"]


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published autoencoder."""
    path = folder / _CONFIG
    # A run has a file of that name too, which is not read for this.
    if not (any(folder.glob(f"{published.DIFFUSERS}*")) and path.is_file()):
        return False
    return published.read_json(path).get("_class_name") in CLASSES


def read_published(folder: Path) -> ConfigDict:
    """The configuration of the training of a published autoencoder. Raises as `read_config` of its
    weights."""
    config = default_config()
    with config.unlocked():
        config.model.autoencoder = ConfigDict(published.read_json(folder / _CONFIG))
    return config


def read_published_params(folder: Path) -> PyTree:
    """The parameters of a published autoencoder, as NumPy arrays. Raises as `read_folder` of its
    weights."""
    return _published(published.read_json(folder / _CONFIG)).read_folder(folder).params


def published_digest(folder: Path) -> str:
    """What names the parameters. Raises ValueError, FileNotFoundError."""
    return published.Tensors(folder, published.DIFFUSERS).digests.name


def _measured_scale(stage: Reconstruction, config: ConfigDict, params: PyTree) -> dict[str, Any]:
    """The fields of the network that scale its latents to a deviation of 1."""
    mean, square = measure_moments(stage, config, params)
    if stage.network.encodes_clips:
        deviation = np.sqrt(square - mean**2)
        return {"latent_mean": tuple(mean.tolist()), "latent_std": tuple(deviation.tolist())}
    return {"scaling_factor": float((square.mean() - mean.mean() ** 2) ** -0.5)}


def measure_moments(
    stage: Reconstruction, config: ConfigDict, params: PyTree
) -> Float[np.ndarray, "2 c"]:
    """The mean, and the mean square, of each channel of the latents of `_MEASURED` clips of
    `config.data`. Raises DataError."""
    from vdm_jax.data import pipeline  # Grain takes longer to import than all networks

    dataset = pipeline.make_dataset(
        config, text_encoder=None, batch_size=_BATCH, seed=0, report=None, reading=stage.reading
    )

    @jax.jit
    def moments(video: Any, key: jax.Array) -> jax.Array:
        latents = stage.posterior(params, video).sample(key)
        return jnp.stack([power.mean(range(latents.ndim - 1)) for power in (latents, latents**2)])

    found, iterator = [], iter(dataset)
    for number in range(_MEASURED // _BATCH):
        found.append(moments(next(iterator)["video"], jax.random.key(number)))
    iterator.close()
    return np.asarray(found, np.float64).mean(0)
