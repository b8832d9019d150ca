"""The clips of the gallery's sections: captions, rendered clips, samples, and masks."""

import argparse
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vdm_jax.cli import common

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import Model

STEPS = 64  # of every sampler but those of distilled models


def captions(count: int) -> list[str]:
    """Held-out captions of one object, from the first again if there are fewer than `count`."""
    from vdm_jax.data import shapes

    return list(itertools.islice(itertools.cycle(shapes.captions("held_out")), count))


def render(model: "Model", count: int) -> tuple["np.ndarray", Sequence[str]]:
    """Rendered clips, uint8 `n f h w c`, of held-out captions, and the captions."""
    from vdm_jax.evaluation import clips

    held_out = clips.from_rendered("moving_shapes", model.config.data.config, "held_out", count)
    return held_out.videos, held_out.captions


def key(options: argparse.Namespace, index: int):
    """The key of --seed with this index; 0 is the key of all noise that sections share."""
    import jax

    return jax.random.fold_in(jax.random.key(options.seed), index)


def sample(
    model: "Model",
    options: argparse.Namespace,
    prompts: Sequence[str],
    steps: int | None = None,
    **changes,
) -> "np.ndarray":
    """Videos, uint8 `n f h w c`, from the same noise in every call.

    steps: None = `STEPS`. changes: further fields of the sampler.
    """
    return model.sample(
        key(options, 0),
        prompts=prompts,
        steps=steps or STEPS,
        batch_size=len(prompts),
        **changes,
    )


def complete(
    model: "Model",
    options: argparse.Namespace,
    index: int,
    videos: "np.ndarray",
    captions: Sequence[str],
    known: "np.ndarray",
) -> tuple["np.ndarray", "np.ndarray"]:
    """Samples what is unknown of `videos`, uint8 `n f h w c`, by a model trained with masks.

    known: bool, broadcast to `f h w`. Returns the given pixels, grey where unknown, and the
    samples. Raises ValueError if the model was not trained with masks.
    """
    from vdm_jax.pipelines import editing

    sampler = model.sampler(steps=STEPS, method="trained", batch_size=len(captions))
    sample = editing.inpaint(
        sampler, model.params, key(options, index), videos, captions, known=known
    )
    return common.greyed(videos, known), sample


def first_frame(model: "Model") -> "np.ndarray":
    """bool (f, 1, 1): True in the first frame."""
    import numpy as np

    return (np.arange(model.stage.video_shape[0]) == 0)[:, None, None]


def middle(model: "Model") -> "np.ndarray":
    """bool (1, h, w): True in the middle quarter of the frame's area."""
    import numpy as np

    _, height, width, _ = model.stage.video_shape
    inside = np.zeros((1, height, width), bool)
    inside[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return inside
