"""Gen-1 as users call it: videos with the structure of others, and the content of an image or of a
text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree, UInt8

from vdm_jax.pipelines import editing, filling
from vdm_jax.pipelines.model import Model
from vdm_jax.stage.conditions.embedding import ImageEmbedding
from vdm_jax.stage.conditions.structure import Structure
from vdm_jax.stage.sampler import Sampler
from vdm_jax.stage.stage import Stage

Content = UInt8[np.ndarray, "n h2 w2 3"] | Float[np.ndarray, "n 1 1 1 d"]


def check(stage: Stage) -> Structure:
    """The condition of structure of a model. Raises ValueError for a model without one."""
    structure = stage.find(Structure)
    if structure is None or stage.find(ImageEmbedding) is None:
        raise ValueError(
            "restructure: this model takes no structure and content as conditions; choose one that "
            "a configuration of gen1 trained, phase 3 or 4"
        )
    return structure


def restructure(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    depth: UInt8[np.ndarray, "n f h w 1"],
    content: Content,
    *,
    videos: UInt8[np.ndarray, "n f h w 3"] | None = None,
    mask: Bool[np.ndarray, "#f h w"] | None = None,
    progress: filling.Progress | None = None,
) -> UInt8[np.ndarray, "n f h w 3"]:
    """Videos with the structure of `depth` and a content.

    Args:
      sampler: its settings `structure`, t_s, and its guidance, ω and ω_t, say how.
      depth: near bright, of the model's size (`data.depth`).
      content: an image for each video, of any size, or what a prior samples (`embeddings`).
      videos, mask: where the mask is False, in one or all frames, the result is as `videos`.

    Raises ValueError for another model, and for inputs that do not fit.
    """
    check(sampler.stage)
    if (videos is None) != (mask is None):
        raise ValueError("videos and mask: give both, or neither")
    prompts = [""] * len(depth)
    inputs = {Structure.name: depth, ImageEmbedding.name: content}
    if videos is not None and mask is not None:
        return editing.inpaint(
            sampler, params, key, videos, prompts, known=~mask, inputs=inputs, progress=progress
        )
    parts: list[np.ndarray] = []
    for part in sampler.stream(params, key, prompts, inputs=inputs):
        parts.append(part)
        if progress is not None:
            progress(sum(map(len, parts)), len(prompts))
    return np.concatenate(parts)


def embeddings(
    prior: Model, stage: Stage, key: Key[Array, ""], prompts: Sequence[str]
) -> Float[np.ndarray, "n 1 1 1 d"]:
    """The embeddings of images that fit texts, sampled by a prior. Raises ValueError where it
    samples something else than `stage` takes."""
    width = stage.find(ImageEmbedding).encoder.width
    if tuple(prior.stage.z_shape) != (1, 1, 1, width):
        raise ValueError(
            f"prior: samples {list(prior.stage.z_shape)} (frames, height, width, features), and "
            f"this model takes embeddings of {width} features, [1, 1, 1, {width}]"
        )
    return prior.sample(key, prompts=list(prompts)).astype(np.float32)
