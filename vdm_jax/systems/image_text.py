"""An image-text pair, a small CLIP (Radford et al. 2021): what content conditions and priors take
where no published CLIP is at hand.

A convolutional image encoder is trained from the start. Of the text encoder, a frozen one, only a
linear head on the mean of its states is trained. Both are trained by the symmetric contrastive loss
on images and their captions (section 2.3).

`model.pair` is the config.json of the folder that `vdm convert --to=diffusers` writes, which
`model.image_encoder` of other systems then names.
"""

from pathlib import Path

import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.models.vision.image_text import ImageTextPair
from vdm_jax.stage.contrast import Contrast
from vdm_jax.stage.view import View
from vdm_jax.systems import vdm
from vdm_jax.systems.network import DTYPES, make_text_encoder
from vdm_jax.weights import image_text as weights

NAME = "image_text"


def build(config: ConfigDict) -> Contrast:
    """The pair and its loss. Raises ValueError where a value is not allowed."""
    model, size = config.model, config.data.image_size
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    network = weights.from_config(model.pair.to_dict(), Path("configuration"))
    encoder = make_text_encoder(config)
    if encoder is None or not encoder.embedding_width:
        raise ValueError(
            f"text.encoder = {config.text.encoder!r}: a pair takes a frozen text encoder, such as "
            "minilm"
        )
    return Contrast(
        network=network.clone(dtype=DTYPES[model.dtype]),
        view=View(shape=(config.data.num_frames, size, config.data.image_width or size, 3)),
        text_encoder=encoder,
    )


def default_config() -> ConfigDict:
    """Every field of a configuration."""
    base = vdm.default_config().to_dict()
    config = ConfigDict(
        {
            **base,
            "system": NAME,
            "model": {"pair": weights.config(ImageTextPair()), "dtype": "float32"},
        }
    )
    del config["process"]
    del config["sample"]
    config.data.num_frames = 1
    config.text.encoder = "minilm"
    return config.lock()


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes the pair as a folder, and returns the names of its parts. Raises FileExistsError."""
    weights.write_folder(folder, build(config).network, params, jnp.dtype(dtype))
    return ["the image-text pair"]
