"""Linear measurements: what they see, their pseudo-inverse, their use as arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.measurements import (
    Downsample,
    Linear,
    Mask,
    MaskedMeans,
    Measurement,
    known_frames,
)

SHAPE = (4, 2, 4, 1)  # f h w c
DIM = 32
RNG = np.random.default_rng(0)
VIDEOS = jnp.asarray(RNG.normal(size=(3, *SHAPE)), jnp.float32)
PIXELS = RNG.random((1, 1, 2, 4, 1)) < 0.5


def matrix_of(singular_values, rows):
    """`[rows, DIM]` with the given singular values, the others 0."""
    rng = np.random.default_rng(len(singular_values))
    left = np.linalg.qr(rng.normal(size=(rows, rows)))[0][:, : len(singular_values)]
    right = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][: len(singular_values)]
    return left * np.asarray(singular_values) @ right


MATRICES = {
    "wide": matrix_of([0.5, 0.8, 1.0, 1.3, 2.0], 5),
    "rank_deficient": matrix_of([0.5, 1.0, 2.0], 6),
    "tall": matrix_of(np.linspace(0.7, 1.4, DIM), DIM + 3),
}


def linear(matrix, **kwargs):
    def fn(x):
        product = jnp.dot(jnp.asarray(matrix, jnp.float32), x.reshape(-1), precision="highest")
        return product.reshape(-1, 1)  # of any shape

    return Linear(fn=fn, shape=SHAPE, **kwargs)


def blur(x):
    """Means of neighbours in a row of pixels."""
    return (x[:, :, :-1] + x[:, :, 1:]) / 2


MEASUREMENTS = {
    "frames": known_frames([0, 3], 4),
    "nothing": known_frames([], 4),
    "pixels": Mask(known=jnp.asarray(PIXELS)),
    "space": Downsample(space=2),
    "time": Downsample(time=2),
    "space_and_time": Downsample(space=2, time=4),
    "identity": Downsample(),
    "frames_and_means": MaskedMeans(known=known_frames([0], 4).known, space=2),
    "pixels_and_means": MaskedMeans(known=jnp.asarray(PIXELS), space=2, time=2),
    "crop": Linear(fn=lambda x: x[1:3, :, ::2], shape=SHAPE),
    "blur": Linear(fn=blur, shape=SHAPE),
} | {name: linear(matrix) for name, matrix in MATRICES.items()}


@functools.cache
def dense(name):
    """A `[m, DIM]` and A⁺ `[DIM, m]` of the measurement, by their columns."""
    measurement = MEASUREMENTS[name]

    @jax.jit
    def columns():
        y = measurement.measure(jnp.eye(DIM).reshape(DIM, *SHAPE))
        size = y[0].size
        back = measurement.lift(jnp.eye(size).reshape(size, *y.shape[1:]))
        assert back.shape == (size, *SHAPE)
        assert back.dtype == y.dtype == jnp.float32
        return y.reshape(DIM, size), back.reshape(size, DIM)

    return tuple(np.asarray(array, np.float64).T for array in columns())


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_moore_and_penroses_identities(name):
    a, inverse = dense(name)
    assert isinstance(MEASUREMENTS[name], Measurement)
    np.testing.assert_allclose(a @ inverse @ a, a, atol=1e-5)
    np.testing.assert_allclose(inverse @ a @ inverse, inverse, atol=1e-5)
    np.testing.assert_allclose(a @ inverse, (a @ inverse).T, atol=1e-5)
    np.testing.assert_allclose(inverse @ a, (inverse @ a).T, atol=1e-5)


def test_what_is_measured():
    """Against NumPy, element by element."""
    frames, pixels = dense("frames")[0], dense("pixels")[0]
    known = np.repeat([1.0, 0.0, 0.0, 1.0], DIM // 4)
    np.testing.assert_array_equal(frames, np.diag(known))
    np.testing.assert_array_equal(pixels, np.diag(np.tile(PIXELS.reshape(-1), 4).astype(float)))
    means = np.asarray(VIDEOS).reshape(3, 2, 2, 1, 2, 2, 2, 1).mean(axis=(2, 4, 6))
    measured = Downsample(space=2, time=2).measure(VIDEOS)
    np.testing.assert_allclose(measured, means, atol=1e-6)
    lifted = Downsample(space=2, time=2).lift(measured)
    spread = means.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_allclose(lifted, spread, atol=1e-6)
    np.testing.assert_array_equal(dense("identity")[0], np.eye(DIM))
    np.testing.assert_array_equal(dense("nothing")[0], 0.0)
    for name, matrix in MATRICES.items():
        np.testing.assert_allclose(dense(name)[0], matrix, atol=1e-6)


def test_known_frames_and_a_low_resolution_at_once():
    both = MEASUREMENTS["frames_and_means"]
    measured = np.asarray(both.measure(VIDEOS))
    np.testing.assert_array_equal(measured[:, 0], VIDEOS[:, 0])
    means = Downsample(space=2)
    np.testing.assert_allclose(measured[:, 1:], means.lift(means.measure(VIDEOS))[:, 1:], atol=1e-6)
    np.testing.assert_allclose(both.combine(VIDEOS, means.measure(VIDEOS)), measured, atol=1e-6)
    # The other pixels of a block that is known in part make up for its mean.
    known = MEASUREMENTS["pixels_and_means"]
    lifted = known.lift(known.measure(VIDEOS))
    np.testing.assert_array_equal(jnp.where(PIXELS, lifted, 0), jnp.where(PIXELS, VIDEOS, 0))
    np.testing.assert_allclose(known.means.measure(lifted), known.means.measure(VIDEOS), atol=1e-6)


def test_a_mask_hides_what_is_behind_it():
    # A product with 0 would let NaN and infinity through.
    videos = VIDEOS.at[:, 1:3].set(jnp.nan)
    for known in (np.array([1, 0, 0, 1]), np.array([0.3, 0.0, 0.0, -2.0])):
        mask = Mask(known=known.reshape(1, 4, 1, 1, 1))
        for function in (mask.measure, mask.lift):
            out = np.asarray(function(videos))
            np.testing.assert_array_equal(out[:, [0, 3]], VIDEOS[:, [0, 3]])
            np.testing.assert_array_equal(out[:, 1:3], 0.0)


def test_known_frames_by_number_and_by_bool():
    expected = np.array([True, False, True, True]).reshape(1, 4, 1, 1, 1)
    for frames in ([0, 2, 3], (3, 0, 2, 2), expected.reshape(4)):
        mask = known_frames(frames, 4)
        np.testing.assert_array_equal(mask.known, expected)
        assert mask.known.dtype == bool


@pytest.mark.parametrize("name", MATRICES)
def test_linear_is_numpys_pseudo_inverse(name):
    expected = np.linalg.pinv(MATRICES[name], rcond=1e-6)
    np.testing.assert_allclose(dense(name)[1], expected, atol=2e-5)


def test_linear_solves_each_example_alone():
    # The measurements are 1e6 apart in size: one stopping rule for all would leave the small one.
    matrix = MATRICES["rank_deficient"]
    y = np.random.default_rng(4).normal(size=(3, 6, 1)) * np.array([1e-3, 1.0, 1e3])[:, None, None]
    lifted = jax.jit(linear(matrix).lift)(jnp.asarray(y, jnp.float32))
    expected = y[..., 0] @ np.linalg.pinv(matrix, rcond=1e-6).T  # y fits no x: least squares
    for mine, theirs in zip(np.asarray(lifted).reshape(3, DIM), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5 * np.abs(theirs).max())
    assert not np.any(jax.jit(linear(matrix).lift)(jnp.zeros((1, 6, 1))))


def test_as_many_iterations_as_distinct_singular_values():
    matrix = matrix_of([0.5, 0.5, 1.0, 1.0, 2.0, 2.0], 6)
    expected = np.linalg.pinv(matrix)
    errors = []
    for maxiter in (2, 3):
        lifted = jax.jit(linear(matrix, maxiter=maxiter).lift)(jnp.eye(6)[..., None])
        errors.append(np.abs(np.asarray(lifted).reshape(6, DIM).T - expected).max())
    assert errors[0] > 1e-2
    assert errors[1] < 2e-5


def test_one_compilation_serves_every_mask():
    traces = []

    @jax.jit
    def measure(measurement, x):
        traces.append(measurement)
        return measurement.lift(measurement.measure(x))

    for frames in ([0], [1, 2], [], [0, 1, 2, 3]):
        mask = known_frames(frames, 4)
        expected = np.where(mask.known, VIDEOS, 0.0)
        np.testing.assert_array_equal(measure(mask, VIDEOS), expected)
    assert len(traces) == 1
    rows = np.zeros((3, 4, 1, 1, 1), bool)
    rows[[0, 1, 2], [3, 0, 1]] = True  # another frame of each example
    np.testing.assert_array_equal(measure(Mask(known=rows), VIDEOS), np.where(rows, VIDEOS, 0.0))
    for _ in range(2):
        measure(Downsample(space=2), VIDEOS)
        measure(MEASUREMENTS["crop"], VIDEOS)
    assert len(traces) == 4
    measure(Downsample(time=2), VIDEOS)  # the factor is part of the program
    assert len(traces) == 5


def test_vmap_over_masks():
    known = np.stack([known_frames(frames, 4).known for frames in ([0], [1, 3])])
    out = jax.jit(jax.vmap(lambda mask: mask.measure(VIDEOS)))(Mask(known=known))
    np.testing.assert_array_equal(out, np.where(known, VIDEOS, 0.0))


@pytest.mark.parametrize("known", [(1, 3, 1, 1, 1), (2, 4, 1, 1, 1), (4, 1, 1, 1), (3, 4, 2, 4, 2)])
def test_a_mask_that_does_not_fit_is_refused(known):
    mask = Mask(known=np.ones(known, bool))
    for function in (mask.measure, mask.lift):
        with pytest.raises(ValueError, match=r"Mask: known has shape \(.*fit \(3, 4, 2, 4, 1\)"):
            function(VIDEOS)


@pytest.mark.parametrize("frames", [[0, 4], [-1], (7,)])
def test_frames_that_a_video_does_not_have_are_refused(frames):
    with pytest.raises(ValueError, match=r"frames: \[.*\] must be whole numbers from 0 to 3"):
        known_frames(frames, 4)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"frames has shape \(3,\); of bools it must be \(4,\)"):
        known_frames(np.ones(3, bool), 4)
    for field in ("space", "time"):
        with pytest.raises(ValueError, match=f"Downsample: {field}=0 must be at least 1"):
            Downsample(**{field: 0})
    with pytest.raises(ValueError, match="time=3 does not divide 4 frames"):
        Downsample(time=3).measure(VIDEOS)
    # Either side of the picture.
    for shape in ((1, 4, 3, 4, 1), (1, 4, 4, 3, 1)):
        with pytest.raises(ValueError, match=f"space=2 does not divide {shape[2]} x {shape[3]}"):
            Downsample(space=2).measure(jnp.zeros(shape))
    with pytest.raises(ValueError, match=r"Linear: x has shape \(4, 2, 2, 1\).*\(4, 2, 4, 1\)"):
        MEASUREMENTS["crop"].measure(jnp.zeros((3, 4, 2, 2, 1)))
