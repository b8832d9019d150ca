"""A condition is added to a network by a class of its own, and by nothing else."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models import layers
from vdm_jax.models.condition import ConditionEmbedding, Embedder, FramePositions, Label
from vdm_jax.models.condition.base import Embedded, require
from vdm_jax.models.condition.vector import FRAME_RATE, GUIDANCE, LOW_RES_NOISE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """The camera's pose, three numbers."""

    PER_FRAME: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("camera",)

    def __call__(self, module, inputs):
        (pose,) = require(inputs.cond, "camera")
        return Embedded(
            vector=layers.dense(module.dim, dtype=module.dtype, name="pose")(pose)[:, None]
        )


LOGSNR = jnp.array([1.0, -1.0])
CONDITIONS = {
    "guidance": jnp.array([1.0, 2.0]),
    "low_res_logsnr": jnp.array([3.0, 4.0]),
    "fps": jnp.array([6.0, 12.0]),
    "label": jnp.array([0, 1]),
    "image_label": jnp.array([[1], [2]]),
    "camera": jnp.ones((2, 3)),
}
EMBEDDING = ConditionEmbedding(
    8, (GUIDANCE, LOW_RES_NOISE, FRAME_RATE, Label(num_labels=3), Camera(), FramePositions())
)
FRAMES, IMAGES = 3, 1


@pytest.fixture(scope="module")
def embed():
    """The compiled embedding with random parameters."""
    shapes = jax.eval_shape(
        lambda cond: EMBEDDING.init(jax.random.key(0), LOGSNR, cond, FRAMES, IMAGES), CONDITIONS
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)
    assert params["params"].keys() == {
        *(f"{name}_{end}" for name in ("logsnr", "guidance", "low_res", "fps", "mix")
          for end in ("in", "out")),
        "labels", "null_label", "pose", "frame_position", "image_position",
    }  # fmt: skip

    def run(cond):
        vectors, tokens, mask = EMBEDDING.apply(params, LOGSNR, cond, FRAMES, IMAGES)
        assert tokens is None and mask is None
        return vectors.reshape(2, FRAMES, 8)

    return jax.jit(run)


def test_embedders_satisfy_the_protocol():
    assert all(isinstance(embedder, Embedder) for embedder in EMBEDDING.embedders)


@pytest.mark.parametrize("key", CONDITIONS)
def test_every_condition_reaches_the_vectors_of_its_own_clip(embed, key):
    changed = dict(CONDITIONS) | {key: CONDITIONS[key].at[0].add(1)}
    moved = jnp.abs(embed(changed) - embed(CONDITIONS)).max(-1) > 1e-4
    clip = [key != "image_label"] * (FRAMES - IMAGES)
    np.testing.assert_array_equal(moved[0], [*clip, key != "label"])
    assert not moved[1].any()


def test_frames_of_a_clip_differ_by_their_positions_only(embed):
    vectors = embed(CONDITIONS)
    assert jnp.abs(vectors[:, 0] - vectors[:, 1]).max() > 1e-3


def test_a_condition_that_is_not_kept_is_replaced(embed):
    keep = jnp.array([False, True])
    dropped = CONDITIONS | {"keep_text": keep, "keep_label": keep}
    other = dropped | {"label": jnp.array([2, 1]), "image_label": jnp.array([[0], [2]])}
    np.testing.assert_array_equal(embed(dropped), embed(other))
    assert jnp.abs(embed(dropped) - embed(CONDITIONS))[0].max() > 1e-3
    # The camera, which is no droppable condition, still acts.
    turned = dropped | {"camera": jnp.zeros((2, 3))}
    assert jnp.abs(embed(turned) - embed(dropped))[0].max() > 1e-3


def test_a_missing_condition_is_named(embed):
    with pytest.raises(ValueError, match="cond lacks camera; it has: fps, guidance, "):
        embed({key: value for key, value in CONDITIONS.items() if key != "camera"})
    with pytest.raises(ValueError, match="cond lacks image_label"):
        embed({key: value for key, value in CONDITIONS.items() if key != "image_label"})
