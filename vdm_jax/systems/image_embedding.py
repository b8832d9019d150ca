"""The frozen image encoder of a configuration: a published CLIP, or an image-text pair."""

from pathlib import Path

from vdm_jax.models.vision.clip import SIZES, CLIPVisionEncoder
from vdm_jax.models.vision.image_text import ConvolutionalEncoder
from vdm_jax.models.vision.squash import Squash
from vdm_jax.stage.image_encoder import ImageEncoder
from vdm_jax.systems.composition import FrozenPart
from vdm_jax.weights import clip, clip_inputs, image_text, published

_HALF = (0.5, 0.5, 0.5)  # mean and deviation by which images in [-1, 1] stay as they are


def make_image_encoder(folder: str, size: str = "h") -> ImageEncoder:
    """The encoder of a folder: that of an image-text pair, or one that holds image_encoder/ and
    feature_extractor/ as published.

    folder: also the name of one that ships with the package; "" = the shapes of a published CLIP.
    size: of that, of `clip.SIZES`. Raises ValueError, FileNotFoundError.
    """
    if not folder:
        return ImageEncoder(network=CLIPVisionEncoder(SIZES[size]))
    path = part_folder(folder, "image_encoder")
    if image_text.is_pair(path):
        sizes = image_text.read_config(path).config
        prepare = Squash(size=sizes.image_size, mean=_HALF, deviation=_HALF)
        return ImageEncoder(network=ConvolutionalEncoder(sizes), prepare=prepare)
    network = clip.read_config(path / "image_encoder")
    if not isinstance(network, CLIPVisionEncoder) or not network.config.projection:
        raise ValueError(f"{path / 'image_encoder'}: must be a CLIPVisionModelWithProjection")
    found = clip_inputs.read_preprocessing(path / "feature_extractor")
    prepare = Squash(size=network.config.image_size, mean=found.mean, deviation=found.deviation)
    return ImageEncoder(network=network, prepare=prepare)


def read_image_encoder(folder: str) -> FrozenPart:
    """The parameters of the encoder of a folder. Raises ValueError, FileNotFoundError."""
    path = part_folder(folder, "image_encoder")
    if image_text.is_pair(path):
        network, params = image_text.read_folder(path)
        return FrozenPart(params["vision"], image_text.abstract_params(network)["vision"])
    encoder, params = clip.read_folder(path / "image_encoder")
    return FrozenPart(params, clip.abstract_params(encoder))


def abstract_image_encoder(folder: str, size: str = "h") -> FrozenPart:
    """Shapes of `read_image_encoder`. No weights are read. Arguments and errors as of
    `make_image_encoder`."""
    network = make_image_encoder(folder, size).network
    if isinstance(network, ConvolutionalEncoder):
        pair = image_text.ImageTextPair(network.config)
        return FrozenPart(None, image_text.abstract_params(pair)["vision"])
    return FrozenPart(None, clip.abstract_params(network))


def part_folder(name: str, field: str) -> Path:
    """The folder that a field of `model` names, also one that ships with the package. Raises
    ValueError."""
    if not name:
        raise ValueError(f"model.{field} = '': must name a folder of published files")
    return published.find_folder(name)
