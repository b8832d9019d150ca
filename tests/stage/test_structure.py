"""Structure: depth that is coarse by level, from the data or from an estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.vision.depth_anything import DepthAnything, DepthAnythingConfig, DepthImages
from vdm_jax.stage import depth as depths
from vdm_jax.stage.conditions import structure
from vdm_jax.stage.conditions.structure import Structure
from vdm_jax.stage.protocols import Encoding, Example
from vdm_jax.stage.space import PixelSpace
from vdm_jax.weights import depth_anything

SHAPE = (2, 8, 12, 3)
CONDITION = Structure(shape=SHAPE, z_shape=SHAPE)
KEY = jax.random.key(0)


def coarse_row(row, level):
    """A row blurred and shrunk step by step, and enlarged again."""
    length, small = len(row), row
    for step in range(1, level + 1):
        padded = np.pad(small, 1, mode="edge")
        small = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        small = resampled(small, max(1, round(length * 0.5 ** (step / 2))))
    return resampled(small, length)


def resampled(row, size):
    """Linear between the middles of pixels."""
    return np.interp((np.arange(size) + 0.5) * len(row) / size - 0.5, np.arange(len(row)), row)


def test_each_level_blurs_and_shrinks_once_more():
    rng = np.random.default_rng(0)
    depth = rng.normal(size=(8, *SHAPE[:3], 1)).astype(np.float32)
    found = np.asarray(structure.coarsened(jnp.asarray(depth), jnp.arange(8)))
    np.testing.assert_array_equal(found[0], depth[0])
    for level in (1, 4, 7):
        wanted = np.apply_along_axis(coarse_row, 1, depth[level].astype(float), level)
        wanted = np.apply_along_axis(coarse_row, 2, wanted, level)
        np.testing.assert_allclose(found[level], wanted, atol=1e-5)
    spread = found.std(axis=(2, 3)).mean(axis=(1, 2))
    assert (np.diff(spread) < 0).all() and spread[7] < 0.3 * spread[0]
    np.testing.assert_allclose(structure.coarsened(jnp.ones(depth.shape), jnp.arange(8)), 1, 1e-6)


def make_example(batch, images=0, frozen=None, encode=None):
    clip = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, *SHAPE)), jnp.float32)
    beside = clip[:, :images] if images else None
    space = PixelSpace(data_shape=SHAPE)
    encode = encode or Encoding(space, frozen or {})
    return Example(batch, clip, beside, jnp.ones(3), encode)


def test_the_batchs_depth_is_encoded_at_a_level_that_is_drawn():
    rng = np.random.default_rng(0)
    batch = {
        "depth": rng.integers(0, 256, (3, *SHAPE[:3], 1), np.uint8),
        "image_depth": rng.integers(0, 256, (3, 1, *SHAPE[1:3], 1), np.uint8),
    }
    example = make_example(batch, images=1, encode=lambda video: 2 * video)
    found = CONDITION.example(example, KEY)
    whole = np.concatenate([batch["depth"], batch["image_depth"]], axis=1) / 127.5 - 1
    level = found["structure_level"].astype(int)
    wanted = 2 * np.asarray(structure.coarsened(jnp.asarray(whole, jnp.float32), level))
    np.testing.assert_allclose(found["structure"], np.repeat(wanted, 3, -1), atol=1e-5)
    for name, leaf in CONDITION.cond_shapes(3, 1).items():
        assert found[name].shape == leaf.shape and found[name].dtype == leaf.dtype
    assert CONDITION.batch_shapes(3, 1).keys() == batch.keys()
    many = {"depth": np.zeros((64, *SHAPE[:3], 1), np.uint8)}
    levels = CONDITION.example(make_example(many), KEY)["structure_level"]
    assert set(np.asarray(levels)) == set(range(8))
    fixed = Structure(shape=SHAPE, z_shape=SHAPE, most=0)
    assert not fixed.example(make_example(many), KEY)["structure_level"].any()
    with pytest.raises(ValueError, match=r"batch lacks depth, .* set data.extras = \('depth',\)"):
        CONDITION.example(make_example({}), KEY)


def test_sampling_follows_the_level_that_is_set():
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (1, *SHAPE[:3], 1), np.uint8)
    cond = jax.tree.map(jnp.asarray, CONDITION.encode(given, 1))
    found = [CONDITION.begin(cond, 1, KEY, s, lambda v: v) for s in ({}, {"structure": 5.0})]
    np.testing.assert_allclose(found[0]["structure"][..., :1], given / 127.5 - 1, atol=1e-6)
    assert found[1]["structure_level"] == 5 and found[1]["structure"].std() < 0.3
    assert CONDITION.null(found[0]) is found[0]
    for setting, message in (
        (8.0, "structure = 8: must be a whole number from 0 to 7"),
        (1.5, "structure = 1.5: must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            CONDITION.check({"structure": setting})
    with pytest.raises(ValueError, match="this model follows the depth of a video"):
        CONDITION.encode(None, 1)
    with pytest.raises(ValueError, match=r"uint8\[1, 1, 8, 12, 1\] was given, .* \[n, 2, 8, 12, 1"):
        CONDITION.encode(given[:, :1], 1)
    with pytest.raises(ValueError, match="most = 8: must be from 0 to 7"):
        Structure(shape=SHAPE, z_shape=SHAPE, most=8)


SIZES = Transformer(width=8, hidden=8, num_layers=2, heads=2, activation="gelu")
NETWORK = DepthAnything(
    DepthAnythingConfig(
        transformer=SIZES,
        taps=(1, 2),
        image_size=8,
        patch_size=4,
        neck_widths=(4, 4),
        factors=(2.0, 1.0),
        fusion_width=4,
        head_width=4,
    )
)
ESTIMATOR = depths.DepthEstimator(
    network=NETWORK, prepare=DepthImages(size=(8, 8), keep_ratio=True, multiple=4)
)


@pytest.fixture(scope="module")
def frozen():
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.uniform(-0.4, 0.6, leaf.shape), jnp.float32)

    return {depths.DEPTH_ESTIMATOR: jax.tree.map(draw, depth_anything.shapes(NETWORK))}


def test_an_estimator_stands_in_for_the_datas_depth(frozen):
    condition = Structure(shape=SHAPE, z_shape=SHAPE, most=0, estimator=ESTIMATOR)
    assert condition.batch_shapes(3, 1) == {}
    example = make_example({}, images=2, frozen=frozen)

    @jax.jit
    def learned_from(frozen):
        return condition.example(make_example({}, images=2, frozen=frozen), KEY)["structure"]

    found, estimate = learned_from(frozen), jax.jit(ESTIMATOR)
    assert found.shape == (3, 4, *SHAPE[1:])
    clip = np.asarray(estimate(example.clip, frozen))
    assert clip.min() == 0 and clip.max() == 1
    np.testing.assert_allclose(found[:, :2, ..., :1], 2 * clip - 1, atol=1e-5)
    # Images are scaled by themselves, whatever is beside them.
    alone = estimate(example.images[1:2, :1], frozen)
    np.testing.assert_allclose(found[1, 2, ..., :1], 2 * alone[0, 0] - 1, atol=1e-5)
    # By the formula: the network on the resized frame, resized back, over the clip's range.
    params = {"params": frozen[depths.DEPTH_ESTIMATOR]}
    raw = jax.jit(NETWORK.apply)(params, ESTIMATOR.prepare(example.clip[0]))
    raw = jax.image.resize(raw, (2, *SHAPE[1:3]), "linear")
    np.testing.assert_allclose(
        clip[0, ..., 0], (raw - raw.min()) / (raw.max() - raw.min()), atol=1e-4
    )
    with pytest.raises(ValueError, match="frozen: lacks 'depth_estimator'"):
        ESTIMATOR(example.clip, {})


def test_all_equally_far_is_far():
    assert not depths.near_bright(jnp.full((1, 2, 4, 4, 1), 3.0)).any()
