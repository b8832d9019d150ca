"""RIFE equals the published network, and makes the frame that is between two."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from einops import rearrange

from tests.weights import drawn_weights
from vdm_jax.models import rife
from vdm_jax.weights import rife as weights

GOLDEN = Path(__file__).parents[1] / "weights" / "golden" / "rife.safetensors"
FACTORS = {"near": 0.3, "far": 1.0}


@pytest.fixture(scope="module")
def recorded():
    return safetensors.numpy.load_file(GOLDEN)


@pytest.fixture(scope="module")
def shapes():
    with safetensors.safe_open(GOLDEN, "numpy") as file:
        return json.loads(file.metadata()["recorded"])["shapes"]


@pytest.fixture(scope="module")
def run():
    network = rife.MotionNetwork()

    @jax.jit
    def run(params, first, second, time):
        found = rife.motion(network, params, first, second, time)
        return found, rife.between(network, params, first, second, time)

    return run


def drawn(shapes, kind):
    factors = {f"block{i}.lastconv": FACTORS[kind] for i in range(4)}
    return weights.convert(drawn_weights.draw_all(shapes, factors))


def close(found, expected, within=1e-4):
    expected = rearrange(expected, "1 c h w -> 1 h w c")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[:, ::2, ::2] / scale, expected / scale, atol=within, rtol=0)


@pytest.mark.parametrize("kind,time", [("near", 0.5), ("near", 0.25), ("far", 0.5)])
def test_motion_and_frames_are_the_published_networks(run, recorded, shapes, kind, time):
    images = rearrange(recorded["images"], "n c h w -> n 1 h w c") / np.float32(255)
    found, frame = run(drawn(shapes, kind), *images, time)
    name = f"{kind}/{time}/"
    ours = {
        "flow": jnp.concatenate([found.to_first, found.to_second], -1),
        "mask": jax.nn.sigmoid(found.mask),
        "frame": frame,
    }
    kept = [key for key in recorded if key.startswith(name)]
    assert kept and bool(found.far) == (kind == "far")
    for key in kept:
        close(ours[key.removeprefix(name)], recorded[key])


def test_tensors_without_a_place_are_refused_and_those_of_training_left_out(shapes):
    tensors = drawn_weights.draw_all(dict.fromkeys(("unet.up0.0.weight",), (1,)))
    assert weights.convert(tensors) == {}
    with pytest.raises(ValueError, match=r"block4\.lastconv2.* has no place"):
        weights.convert({"module.block4.lastconv2.weight": np.zeros(1)})


def test_a_warp_takes_pixels_from_where_the_flow_points():
    image = jnp.arange(20.0).reshape(1, 4, 5, 1)
    flow = jnp.zeros((1, 4, 5, 2)).at[..., 0].set(1.0)
    np.testing.assert_allclose(rife.warp(image, flow)[0, :, :4], image[0, :, 1:])
    np.testing.assert_allclose(rife.warp(image, flow)[0, :, 4], image[0, :, 4])  # beyond the edge
    flow = jnp.zeros((1, 4, 5, 2)).at[..., 1].set(-0.5)
    rows = rife.warp(image, flow)[0]
    np.testing.assert_allclose(rows[1:], (image[0, 1:] + image[0, :-1]) / 2)


def test_any_size_is_filled_up_and_cut():
    network = rife.MotionNetwork(widths=(4, 4, 4, 4))
    params = rife.init_params(network, jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 1, 20, 70, 3))
    frame = jax.jit(lambda *images: rife.between(network, params, *images))(*images)
    assert frame.shape == (1, 20, 70, 3)
    assert (frame >= images.min(0).min()).all() and (frame <= images.max()).all()
    with pytest.raises(ValueError, match=r"20 x 70: must be multiples of 32"):
        network.apply({"params": params}, *images, 0.5)


def test_the_flow_through_the_middle_is_taken_back_to_its_start(monkeypatch):
    """The motion through p in the middle is p / 2, so the start q of it is at p - p / 4."""
    middle = jnp.broadcast_to(0.5 * jnp.arange(16.0)[None, None, :, None], (1, 16, 16, 1))
    flow = jnp.concatenate([middle, jnp.zeros_like(middle)], -1)
    found = rife.Motion(-flow / 2, flow / 2, middle, jnp.zeros((), bool))
    monkeypatch.setattr(rife, "motion", lambda *_: found)
    images = jnp.zeros((1, 16, 16, 3))
    start = rife.optical_flow(rife.MotionNetwork(), {}, images, images)[0, 8, :4, 0]
    # p = q + F / 2 and F = p / 2: F = 2 q / 3.
    np.testing.assert_allclose(start, 2 / 3 * np.arange(4), rtol=0.02)
