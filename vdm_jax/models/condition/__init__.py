"""How conditions enter a network: as a vector a frame, as tokens, or as further channels of z."""

from vdm_jax.models.condition.base import Cond, Embedder, require
from vdm_jax.models.condition.channels import (
    Concatenated,
    KnownFrames,
    NumberPlanes,
    RepeatedImage,
    VideoInput,
)
from vdm_jax.models.condition.embedding import ConditionEmbedding
from vdm_jax.models.condition.tokens import EmbeddingTokens, TextStates, Words
from vdm_jax.models.condition.vector import FramePositions, Label, Number, Numbers

__all__ = [
    "Concatenated",
    "Cond",
    "ConditionEmbedding",
    "Embedder",
    "EmbeddingTokens",
    "FramePositions",
    "KnownFrames",
    "Label",
    "Number",
    "NumberPlanes",
    "Numbers",
    "RepeatedImage",
    "TextStates",
    "VideoInput",
    "Words",
    "require",
]
