"""Seams and memory of decoding in chunks, of a decoder whose chunks are known."""

import numpy as np
import pytest

from benchmarks import chunks as benchmark
from vdm_jax.models.autoencoder import AutoencoderKLTemporalDecoder
from vdm_jax.weights import autoencoder


@pytest.fixture(scope="module")
def network():
    return AutoencoderKLTemporalDecoder(channels=(32,))


@pytest.fixture(scope="module")
def params(network):
    return benchmark.random_params(autoencoder.shapes(network))


def test_steps_at_borders_are_those_over_which_chunks_change():
    # 0 to 3 | 4 to 7 | 8 to 9, of which the last chunk is 6 to 9.
    assert np.flatnonzero(benchmark.border_steps(8, 4, 0)).tolist() == [3]
    assert not benchmark.border_steps(8, 8, 0).any()
    # 0 to 5 and 4 to 9: frame 4 is the first chunk's, 5 the second's.
    assert np.flatnonzero(benchmark.border_steps(10, 6, 2)).tolist() == [4]
    # 0 to 13 and 10 to 23: frame 10 is the first chunk's, 13 the second's.
    assert np.flatnonzero(benchmark.border_steps(24, 14, 4)).tolist() == [10, 11, 12]


def test_a_seam_is_seen_where_it_is():
    clips = np.zeros((2, 8, 1, 1, 1)) + np.arange(8).reshape(1, 8, 1, 1, 1)
    border = benchmark.border_steps(8, 4, 0)
    np.testing.assert_allclose(benchmark.step_ratio(clips, border), [1.0, 1.0])
    clips[1, 4:] += 0.5
    np.testing.assert_allclose(benchmark.step_ratio(clips, border), [1.0, 1.5])
    assert np.isnan(benchmark.step_ratio(clips, np.zeros(7, bool))).all()


def test_overlaps_bring_a_decoder_nearer_to_the_whole(network, params):
    rng = np.random.default_rng(0)
    latents = np.cumsum(rng.normal(size=(2, 12, 8, 8, 4)), axis=1).astype(np.float32)
    cut, overlapped = benchmark.seams(network, params, latents, [6], [0, 4])
    assert (cut["steps at borders"], cut["overlap"], overlapped["overlap"]) == (1, 0, 4)
    name = "r.m.s. distance from the whole, % of the deviation"
    assert 0 < overlapped[name] < cut[name]


def test_memory_is_measured_for_each_size_and_the_whole(network, params):
    latents = np.zeros((1, 4, 8, 8, 4), np.float32)
    small, whole = benchmark.memory(network, params, latents, [2], 1)
    assert (small["frames at once"], small["overlap"]) == (2, 1)
    assert (whole["frames at once"], whole["overlap"]) == (4, 0)
    assert small["held, MiB"] > 0


def test_an_autoencoder_of_single_frames_is_refused():
    with pytest.raises(ValueError, match="decodes each frame alone"):
        benchmark.load("vdm_jax/checkpoints/scenes_image/vae")
