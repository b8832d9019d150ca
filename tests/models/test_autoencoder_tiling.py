"""Encoding and decoding in parts against the whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models import autoencoder_tiling as tiling
from vdm_jax.models.autoencoder import (
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
    Posterior,
)
from vdm_jax.models.blocks import autoencoding


def draw(*shape):
    """Normal numbers, the same for the same shape."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


KERNEL = draw(3, 3, 2, 2) / 4


def blur(images, **options):
    """A convolution that reaches one pixel; any leading axes."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    settings = {"window_strides": (1, 1), "padding": "SAME", **options}
    folded = images.reshape(-1, *images.shape[-3:])
    out = jax.lax.conv_general_dilated(folded, KERNEL, dimension_numbers=dimensions, **settings)
    return out.reshape(*images.shape[:-3], *out.shape[1:])


def decode(latents):
    """Twice the size; reaches one latent."""
    return blur(jnp.repeat(jnp.repeat(latents, 2, -3), 2, -2))


def encode(images):
    """Half the size; reaches less than one latent."""
    return blur(images, window_strides=(2, 2), padding=[(0, 1), (0, 1)])


@pytest.mark.parametrize("at_once,sizes", [(1, {1}), (2, {2}), (3, {3}), (4, {3}), (9, {5})])
def test_slices_are_the_whole_and_never_larger_than_asked_for(at_once, sizes):
    video, seen = draw(2, 5, 4, 6, 2), set()

    def function(part):
        seen.add(part.shape[1])
        return Posterior(blur(part), 2 * part)

    found = tiling.in_slices(function, video, at_once)
    np.testing.assert_allclose(found.mean, blur(video), atol=1e-6)
    np.testing.assert_array_equal(found.log_variance, 2 * video)
    assert seen == sizes and max(sizes) <= max(at_once, 5)
    with pytest.raises(ValueError, match="at_once = 0"):
        tiling.in_slices(function, video, 0)


def test_tiles_are_the_whole_away_from_their_borders():
    latents = draw(2, 20, 13, 2)
    whole, cut = decode(latents), tiling.tiled(decode, latents, tile=8, overlap=2, grows=2)
    error = np.abs(np.asarray(cut - whole)).max((0, 3))
    # Tiles begin at 0, 6 and 12 rows, and at 0 and 5 columns. Where only one counts, it is exact,
    # but for the last pixel before the next one begins to count, which it computes at its border.
    rows, columns = np.ones(40, bool), np.ones(26, bool)
    rows[12:16] = rows[24:28] = columns[10:16] = False
    assert error[rows][:, columns].max() < 1e-6
    # The seams: where tiles fade, an error at the border of one counts by its small weight.
    alone = tiling.tiled(decode, latents, tile=8, overlap=0, grows=2)
    assert 0 < error.max() < 0.6 * np.abs(np.asarray(alone - whole)).max()


def test_an_encoder_is_tiled_too_and_a_small_image_is_not_cut():
    images = draw(1, 3, 32, 12, 2)
    whole = encode(images)
    cut = tiling.tiled(encode, images, tile=8, overlap=3, shrinks=2)
    assert cut.shape == whole.shape == (1, 3, 16, 6, 2)
    error = np.abs(np.asarray(cut - whole)).max((0, 1, 3, 4))
    # Tiles begin at rows 0, 5 and 8; the encoder reads zeros below the last row of the first two.
    assert error[:5].max() < 1e-6 and error[13:].max() < 1e-6 and error.max() > 1e-3
    np.testing.assert_allclose(
        tiling.tiled(encode, images, tile=16, overlap=3, shrinks=2), whole, atol=1e-6
    )


def test_tiles_of_a_constant_are_constant():
    found = tiling.tiled(lambda x: x, jnp.ones((1, 21, 17, 1)), tile=8, overlap=5)
    np.testing.assert_allclose(found, 1.0, atol=1e-6)


def test_a_tiny_autoencoder_in_tiles():
    network = AutoencoderTiny(channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    images = jnp.tanh(draw(1, 8, 96, 3))
    params = jax.jit(network.init)(jax.random.key(0), images[:, :2, :2])

    @jax.jit
    def run(params, images):
        def apply(method):
            return lambda x: network.apply(params, x, method=method)

        latents = apply("encode")(images).mode()
        sizes = {"tile": 32, "overlap": 8}
        tiles = tiling.tiled(apply("encode"), images, **sizes, shrinks=2).mode()
        return (
            latents,
            tiles,
            apply("decode")(latents),
            tiling.tiled(apply("decode"), latents, **sizes, grows=2),
        )

    for whole, cut in zip(*[iter(run(params, images))] * 2, strict=True):
        error = np.abs(np.asarray(cut - whole)).max((0, 1, 3)) / np.abs(whole).max()
        scale = whole.shape[2] // 48
        # Tiles begin at columns 0, 16 and 24 of 48 latents: they fade from 16 to 32 and beyond.
        assert error[: 15 * scale].max() < 1e-5 and error[-15 * scale :].max() < 1e-5
        assert error.max() < 0.1


def test_bad_sizes_are_refused():
    images = jnp.zeros((1, 9, 8, 2))
    with pytest.raises(ValueError, match="overlap = 4: must be from 0 to the window's size - 1, 3"):
        tiling.tiled(decode, images, tile=4, overlap=4, grows=2)
    with pytest.raises(ValueError, match=r"height and width = \(9, 8\): must be multiples of 2"):
        tiling.tiled(encode, images, tile=4, overlap=1, shrinks=2)
    with pytest.raises(ValueError, match="overlap = -1"):
        tiling.in_chunks(decode, images[None], at_once=4, overlap=-1, reach=1)


# --- decoders that mix frames ---------------------------------------------------------------------


def mix(video):
    """Two convolutions over three frames: a reach of two frames."""
    for _ in range(2):
        padded = jnp.pad(video, [(0, 0), (1, 1)] + [(0, 0)] * (video.ndim - 2))
        video = jnp.tanh(padded[:, :-2] / 2 + video + padded[:, 2:] / 3)
    return video


@pytest.fixture(scope="module")
def jump():
    """A function overlap -> the largest error of a change from one frame to the next."""
    video = draw(2, 17, 2, 2, 1)
    whole = mix(video)

    def largest(overlap):
        found = tiling.in_chunks(mix, video, at_once=7, overlap=overlap, reach=2)
        return np.abs(np.diff(np.asarray(found - whole), axis=1)).max()

    return largest


def test_chunks_are_the_whole_where_the_overlap_covers_the_reach(jump):
    assert jump(0) > 0.2
    for overlap in (2, 3):
        assert 1e-3 < jump(overlap) < 0.75 * jump(0)
    for overlap in (4, 5):  # twice the reach
        assert jump(overlap) < 1e-6


def test_chunks_fade_where_the_overlap_is_shorter():
    def number(part):  # of each frame in its chunk
        return jnp.broadcast_to(jnp.arange(part.shape[1], dtype=jnp.float32), part.shape)

    cut = {"at_once": 7, "overlap": 3}
    fading = tiling.in_chunks(number, jnp.zeros((1, 11)), **cut, reach=2)
    # Of frames 4 to 6, which both have, the first is the first chunk's and the last the second's.
    np.testing.assert_allclose(fading[0], [0, 1, 2, 3, 4, 3, 2, 3, 4, 5, 6], rtol=1e-6)
    whole = tiling.in_chunks(number, jnp.zeros((1, 11)), **cut, reach=1)
    np.testing.assert_allclose(whole[0], [0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6])


TEMPORAL = AutoencoderKLTemporalDecoder(channels=(32,))


@pytest.fixture(scope="module")
def temporal_params():
    """Drawn parameters without zeros."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        size = np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1.0
        return jnp.asarray(rng.normal(size=leaf.shape) / size, jnp.float32)

    return jax.tree.map(draw, nn.meta.unbox(TEMPORAL.abstract_params()))


def test_the_reach_of_the_temporal_decoder_is_that_of_its_convolutions(
    temporal_params, monkeypatch
):
    """With normalisations that have no statistics over frames."""
    monkeypatch.setattr(autoencoding.layers, "group_norm", lambda *_, **__: lambda x: x / 2)
    reach = TEMPORAL.frame_reach
    assert reach == 11
    latents = draw(1, 30, 2, 2, 4)

    def decode(part):
        variables, frames = {"params": temporal_params}, part.shape[1]
        return TEMPORAL.apply(variables, part[0], frames, method="decode")[None]

    whole = jax.jit(decode)(latents)
    moved = jax.jit(decode)(latents.at[:, 15].add(1000.0))
    changed = np.abs(np.asarray(moved - whole)).max((0, 2, 3, 4)) > 0
    np.testing.assert_array_equal(np.flatnonzero(changed), np.arange(15 - reach, 16 + reach))

    def cut(latents):
        return tiling.in_chunks(decode, latents, at_once=26, overlap=2 * reach, reach=reach)

    np.testing.assert_allclose(jax.jit(cut)(latents), whole, rtol=1e-4, atol=1e-4)
