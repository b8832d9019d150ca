"""How well a caption fits the action in a clip, by what I3D takes it for and what sentences mean.

A clip is the expectation, under I3D's class probabilities, of a sentence embedding of the names of
Kinetics' classes; its similarity to a caption is their cosine. This is no CLIP: it knows of a video
nothing but which of 400 human actions it may show, so colours, shapes, places, numbers and styles
do not count, and captions that differ by them only are the same to it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from vdm_jax.evaluation import kinetics
from vdm_jax.evaluation.moments import check_pair
from vdm_jax.models.text import minilm
from vdm_jax.weights import fetch
from vdm_jax.weights import minilm as minilm_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences:
    """What embeds texts.

    Attributes:
      encode: texts to one row each, float [n, d].
      protocol: what the rows depend on, as JSON.
    """

    encode: Callable[[Sequence[str]], Float[np.ndarray, "n d"]]
    protocol: Mapping[str, Any]


def load_sentences() -> Sentences:
    """all-MiniLM-L6-v2 (`models/minilm.py`). Raises as `minilm_weights.load_weights` does."""
    loaded = minilm_weights.load_weights()
    protocol = {"text": "all-MiniLM-L6-v2", "text_weights": fetch.weights_hash(loaded.params)}
    return Sentences(encode=minilm.SentenceEncoder(*loaded), protocol=protocol)


def similarities(
    logits: Shaped[np.ndarray, "n classes"],
    names: Shaped[np.ndarray, "classes d"],
    captions: Shaped[np.ndarray, "m d"],
) -> Float[np.ndarray, "n m"]:
    """The cosine of every clip, Σ_k p(k | clip) names_k, and every caption, float64.

    names, captions: embeddings, of any length but 0. Raises ValueError for shapes that do not fit
    and values that are not finite.
    """
    names, captions = check_pair(names, captions, least=1)
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or logits.shape[1] != len(names) or not np.isfinite(logits).all():
        raise ValueError(f"logits {list(logits.shape)}: must be [n, {len(names)}] and finite")
    odds = np.exp(logits - logits.max(1, keepdims=True))
    clips = (odds / odds.sum(1, keepdims=True)) @ names
    return _unit(clips) @ _unit(captions).T


class Match(NamedTuple):
    """Captions and clips.

    Attributes:
      own: similarity of each clip to its caption, float64 [n].
      others: mean similarity to the other captions; NaN where there is only one.
      retrieved: share of clips that no other caption fits as well as their own; NaN likewise.
      captions: how many different ones there are: by chance, one clip in so many is retrieved.
    """

    own: Float[np.ndarray, "n"]
    others: float
    retrieved: float
    captions: int


def match(
    logits: Shaped[np.ndarray, "n 400"],
    captions: Sequence[str],
    encode: Callable[[Sequence[str]], Float[np.ndarray, "n d"]],
) -> Match:
    """Clips, by I3D's logits, and their captions. Raises ValueError for an empty caption."""
    if len(captions) != len(logits) or not all(text.strip() for text in captions):
        raise ValueError("every sample needs a caption that is not empty")
    different = list(dict.fromkeys(captions))
    places = np.array([different.index(text) for text in captions])
    found = similarities(logits, encode(kinetics.class_names()), encode(different))
    own = np.take_along_axis(found, places[:, None], axis=1)[:, 0]
    count = len(different)
    if count == 1:
        return Match(own, float("nan"), float("nan"), count)
    others = (found.sum() - own.sum()) / (len(own) * (count - 1))
    retrieved = kinetics.among_first(found, places, 1).mean()
    return Match(own, float(others), float(retrieved), count)


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
