"""Gen-1 (Esser, Chiu, Atighehchian, Granskog & Germanidis 2023, "Structure and content-guided video
synthesis with diffusion models").

A latent image model becomes a model of videos with the structure of one video and the content of an
image or a text. After each convolution over space stands one over frames, and after each attention
over space one over frames with a learned encoding of each frame's number (section 3.2). An image is
a video of one frame.

Structure s is depth, blurred and shrunk t_s times, encoded by the autoencoder and concatenated to z
with t_s as four more channels (section 3.3). Content c is the embedding of an image, a random frame
in training, to which pixels attend in the place of a text. A prior of its own maps a text to such
an embedding (`make_a_video`'s is one).

Four phases of training follow one another, each a configuration (section 3.5):

1. The image model is trained on to embeddings in the place of texts, on images
   (`model.temporal = False`).
2. Layers over frames are added. Clips are trained with images beside them.
3. Structure is added at t_s = 0 (`model.structure = True`, `model.max_level = 0`).
4. t_s is drawn from 0 to 7 (`model.max_level = 7`).

Samples are guided by ω towards the content and by ω_t from the network applied to each frame alone
towards the network applied to the clip (section 3.4, `stage.guidance.Temporal`).

The paper does not give the shrinking of a level, the start of the new layers, the batch, nor the
chance of dropping the content: they are ours.
"""

from typing import Any

from ml_collections import ConfigDict

from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.condition import Concatenated, EmbeddingTokens, NumberPlanes
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.models.pseudo_3d import FrameConvolutions
from vdm_jax.models.single_frames import EncodedFrameAttentions, SingleFrames
from vdm_jax.stage.conditions.embedding import ImageEmbedding
from vdm_jax.stage.conditions.structure import Structure
from vdm_jax.stage.depth import DEPTH_ESTIMATOR, DepthEstimator
from vdm_jax.stage.image_encoder import IMAGE_ENCODER
from vdm_jax.stage.space import LatentSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems import image_embedding, latent_image
from vdm_jax.systems.composition import FrozenPart
from vdm_jax.systems.latent_image import make_scheduler
from vdm_jax.weights import depth_anything

__all__ = ["NAME", "build", "default_config", "frozen_networks", "make_scheduler", "read_frozen"]
NAME = "gen1"
_LEVEL_CHANNELS = 4  # that hold t_s
# What the model that a phase starts from may lack, and where it has fewer inputs.
_NEW = "temporal|^condition/embedding_"
_WIDER = "^input_conv/kernel$"


def build(config: ConfigDict) -> Stage:
    """The model of a phase: U-Net, process, latent space and conditions. Raises ValueError,
    FileNotFoundError."""
    model, data, network = config.model, config.data, latent_image.make_network(config)
    autoencoder = latent_image.make_autoencoder(config)
    width = data.image_width or data.image_size
    shape = (data.num_frames, data.image_size, width, autoencoder.in_channels)
    space = LatentSpace(data_shape=shape, autoencoder=autoencoder, decode_frames=1)
    conditions, videos = [_content(config, network)], ()
    if model.structure:
        conditions.insert(0, _structure(config, space))
        videos = (
            Concatenated(key="structure"),
            NumberPlanes(key="structure_level", count=_LEVEL_CHANNELS),
        )
    _check_inputs(config, network, space)
    tokens = {"text": "image_embedding"}
    if model.content_tokens:
        width = network.settings.text_width
        embed = EmbeddingTokens(key="image_embedding", count=model.content_tokens, width=width)
        tokens = {"text": "", "conditions": (embed,)}
    slots = _slots(config.temporal.max_frames) if model.temporal else Slots()
    return Stage(
        network=network.clone(**tokens, videos=videos, slots=slots),
        process=latent_image.make_process(config),
        space=space,
        view=View(shape=shape),
        conditions=tuple(conditions),
        train_only=config.model.train_only,
        new=_NEW,
        wider=_WIDER if model.structure else "",
    )


def _slots(max_frames: int) -> Slots:
    """The layers over frames (section 3.2); the network starts as the image model."""
    return Slots(
        after_convolution=SingleFrames(slot=FrameConvolutions()),
        in_transformer=SingleFrames(slot=EncodedFrameAttentions(max_frames=max_frames)),
    )


def _content(config: ConfigDict, network: LatentUNet) -> ImageEmbedding:
    """c: the embedding of a random frame (section 3.3). Raises ValueError where pixels cannot
    attend to it."""
    encoder = image_embedding.make_image_encoder(config.model.image_encoder, "l")
    if not config.model.content_tokens and encoder.width != network.settings.text_width:
        raise ValueError(
            f"model.unet.cross_attention_dim = {network.settings.text_width}: embeddings of "
            f"model.image_encoder = {config.model.image_encoder!r} have {encoder.width} features; "
            "set model.content_tokens to the number of tokens that they are mapped to"
        )
    return ImageEmbedding(encoder=encoder, drop=config.train.cond_dropout, frame="random")


def _structure(config: ConfigDict, space: LatentSpace) -> Structure:
    """s: depth of the data, or of an estimator, by level (section 3.3)."""
    return Structure(
        shape=space.data_shape,
        z_shape=space.z_shape,
        most=config.model.max_level,
        estimator=make_estimator(config.model.depth) if config.model.depth else None,
    )


def make_estimator(folder: str) -> DepthEstimator:
    """The depth estimator of a published folder. Raises ValueError, FileNotFoundError."""
    return DepthEstimator(
        network=depth_anything.read_config(folder),
        prepare=depth_anything.read_preprocessing(folder),
    )


def _check_inputs(config: ConfigDict, network: LatentUNet, space: LatentSpace) -> None:
    """Raises ValueError where the first convolution has another number of inputs."""
    channels = space.autoencoder.latent_channels
    wanted = 2 * channels + _LEVEL_CHANNELS if config.model.structure else channels
    if network.in_channels != wanted:
        raise ValueError(
            f"model.unet.in_channels = {network.in_channels}: must be {wanted} with "
            f"model.structure = {config.model.structure}"
        )


def read_frozen(config: ConfigDict) -> dict[str, FrozenPart]:
    """The parameters that are not trained: of the autoencoder, the image encoder and, if there is
    one, the depth estimator. Raises ValueError, FileNotFoundError."""
    found = latent_image.read_frozen(config)
    found[IMAGE_ENCODER] = image_embedding.read_image_encoder(config.model.image_encoder)
    if config.model.structure and config.model.depth:
        network, _, params = depth_anything.read_folder(config.model.depth)
        found[DEPTH_ESTIMATOR] = FrozenPart(params, depth_anything.abstract_params(network))
    return found


def frozen_networks(config: ConfigDict) -> dict[str, Any]:
    """Shapes of `read_frozen`. No weights are read."""
    found: dict[str, Any] = dict(latent_image.frozen_networks(config))
    encoder = image_embedding.abstract_image_encoder(config.model.image_encoder, "l")
    found[IMAGE_ENCODER] = encoder
    if config.model.structure and config.model.depth:
        network = make_estimator(config.model.depth).network
        found[DEPTH_ESTIMATOR] = FrozenPart(None, depth_anything.abstract_params(network))
    return found


def default_config() -> ConfigDict:
    """Every field of a configuration: Stable Diffusion 1.5's sizes in phase 4, with clips of 8
    frames of 256 x 448 pixels (section 3.5)."""
    config = latent_image.default_config().unlock()
    config.system = NAME
    config.model.unet.in_channels = 2 * config.model.unet.out_channels + _LEVEL_CHANNELS
    config.model.update(
        {
            # The folder of the image encoder, see `image_embedding.make_image_encoder`, and to how
            # many tokens its embedding is mapped; 0 = it is the one token itself.
            "image_encoder": "",
            "content_tokens": 0,
            # Whether there are layers over frames, and whether structure is an input.
            "temporal": True,
            "structure": True,
            # The highest t_s of training.
            "max_level": 7,
            # The folder of the depth estimator; "" = the data have depth (data.extras).
            "depth": "",
            # The model that maps texts to embeddings; "" = none, and content is an image.
            "prior": "",
            # Parameters whose path this regular expression matches are trained; "" = all, as in
            # the paper.
            "train_only": "",
        }
    )
    # The longest clip that can be sampled: frames with a learned encoding.
    config.temporal = ConfigDict({"max_frames": 8})
    config.text.update({"encoder": "none"})  # the content takes its place
    config.data.update({"num_frames": 8, "image_size": 256, "image_width": 448})
    config.train.cond_dropout = 0.1
    config.train.learning_rate = 1e-5
    config.sample.update({"guidance": 7.5, "temporal": 1.0, "structure": 0.0})
    return config.lock()
