"""Make-A-Video (Singer, Polyak, Hayes, Yin, An, Zhang, Hu, Yang, Ashual, Gafni, Parikh, Gupta &
Taigman 2022): text to video without pairs of a text and a video.

y = SR_h ∘ SR_l^t ∘ ↑F ∘ D^t ∘ P (text), equation 1. Each is a stage of a cascade:

- The prior P samples the embedding of an image from a text (section 3.1; unCLIP, Ramesh et al.
  2022, section 2.2). It alone is trained on texts.
- The decoder D makes an image from an embedding. With pseudo-3D convolutions and attention, whose
  parts over frames start as the identity, it becomes D^t, and makes a few frames of a clip (section
  3.2). It takes frames a second.
- The interpolation ↑F is D^t trained further with the known frames and a mask as more input
  channels. It makes the frames between key frames, or beyond them (section 3.3).
- SR_l^t adds pixels to whole clips. SR_h adds pixels to each frame alone, and begins with the same
  noise in all frames, so that they agree in detail (section 3.2).

P, D, SR_l and SR_h are trained on images first. Then D^t, ↑F and SR_l^t are trained on videos
without texts (section 3.4).

The paper does not say how large the networks are. Here D's noise levels and U-Net are those of
`latent_image`, so that D may start from such a model and z may be latents; the super-resolution
stages are those of `imagen_video` without text. Their layers over frames are convolutions that add
zero at first.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from vdm_jax.diffusion.process import make_process
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.condition import EmbeddingTokens, Number
from vdm_jax.models.condition.channels import KNOWN_FRAMES
from vdm_jax.models.prior import PriorTransformer, sizes_from
from vdm_jax.models.pseudo_3d import FrameAttentions, FrameConvolutions
from vdm_jax.stage.conditions.embedding import ImageEmbedding
from vdm_jax.stage.conditions.scalar import FrameRate
from vdm_jax.stage.conditions.video import KeyFrames
from vdm_jax.stage.embedding_space import EmbeddingSpace, EmbeddingStage
from vdm_jax.stage.image_encoder import IMAGE_ENCODER, ImageEncoder
from vdm_jax.stage.protocols import Condition, Space
from vdm_jax.stage.space import LatentSpace, PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems import latent_image, vdm
from vdm_jax.systems.composition import (
    FrozenPart,
    cascade_parts,
    make_view,
    stage_section,
    text_condition,
)
from vdm_jax.systems.image_embedding import (
    abstract_image_encoder,
    make_image_encoder,
    read_image_encoder,
)
from vdm_jax.systems.network import DTYPES, make_network, make_text_encoder
from vdm_jax.weights.scheduler import Scheduler

NAME = "make_a_video"
PRIOR, DECODER, INTERPOLATION, SUPER_RESOLUTION = PARTS = (
    "prior",
    "decoder",
    "interpolation",
    "super_resolution",
)
# The stages of the cascade, and what those that are inflated or trained further start from.
STAGES = ("prior", "decoder", "interpolation", "sr_l", "sr_h")
ORIGINS = {"decoder": "decoder_image", "interpolation": "decoder", "sr_l": "sr_l_image"}
SPACES = ("latents", "pixels")
_RGB = 3
# Paths of parameters that a model of texts, of images, or of clips lacks.
TEMPORAL = "_temporal/|^condition/fps_"
_EMBEDDING = "^condition/embedding_"
_KNOWN = "^masked_video_conv/"
_CLIP = "l"  # the published image encoder without a folder: ViT-L/14, unCLIP's
# Frames a second by their logarithm; at first without effect.
_FRAME_RATE = Number(key="fps", max_period=10.0, log2=True, zero=True)


def build(config: ConfigDict) -> Stage:
    """A stage of the cascade; `config.part` says which. Raises ValueError, FileNotFoundError."""
    builders: dict[str, Callable[[ConfigDict], Stage]] = {
        PRIOR: _prior,
        DECODER: _decoder,
        INTERPOLATION: _interpolation,
        SUPER_RESOLUTION: _super_resolution,
    }
    if config.part not in builders:
        raise ValueError(f"part = {config.part!r}: allowed are {', '.join(builders)}")
    return builders[config.part](config)


def _prior(config: ConfigDict) -> EmbeddingStage:
    """P: x̂ of the image's embedding from the states of a frozen text encoder."""
    model, data = config.model, config.data
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    encoder = make_text_encoder(config)
    if encoder is None or not encoder.embedding_width:
        raise ValueError(
            f"text.encoder = {config.text.encoder!r}: a prior takes a frozen text encoder"
        )
    shape = (data.num_frames, data.image_size, data.image_width or data.image_size, _RGB)
    network = PriorTransformer(
        sizes=sizes_from(model.prior.to_dict()),
        text_width=encoder.embedding_width,
        tokens=encoder.max_length,
        dtype=DTYPES[model.dtype],
        remat=model.remat,
    )
    return EmbeddingStage(
        network=network,
        process=make_process(config.process),
        space=EmbeddingSpace(data_shape=shape, encoder=_image_encoder(config)),
        view=View(shape=shape),
        conditions=(text_condition(encoder, config.train.cond_dropout),),
    )


def _decoder(config: ConfigDict) -> Stage:
    """D, and with `model.temporal` D^t."""
    return _decoder_stage(config, ())


def _interpolation(config: ConfigDict) -> Stage:
    """↑F: D^t with known frames. The embedding is that of the first of them."""
    model, frames = config.model, config.interpolation
    if not model.temporal:
        raise ValueError("model.temporal = False: interpolation needs layers over frames")
    space = _space(config, make_view(config, _RGB).shape)
    known = KeyFrames(
        shape=space.data_shape,
        z_shape=space.z_shape,
        kinds=tuple(frames.kinds),
        given=frames.given,
        skip=frames.skip,
    )
    return _decoder_stage(config, (known,))


def _decoder_stage(config: ConfigDict, known: tuple[KeyFrames, ...]) -> Stage:
    model, condition = config.model, config.condition
    network, encoder = latent_image.make_network(config), _image_encoder(config)
    view = make_view(config, _RGB)
    tokens = EmbeddingTokens(
        key=ImageEmbedding.name, count=model.embedding_tokens, width=network.settings.text_width
    )
    conditions: list[Condition] = [
        ImageEmbedding(
            encoder=encoder,
            drop=config.train.cond_dropout,
            frame=condition.frame,
            video=known[0].name if known else "",
        ),
        *known,
    ]
    if model.temporal:
        conditions.append(FrameRate(fps=view.fps, trained=view.rates))
    new = [_EMBEDDING, *([TEMPORAL] if model.temporal else []), *([_KNOWN] if known else [])]
    return Stage(
        network=network.clone(
            text="",
            conditions=(tokens, *([_FRAME_RATE] if model.temporal else [])),
            videos=(KNOWN_FRAMES,) if known else (),
            slots=_SLOTS if model.temporal else Slots(),
        ),
        process=latent_image.make_process(config),
        space=_space(config, view.shape),
        view=view,
        conditions=tuple(conditions),
        train_only=model.train_only,
        new="|".join(new),
    )


_SLOTS = Slots(after_convolution=FrameConvolutions(), after_attention=FrameAttentions())


def _super_resolution(config: ConfigDict) -> Stage:
    """SR_l and SR_h, of images, and SR_l^t, with `model.temporal` other than "none"."""
    network, _ = make_network(config, low_res=True)
    return Stage(
        network=network,
        **cascade_parts(config, frame_rate=False),
        new="_temporal/" if config.model.temporal != "none" else "",
    )


def _space(config: ConfigDict, shape: tuple[int, int, int, int]) -> Space:
    if (kind := config.model.space) not in SPACES:
        raise ValueError(f"model.space = {kind!r}: allowed are {', '.join(SPACES)}")
    if kind == "pixels":
        return PixelSpace(data_shape=shape)
    autoencoder = latent_image.make_autoencoder(config)
    return LatentSpace(data_shape=shape, autoencoder=autoencoder)


def _image_encoder(config: ConfigDict) -> ImageEncoder:
    return make_image_encoder(config.model.image_encoder, _CLIP)


def make_scheduler(config: ConfigDict) -> Scheduler | None:
    """The sampler of D^t and ↑F where it is published; the other stages have `config.sample`.
    Raises ValueError."""
    return latent_image.make_scheduler(config) if "scheduler" in config.model else None


def read_frozen(config: ConfigDict) -> dict[str, FrozenPart]:
    """The parameters that are not trained: the image encoder's and the autoencoder's. Raises
    ValueError, FileNotFoundError."""
    found = {}
    if "image_encoder" in config.model:
        found[IMAGE_ENCODER] = read_image_encoder(config.model.image_encoder)
    if config.model.get("space") == "latents":
        found |= latent_image.read_frozen(config)
    return found


def frozen_networks(config: ConfigDict) -> dict[str, Any]:
    """Shapes of `read_frozen`. No weights are read."""
    found: dict[str, Any] = {}
    if "image_encoder" in config.model:
        found[IMAGE_ENCODER] = abstract_image_encoder(config.model.image_encoder, _CLIP)
    if config.model.get("space") == "latents":
        found |= latent_image.frozen_networks(config)
    return found


def default_config(part: str, shape: tuple[int, int, int] = (1, 64, 64)) -> ConfigDict:
    """Every field of a stage's configuration, with values of the paper where it gives any.

    shape: (f, h, w) of what the stage makes; a prior's images have its (h, w). Raises ValueError
    for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"part = {part!r}: allowed are {', '.join(PARTS)}")
    is_decoder = part in (DECODER, INTERPOLATION)
    base = latent_image if is_decoder else vdm
    config = base.default_config().unlock()
    config.system, config.part = NAME, part
    frames, height, width = shape
    config.data.update({"num_frames": frames, "image_size": height, "image_width": width})
    config.data.name = "video_folder"
    # Only P takes texts.
    config.text.update({"encoder": "clip_l", "max_length": 77} if part == PRIOR else {})
    if part != PRIOR:
        config.text.encoder = "none"
        config.stage = stage_section(shape=shape)
    if part == PRIOR:
        config.model = ConfigDict(_PRIOR_MODEL)
        config.process.update({"prediction": "x", "loss": "x_mse"})
        config.sample.update({"sampler": "ddim", "steps": 64, "threshold": "none", "guidance": 2.0})
    elif part == SUPER_RESOLUTION:
        fields = {"temporal": "none", "temporal_levels": (0, 1, 2, 3)}
        fields["num_res_blocks"] = (2, 2, 2, 2)
        config.model = ConfigDict({**config.model.to_dict(), **fields})
        config.sample.update({"sampler": "ddim", "steps": 64})
    else:
        config.model = ConfigDict({**config.model.to_dict(), **_DECODER_MODEL})
        config.condition = ConfigDict({"frame": "first"})
        del config.train.control
    if part == INTERPOLATION:
        # The stage before makes `given` frames, `skip` frames apart (section 3.3).
        kinds = ("key_frames", "beginning", "end")
        config.interpolation = ConfigDict({"given": 16, "skip": 5, "kinds": kinds})
        config.model.temporal = True
    return config.lock()


_PRIOR_MODEL = {
    # See `blocks.encoder.Transformer`; unCLIP's (Ramesh et al. 2022, appendix C).
    "prior": {"width": 2048, "hidden": 8192, "num_layers": 24, "heads": 32, "activation": "gelu"},
    # A folder, see `image_embedding.make_image_encoder`; "" = the shapes of CLIP's ViT-L/14.
    "image_encoder": "",
    "dtype": "bfloat16",
    "remat": "none",
}
_DECODER_MODEL = {
    "image_encoder": "",
    # Tokens that the embedding is mapped to (unCLIP, section 2.1).
    "embedding_tokens": 4,
    # What z is, one of `SPACES`; latents are those of `model.autoencoder`.
    "space": "pixels",
    # Whether there are layers over frames, and the frame rate.
    "temporal": False,
    # A regular expression: the parameters that are trained; "" = all.
    "train_only": "",
}
