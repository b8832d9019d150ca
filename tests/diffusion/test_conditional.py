"""Conditional sampling: each method's x̂ against its formula in double precision, and on data.

The data are Gaussian videos. The denoiser of the formulas' tests is made worse on purpose, so that
its Jacobian is known but not symmetric: what takes ∂x̂/∂z for its transpose fails.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion import papers
from vdm_jax.diffusion.conditional import Replacement, make_method
from vdm_jax.diffusion.grids import logsnr_grid
from vdm_jax.diffusion.guidance import classifier_free, static_clip
from vdm_jax.diffusion.measurements import Downsample, Linear, Mask, MaskedMeans, known_frames
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.samplers import DDIM, Ancestral, Distilled, sample
from vdm_jax.diffusion.schedules import CosineSchedule, alpha_sigma
from vdm_jax.diffusion.solvers import DPMPP2M

FRAMES, PIXELS = 6, 4
SHAPE = (FRAMES, 2, 2, 1)  # f h w c
DIM = FRAMES * PIXELS
BATCH = 5
LOGSNRS = np.array([-np.inf, -5.0, 0.3, 6.0, np.inf])
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=DIM) * 0.3


def powers(base, n):
    return base ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))


# AR(1) over the frames, and over the pixels; deviation 0.5.
COVARIANCE = 0.25 * np.kron(powers(0.9, FRAMES), np.kron(powers(0.6, 2), powers(0.6, 2)))
VARIANCES, BASIS = np.linalg.eigh(COVARIANCE)
SKEW = 0.1 * RNG.normal(size=(DIM, DIM)) / np.sqrt(DIM)

BLUR = np.kron(np.eye(FRAMES), [[0.7, 0.3, 0.0, 0.0], [0.0, 0.2, 0.5, 0.3]])
KNOWN = RNG.random((BATCH, FRAMES, 2, 2, 1)) < 0.5  # other pixels of each example
MEASUREMENTS = {
    "frames": known_frames([0, 1, 4], FRAMES),
    "pixels": Mask(known=jnp.asarray(KNOWN)),
    "downsample": Downsample(space=2, time=2),
    "both": MaskedMeans(known=jnp.asarray(KNOWN), space=2, time=2),
    "linear": Linear(
        fn=lambda x: jnp.dot(jnp.asarray(BLUR, jnp.float32), x.reshape(-1), precision="highest"),
        shape=SHAPE,
    ),
}


def matrices(name):
    """A of each example, `[BATCH, m, DIM]`, without the library."""
    if name == "frames":
        one = np.diag(np.repeat([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], PIXELS))
    elif name == "pixels":
        return np.stack([np.diag(known.reshape(-1).astype(float)) for known in KNOWN])
    elif name == "both":
        block = np.kron(np.kron(np.eye(FRAMES // 2), np.ones((2, 2))), np.ones((4, 4))) / 8
        flat = KNOWN.reshape(BATCH, DIM, 1)
        return np.where(flat, np.eye(DIM), block)
    elif name == "downsample":
        one = np.kron(np.kron(np.eye(FRAMES // 2), np.ones((1, 2))), np.ones((1, PIXELS))) / 8
    else:
        one = BLUR
    return np.stack([one] * BATCH)


def gaussian(z, logsnr, variances=VARIANCES, basis=BASIS):
    """The best v of x ~ N(MEAN, basis diag(variances) basisᵀ), flat; any λ."""
    alpha, sigma = (c[:, None] for c in alpha_sigma(logsnr))
    product = functools.partial(jnp.dot, precision="highest")
    scaled = product(z - alpha * MEAN, basis) / (alpha**2 * variances + sigma**2)
    return product(alpha * sigma * (1 - variances) * scaled, basis.T) - sigma * MEAN


def denoiser(z, logsnr, cond):
    flat = z.reshape(-1, DIM)
    return to_prediction("v", gaussian(flat, logsnr).reshape(z.shape), z, logsnr)


def worse(z, logsnr, cond):
    """x̂ = E[x | z] + cond SKEW sin z, `cond` a number for each example or None for 1."""
    flat, best = z.reshape(-1, DIM), denoiser(z, logsnr, cond)
    error = jnp.dot(jnp.sin(flat), SKEW.T, precision="highest")
    if cond is not None:
        error = cond[:, None] * error
    return best.with_x(best.x + error.reshape(z.shape))


def white(z, logsnr, cond):
    v = gaussian(z.reshape(-1, DIM), logsnr, np.full(DIM, 0.4**2), np.eye(DIM))
    return to_prediction("v", v.reshape(z.shape), z, logsnr)


def worse_in_double_precision(z, logsnr, cond=1.0):
    """x̂ `[DIM]` of `worse` and its Jacobian, of one example."""
    alpha, sigma = papers.alpha_sigma(logsnr)
    gain = BASIS * (alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)) @ BASIS.T
    x = MEAN + gain @ (z - alpha * MEAN) + cond * SKEW @ np.sin(z)
    return x, gain + cond * SKEW * np.cos(z)


def expected(method, name, z, y, a, logsnr, weight, sigma_data, cond=1.0):
    """x̃ `[DIM]` of one example by the papers' formulas."""
    x, jacobian = worse_in_double_precision(z, logsnr, cond)
    alpha, sigma = papers.alpha_sigma(logsnr)
    inverse = np.linalg.pinv(a)
    if method == "replacement":
        return x
    if method == "projection":
        return inverse @ y + x - inverse @ a @ x
    if method == "pigdm":
        if alpha == 0:
            return x + weight * inverse @ (y - a @ x)
        r2 = sigma_data**2 * sigma**2 / (sigma_data**2 * alpha**2 + sigma**2)
        # p(y | z) = N(A x̂, r² A Aᵀ); where y is known exactly r is 0, and σ²/r² → α² at λ → +∞.
        ratio = sigma**2 / r2 if sigma > 0 else alpha**2
        return x + weight * ratio / alpha * jacobian.T @ inverse @ (y - a @ x)
    # −(w_r α/2) ∇_z ‖y − A x̂‖², the gradient of the norm being −2 Jᵀ Aᵀ (y − A x̂). Repeated means
    # have their own share of the weight.
    known = np.diag(a) == 1.0
    shares = np.where(known, 1.0, 1.25 / 4) if name == "both" else 1.0
    gradient = -2 * jacobian.T @ a.T @ (shares * (y - a @ x))
    guided = x - weight * alpha / 2 * gradient
    if name in ("frames", "pixels", "both"):
        return np.where(known, y, guided)
    return guided


def draw(name, seed=1):
    """z `[BATCH, *SHAPE]` and y, float32, and both flat in double precision."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(BATCH, DIM)).astype(np.float32)
    x = MEAN + rng.normal(size=(BATCH, DIM)) * np.sqrt(VARIANCES) @ BASIS.T
    y = np.einsum("bij,bj->bi", matrices(name), x).astype(np.float32)
    shape = {"downsample": (FRAMES // 2, 1, 1, 1), "linear": (len(BLUR),)}.get(name, SHAPE)
    return (
        jnp.asarray(z).reshape(BATCH, *SHAPE),
        jnp.asarray(y).reshape(BATCH, *shape),
        z.astype(np.float64),
        y.astype(np.float64),
    )


# For any network; "trained" is for networks that take masked videos.
METHODS = ("reconstruction", "replacement", "pigdm", "projection")
WEIGHTED = ("reconstruction", "pigdm")


def condition(method, denoise, rule, measurement, y, weight=None, sigma_data=None):
    """The denoiser and the rule of a method with the fields that are not None."""
    fields = {"weight": weight, "sigma_data": sigma_data if method == "pigdm" else None}
    fields = {name: value for name, value in fields.items() if value is not None}
    return make_method(method, **fields)(denoise, rule, measurement, y)


@functools.partial(jax.jit, static_argnames=("denoise", "method", "sigma_data"))
def guided(denoise, method, measurement, y, z, logsnr, cond=None, weight=None, sigma_data=1.0):
    weight = weight if method in WEIGHTED else None
    made, _ = condition(
        method, denoise, DDIM(), measurement, y, weight=weight, sigma_data=sigma_data
    )
    return made(z, logsnr, cond)


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_methods_formula(method, name):
    z, y, flat_z, flat_y = draw(name)
    arguments = (MEASUREMENTS[name], y, z, jnp.asarray(LOGSNRS, jnp.float32))
    alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in papers.alpha_sigma(LOGSNRS))
    for weight in (0.0, 0.7, 5.0):
        ours = guided(worse, method, *arguments, weight=jnp.float32(weight), sigma_data=0.6)
        assert ours.x.dtype == jnp.float32
        theirs = np.stack(
            [
                expected(method, name, *row, weight, 0.6)
                for row in zip(flat_z, flat_y, matrices(name), LOGSNRS, strict=True)
            ]
        )
        np.testing.assert_allclose(ours.x.reshape(BATCH, DIM), theirs, atol=2e-5, rtol=2e-5)
        # ε̃ follows from z; at λ = +∞ there is none.
        np.testing.assert_allclose(
            alpha * ours.x + sigma * ours.eps, np.where(sigma > 0, z, ours.x), atol=1e-5
        )
        if method in ("replacement", "projection"):
            break  # without a weight


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_pseudo_inverse_guidance_is_exact_on_white_data(name):
    z, y, flat_z, flat_y = draw(name)
    logsnrs = np.array([-20.0, -5.0, 0.3, 6.0, 20.0])
    arguments = (MEASUREMENTS[name], y, z, jnp.asarray(logsnrs, jnp.float32))
    weight = jnp.float32(1.0)
    right = np.asarray(guided(white, "pigdm", *arguments, weight=weight, sigma_data=0.4).x)
    for i, a in enumerate(matrices(name)):
        # E[x | z, y] of the joint Gaussian of x, z and y.
        alpha, sigma = papers.alpha_sigma(logsnrs[i])
        seen = np.concatenate([alpha * np.eye(DIM), a])
        noise = np.diag(np.r_[np.full(DIM, sigma**2), np.zeros(len(a))])
        total = 0.4**2 * seen @ seen.T + noise
        values = np.r_[flat_z[i], flat_y[i]] - seen @ MEAN
        exact = MEAN + 0.4**2 * seen.T @ np.linalg.pinv(total, rcond=1e-12) @ values
        np.testing.assert_allclose(right[i].reshape(-1), exact, atol=1e-4)
    if name == "frames":  # and not with another deviation
        papers_own = guided(white, "pigdm", *arguments, weight=weight).x
        assert np.abs(papers_own - right).max() > 0.1


def test_the_default_weight_is_the_tables():
    for name, method, weight in (
        ("frames", "reconstruction", 4.0),
        ("frames", "pigdm", 1.0),
        ("downsample", "reconstruction", 1.25 * MEASUREMENTS["downsample"].block_size),
        ("downsample", "pigdm", 1.0),
    ):
        z, y, *_ = draw(name)
        arguments = (MEASUREMENTS[name], y, z, jnp.asarray(LOGSNRS, jnp.float32))
        default = guided(worse, method, *arguments, sigma_data=0.6)
        given = guided(worse, method, *arguments, weight=jnp.float32(weight), sigma_data=0.6)
        np.testing.assert_allclose(default.x, given.x, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_permuted_batch_is_permuted(method):
    z, y, *_ = draw("pixels")
    logsnr, order = jnp.asarray(LOGSNRS, jnp.float32), np.array([3, 1, 4, 2, 0])
    settings = {"weight": jnp.float32(2.0), "sigma_data": 0.6}
    straight = guided(worse, method, MEASUREMENTS["pixels"], y, z, logsnr, **settings)
    mask = Mask(known=MEASUREMENTS["pixels"].known[order])
    permuted = guided(worse, method, mask, y[order], z[order], logsnr[order], **settings)
    np.testing.assert_allclose(permuted.x, straight.x[order], atol=1e-6)
    assert np.abs(straight.x[order] - straight.x).max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_one_evaluation(method):
    evaluations = []

    def counted(z, logsnr, cond):
        evaluations.append(z.shape)
        return worse(z, logsnr, cond)

    z, y, *_ = draw("frames")
    made, _ = condition(method, counted, DDIM(), MEASUREMENTS["frames"], y)
    jax.eval_shape(made, z, jnp.asarray(LOGSNRS, jnp.float32), None)
    assert len(evaluations) == 1


@pytest.mark.parametrize("method", ["reconstruction", "pigdm"])
def test_classifier_free_inside_and_clipping_outside(method):
    z, y, flat_z, flat_y = draw("frames")
    cond = jnp.linspace(0.5, 1.5, BATCH)
    logsnr = jnp.asarray(LOGSNRS, jnp.float32)

    @jax.jit
    def composed(z):
        # The null condition is 0, so a scale g is g times the condition.
        inner = classifier_free(worse, 3.0)
        made, _ = condition(method, inner, DDIM(), MEASUREMENTS["frames"], y, weight=2.0)
        return static_clip(made, -0.6, 0.6)(z, logsnr, cond)

    ours = np.asarray(composed(z).x).reshape(BATCH, DIM)
    theirs = np.stack(
        [
            expected(method, "frames", *row, 2.0, 1.0, 3.0 * float(c))
            for *row, c in zip(flat_z, flat_y, matrices("frames"), LOGSNRS, cond, strict=True)
        ]
    )
    assert np.abs(theirs).max() > 0.6
    np.testing.assert_allclose(ours, np.clip(theirs, -0.6, 0.6), atol=2e-5)


# ------------------------------------------------------------------------------ sampling


@functools.partial(jax.jit, static_argnames=("method", "rule", "steps"))
def sampled(method, rule, key, measurement, y, z, weight, steps):
    weight = weight if method in WEIGHTED else None
    made, rule = condition(method, denoiser, rule, measurement, y, weight=weight)
    return sample(key, made, rule, logsnr_grid(CosineSchedule(), steps), z)


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_replaced(method, name):
    measurement, y = MEASUREMENTS[name], draw(name)[1]
    made, rule = condition(method, denoiser, DDIM(), measurement, y)
    replaced = ("frames", "pixels", "both")
    if method == "replacement" or (method == "reconstruction" and name in replaced):
        assert isinstance(rule, Replacement)
        if method == "reconstruction" and name == "both":
            measurement = measurement.mask  # means are guided towards, not replaced
        assert (rule.rule, rule.y) == (DDIM(), y)
        assert jax.tree.structure(rule.measurement) == jax.tree.structure(measurement)
        assert rule.measurement.known is measurement.known if name in replaced else True
    else:
        assert rule == DDIM()
    assert (made is denoiser) == (method == "replacement")


@pytest.mark.parametrize("rule", [DDIM(), Ancestral(), DPMPP2M()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("method", ["reconstruction", "replacement", "projection"])
def test_what_is_known_comes_back_exactly(method, rule):
    for name in ("frames", "pixels"):
        z, y, *_ = draw(name)
        # As one mask an example, so that both are one program.
        known = np.broadcast_to(MEASUREMENTS[name].known, z.shape)
        mask = Mask(known=jnp.asarray(known))
        out = sampled(method, rule, jax.random.key(0), mask, y, z, 2.0, 8)
        np.testing.assert_array_equal(np.asarray(out)[known], np.asarray(y)[known])
        assert np.all(np.isfinite(out))
        # The rest is sampled, and not 0 as y has it.
        assert 0.1 < np.std(np.asarray(out)[~known]) < 1.5


def test_one_compilation_serves_every_mask_and_weight():
    traces = []

    def counted(z, logsnr, cond):
        traces.append(z.shape)
        return denoiser(z, logsnr, cond)

    @jax.jit
    def run(mask, y, z, weight):
        made, rule = condition("reconstruction", counted, DDIM(), mask, y, weight=weight)
        grid = jnp.array([-2.0, 2.0, jnp.inf])
        return sample(jax.random.key(0), made, rule, grid, z)

    z, y, *_ = draw("frames")
    outs, counts = [], []
    for frames, weight in (([0], 1.0), ([1, 2], 1.0), ([0], 3.0)):
        mask = known_frames(frames, FRAMES)
        outs.append(np.asarray(run(mask, mask.measure(y), z, weight)))
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2] > 0
    assert np.abs(outs[0] - outs[1]).max() > 1e-2
    assert np.abs(outs[0] - outs[2]).max() > 1e-2


@dataclasses.dataclass(frozen=True)
class Stand:
    """A rule that asks nothing, stays where it is and counts its steps."""

    def init(self, z):
        return jnp.zeros((), jnp.int32)

    def step(self, key, denoise, z, state, logsnr_t, logsnr_s):
        return z, state + 1


MANY = 4096


@functools.partial(jax.jit, static_argnames=("rule",))
def replaced(rule, measurement, y, z, logsnr_t, logsnr_s):
    made = Replacement(rule=rule, measurement=measurement, y=y)
    return made.step(jax.random.key(3), denoiser, z, made.init(z), logsnr_t, logsnr_s)


@pytest.mark.parametrize("name", ["frames", "downsample"])
def test_replacement_draws_what_is_seen_from_the_forward_process(name):
    z, y, _, flat_y = (part[:1] for part in draw(name))
    a = matrices(name)[0]
    inverse = np.linalg.pinv(a)
    many_z, many_y = (jnp.broadcast_to(part, (MANY, *part.shape[1:])) for part in (z, y))
    stepped = functools.partial(replaced, Stand(), MEASUREMENTS[name], many_y, many_z)
    out, state = stepped(-1.0, 0.8)
    assert int(state) == 1  # the rule has made its step
    flat = np.asarray(out, np.float64).reshape(MANY, DIM)
    # What A does not see is the rule's z.
    blind = np.eye(DIM) - inverse @ a
    before = np.asarray(z, np.float64).reshape(DIM)
    np.testing.assert_allclose(flat @ blind.T, np.tile(blind @ before, (MANY, 1)), atol=1e-5)
    # A z_s ~ N(α_s y, σ_s² A Aᵀ), within four standard errors.
    alpha, sigma = papers.alpha_sigma(0.8)
    seen = flat @ a.T
    covariance = sigma**2 * a @ a.T
    deviation = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(seen.mean(0) - alpha * flat_y[0]) <= 4 * deviation / np.sqrt(MANY))
    error = np.cov(seen.T) - covariance
    bound = 4 * np.sqrt((np.outer(deviation, deviation) ** 2 + covariance**2) / MANY)
    assert np.all(np.abs(error) <= bound + 1e-9)
    # Without noise: y itself. Without a step: nothing.
    clean = np.asarray(stepped(0.8, np.inf)[0], np.float64).reshape(MANY, DIM)
    if name == "frames":
        np.testing.assert_array_equal(clean @ a.T, np.tile(flat_y, (MANY, 1)))
    np.testing.assert_allclose(clean @ a.T, np.tile(flat_y, (MANY, 1)), atol=1e-5)
    for logsnr in (0.8, np.inf, -np.inf):
        np.testing.assert_array_equal(stepped(logsnr, logsnr)[0], many_z)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T


def distance(samples, a, y):
    """The mean over y of the squared Fréchet distance to p(x | A x = y), over its variance.

    Args:
      samples: `[y, n, DIM]`. A Gaussian's posterior has one covariance for every y, and so do the
        samples, since each method is affine in y: that is estimated from all of them.
    """
    gain = COVARIANCE @ a.T @ np.linalg.pinv(a @ COVARIANCE @ a.T)
    exact = COVARIANCE - gain @ a @ COVARIANCE
    means = samples.mean(axis=1)
    centred = samples - means[:, None]
    covariance = np.einsum("ynd,yne->de", centred, centred) / centred[..., 0].size
    half = root(exact)
    spread = np.trace(covariance + exact - 2 * root(half @ covariance @ half))
    errors = means - MEAN - (y - MEAN @ a.T) @ gain.T
    return (np.mean(np.sum(errors**2, axis=-1)) + spread) / np.trace(exact)


@pytest.mark.parametrize(
    ("rule", "least"), [(DDIM(), (8.0, 20.0)), (Ancestral(), (3.5, 8.0))], ids=["DDIM", "Ancestral"]
)
def test_reconstruction_guidance_beats_replacement(rule, least):
    # VDM's claim (§3.1): frames that are only replaced do not tell the others enough.
    rng, draws = np.random.default_rng(7), 16
    noise = jnp.asarray(rng.normal(size=(MANY, *SHAPE)), jnp.float32)
    x = MEAN + rng.normal(size=(draws, DIM)) * np.sqrt(VARIANCES) @ BASIS.T
    # A video continued, and one filled in.
    for frames, factor in zip(([0, 1, 2], [0, FRAMES - 1]), least, strict=True):
        mask = known_frames(frames, FRAMES)
        a = np.diag(np.repeat(np.isin(np.arange(FRAMES), frames).astype(float), PIXELS))
        y = jnp.asarray(np.repeat(x @ a, MANY // draws, axis=0), jnp.float32).reshape(-1, *SHAPE)

        def distance_of(method, mask=mask, a=a, y=y):
            out = sampled(method, rule, jax.random.key(1), mask, y, noise, 5.0, 32)
            return distance(np.asarray(out, np.float64).reshape(draws, -1, DIM), a, x @ a)

        near = distance_of("reconstruction")
        assert near < 0.13
        assert distance_of("replacement") > factor * near


def test_known_frames_and_a_low_resolution_are_better_than_either():
    rng, draws = np.random.default_rng(7), 16
    noise = jnp.asarray(rng.normal(size=(MANY, *SHAPE)), jnp.float32)
    x = MEAN + rng.normal(size=(draws, DIM)) * np.sqrt(VARIANCES) @ BASIS.T
    mask = known_frames([0], FRAMES)
    both = MaskedMeans(known=mask.known, space=2)
    known = np.repeat(np.arange(FRAMES) == 0, PIXELS)
    block = np.kron(np.eye(FRAMES), np.ones((PIXELS, PIXELS))) / PIXELS
    a = np.where(known[:, None], np.eye(DIM), block)
    found = {}
    for name, measurement, seen in (("both", both, a), ("frames", mask, np.diag(known * 1.0))):
        y = jnp.asarray(np.repeat(x @ seen.T, MANY // draws, axis=0), jnp.float32)
        y = y.reshape(-1, *SHAPE)
        out = sampled("reconstruction", DDIM(), jax.random.key(1), measurement, y, noise, None, 32)
        out = np.asarray(out, np.float64).reshape(draws, -1, DIM)
        found[name] = distance(out, a, x @ a.T)
        if name == "both":
            true = np.broadcast_to(x[:, None, known].astype(np.float32), out[..., known].shape)
            np.testing.assert_array_equal(out[..., known], true)
    assert found["both"] < 0.25 and found["frames"] > 5 * found["both"]


# ------------------------------------------------------------------------------- refusals


def test_bad_settings_are_refused():
    with pytest.raises(
        ValueError,
        match="method='x' is unknown; allowed: reconstruction, replacement, pigdm, projection",
    ):
        make_method("x")
    for method in ("replacement", "projection"):
        make_method(method)
        with pytest.raises(ValueError, match=f"weight=1.0 has no effect with method='{method}'"):
            make_method(method, weight=1.0)
    z, y, *_ = draw("frames")
    mask = MEASUREMENTS["frames"]
    for method in ("reconstruction", "pigdm"):
        make_method(method, weight=0.0)
        make_method(method, weight=jnp.float32(3.0))
        for weight in (-1.0, -1, float("nan")):
            with pytest.raises(ValueError, match=f"weight={weight} must not be negative"):
                make_method(method, weight=weight)
    with pytest.raises(ValueError, match="method='x'"):
        condition("x", denoiser, DDIM(), mask, y)
    for sigma_data in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"sigma_data={sigma_data} must be positive"):
            condition("pigdm", denoiser, DDIM(), mask, y, sigma_data=sigma_data)
    with pytest.raises(ValueError, match="'distilled' takes no replacement"):
        condition("replacement", denoiser, Distilled(), mask, y)


@pytest.mark.parametrize("method", METHODS)
def test_a_y_of_another_shape_is_refused(method):
    z, y, *_ = draw("downsample")
    made, rule = condition(method, denoiser, DDIM(), Downsample(space=2), y)
    message = r"y has shape \(5, 3, 1, 1, 1\); the measurement of .* has \(5, 6, 1, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda z: sample(jax.random.key(0), made, rule, jnp.arange(3.0), z), z)
