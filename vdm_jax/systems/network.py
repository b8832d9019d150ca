"""The network of a configuration: its strings become modules here."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from vdm_jax.models import condition
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.spatial import SpatialAttention
from vdm_jax.models.blocks.temporal import TemporalAttention, TemporalConvolution
from vdm_jax.models.condition import channels, vector
from vdm_jax.models.space_time_unet import SpaceTimeUNet
from vdm_jax.models.text.words import TextEncoder, WordEncoder
from vdm_jax.models.unet import Input, Output, UNet
from vdm_jax.models.video_unet import VideoUNet
from vdm_jax.stage import frozen_text

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SPATIAL: dict[str, type[nn.Module] | None] = {"softmax": SpatialAttention, "none": None}
TEMPORAL: dict[str, type[nn.Module] | None] = {
    "attention": TemporalAttention,
    "convolution": TemporalConvolution,
    "none": None,
}
SPACE_TIME = "space_time"


def default_model() -> dict[str, Any]:
    """The section `model` of a configuration.

    A configuration may also have the fields of `_TIME`. Fields that are not explained here have the
    names and meanings of the fields of `UNet`, `BlockSettings`, `Input` and `VideoUNet`.
    """
    return {
        "channels": 128,
        "channel_mult": (1, 2, 4, 8),
        "num_res_blocks": 2,
        "attention_levels": (1, 2, 3),
        "head_dim": 64,
        "patch_size": 1,
        "out_channels": 3,
        "norm_groups": 32,
        "dropout": 0.0,
        # softmax, or none: with norm_groups 0 the network is then fully convolutional.
        "spatial_attention": "softmax",
        "skips": "block",
        "coordinates": False,
        # See `Output.skip` and `Output.gate`.
        "output_skip": False,
        "output_gate": False,
        "embedding_dim": 1024,
        # See `TextStates.kernel`.
        "text_kernel": 0,
        "num_labels": 0,
        # See `FramePositions`.
        "frame_positions": False,
        # Whether the guidance scale is a condition: for networks distilled from guided ones.
        "guidance_embedding": False,
        "dtype": "bfloat16",
        "remat": "none",
    }


# What mixes frames: attention, convolution, none, or space_time, which makes a `SpaceTimeUNet`.
_TIME = {
    "temporal": "attention",
    "temporal_levels": None,
    "temporal_resize": (),
    "temporal_depth": 1,
}


def make_network(
    config: ConfigDict, *, low_res: bool = False, masked_video: bool = False, fps: bool = False
) -> tuple[VideoUNet, TextEncoder | None]:
    """The network of `config.model` and `config.text`, and the text encoder that goes with it.

    Args:
      low_res: whether it takes a coarser video, and the log-SNR of the noise on it.
      masked_video: whether it takes the known part of the video.
      fps: whether it takes the frame rate.

    Raises ValueError naming a field that is unknown or has a value that is not allowed.
    """
    fields = default_model() | _TIME
    if unknown := [name for name in config.model if name not in fields]:
        raise ValueError(f"model.{unknown[0]}: unknown; allowed are {', '.join(fields)}")
    model = ConfigDict(fields | config.model.to_dict())
    text_encoder = make_text_encoder(config)
    conditions = [
        *([vector.GUIDANCE] if model.guidance_embedding else []),
        *([vector.LOW_RES_NOISE] if low_res else []),
        *([vector.FRAME_RATE] if fps else []),
        *_text_conditions(text_encoder, model.text_kernel),
        *([condition.Label(num_labels=model.num_labels)] if model.num_labels else []),
        *([condition.FramePositions()] if model.frame_positions else []),
    ]
    videos = [
        *([channels.LOW_RES] if low_res else []),
        *([channels.KNOWN_FRAMES] if masked_video else []),
    ]
    parts = {
        "unet": UNet(**_same_fields(UNet, model)),
        "settings": BlockSettings(**_same_fields(BlockSettings, model)),
        "input": Input(coordinates=model.coordinates),
        "output": Output(
            channels=model.out_channels, skip=model.output_skip, gate=model.output_gate
        ),
        "conditions": tuple(conditions),
        "embedding_dim": model.embedding_dim,
        "videos": tuple(videos),
        "attention_levels": model.attention_levels,
        "spatial": _choose(SPATIAL, model, "spatial_attention"),
        "temporal_levels": model.temporal_levels,
        "dtype": _choose(DTYPES, model, "dtype"),
        "remat": model.remat,
    }
    if model.temporal == SPACE_TIME:
        resize, depth = model.temporal_resize, model.temporal_depth
        network = SpaceTimeUNet(**parts, temporal_resize=resize, temporal_depth=depth)
    else:
        temporal = _choose(TEMPORAL, model, "temporal", further=(SPACE_TIME,))
        network = VideoUNet(**parts, temporal=temporal)
    return network, text_encoder


def is_offloaded(config: ConfigDict) -> bool:
    """Whether frozen parameters lie in the host's memory. Earlier configurations lack the field."""
    return bool(config.get("mesh", {}).get("offload", False))


def make_text_encoder(config: ConfigDict) -> TextEncoder | None:
    """The text encoder of `config.text`; None if there is none. Raises ValueError."""
    text = config.text
    if text.encoder == "none":
        return None
    if text.encoder in frozen_text.ENCODERS:
        return frozen_text.make_frozen_text_encoder(text.to_dict(), offload=is_offloaded(config))
    if text.encoder != "words":
        allowed = ", ".join(("none", "words", *frozen_text.ENCODERS))
        raise ValueError(f"text.encoder = {text.encoder!r}: allowed are {allowed}")
    return WordEncoder(
        text.vocabulary, max_length=text.max_length, vocabulary_size=text.vocabulary_size
    )


def _text_conditions(
    encoder: TextEncoder | None, kernel: int
) -> list[condition.Words | condition.TextStates]:
    if encoder is None:
        return []
    size, width = encoder.vocab_size, encoder.embedding_width
    if bool(size) == bool(width):
        raise ValueError(f"vocab_size = {size}, embedding_width = {width}: one must be 0")
    if width:
        return [condition.TextStates(width=width, kernel=kernel)]
    return [condition.Words(vocab_size=size, max_length=encoder.max_length, kernel=kernel)]


def _same_fields(part: type, model: ConfigDict) -> dict[str, Any]:
    """The fields of a dataclass that the section has by the same name."""
    return {field.name: model[field.name] for field in dataclasses.fields(part)}


def _choose(
    choices: dict[str, Any], model: ConfigDict, field: str, further: tuple[str, ...] = ()
) -> Any:
    if model[field] not in choices:
        allowed = ", ".join((*choices, *further))
        raise ValueError(f"model.{field} = {model[field]!r}: allowed are {allowed}")
    return choices[model[field]]
