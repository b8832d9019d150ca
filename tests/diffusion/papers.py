"""The papers' sampling formulas, in double precision and in the papers' own coordinates.

For elementwise data x ~ N(μ, V), whose optimal denoiser is known: what a step rule returns with the
same noise can be compared number by number, and since everything is affine in the noise, mean and
variance of what a sampler returns are known without sampling (`moments`).
"""

import numpy as np

from vdm_jax.diffusion import solvers
from vdm_jax.diffusion.samplers import DDIM, Corrector, Distilled


def alpha_sigma(logsnr):
    with np.errstate(over="ignore"):
        return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def denoiser(mean, variance):
    def denoise(z, logsnr):
        """x̂, ε̂ at a finite λ."""
        a, s = alpha_sigma(logsnr)
        x = mean + a * variance / (a**2 * variance + s**2) * (z - a * mean)
        return x, (z - a * x) / s

    return denoise


def mixture_mean(xp, z, a, s, centre, width):
    """E[x | z] of x ~ N(±centre, width²) with either sign: data that are no Gaussian."""
    total = a**2 * width**2 + s**2
    gain = a * width**2 / total
    return gain * z + centre * (1 - a * gain) * xp.tanh(a * centre * z / total)


def mixture_denoiser(centre, width):
    def denoise(z, logsnr):
        a, s = alpha_sigma(logsnr)
        x = mixture_mean(np, z, a, s, centre, width)
        return x, (z - a * x) / s

    return denoise


def exact_flow(z, logsnr_t, logsnr_s, mean, variance):
    """The solution of the probability flow ODE: what is centred grows with its deviation."""
    (a_t, s_t), (a_s, s_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    growth = np.sqrt((a_s**2 * variance + s_s**2) / (a_t**2 * variance + s_t**2))
    return a_s * mean + growth * (z - a_t * mean)


def ddim(denoise, z, t, s):
    (a, b), (x, eps) = alpha_sigma(s), denoise(z, t)
    return a * x + b * eps


def dpmpp_2m(denoise, z, t, s, memory, noise=None):
    """Algorithm 2, and with noise its SDE counterpart; λ is half of ours."""
    (_, s_t), (a_s, s_s) = alpha_sigma(t), alpha_sigma(s)
    x, h = denoise(z, t)[0], (s - t) / 2
    D = x
    if memory and np.isfinite(h):
        r = memory["h"] / h
        D = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * memory["x"]
    memory |= {"x": x, "h": h}
    if noise is None:
        return s_s / s_t * z - a_s * (np.exp(-h) - 1) * D
    decay = 1 - np.exp(-2 * h)
    return s_s / s_t * np.exp(-h) * z + a_s * decay * D + s_s * np.sqrt(decay) * noise


def dpmpp_2s(denoise, z, t, s):
    """Algorithm 1 with r = 1/2."""
    if not np.isfinite(s):
        return ddim(denoise, z, t, s)
    middle, h = (t + s) / 2, (s - t) / 2
    (_, s_t), (a_m, s_m), (a_s, s_s) = map(alpha_sigma, (t, middle, s))
    u = s_m / s_t * z - a_m * (np.exp(-h / 2) - 1) * denoise(z, t)[0]
    return s_s / s_t * z - a_s * (np.exp(-h) - 1) * denoise(u, middle)[0]


def edm(rule, denoise, z, t, s, noise, order):
    """Karras et al. 2022, algorithm 2, in x = z/α and σ = e^{−λ/2}."""

    def D(x, sigma):
        logsnr = -2 * np.log(sigma)
        return denoise(x * alpha_sigma(logsnr)[0], logsnr)[0]

    x, sigma, sigma_next = z / alpha_sigma(t)[0], np.exp(-t / 2), np.exp(-s / 2)
    gamma = 0.0
    if rule.churn_min <= sigma <= rule.churn_max:
        gamma = min(rule.churn / rule.steps, np.sqrt(2) - 1)
    sigma_hat = sigma + gamma * sigma
    x = x + np.sqrt(sigma_hat**2 - sigma**2) * rule.churn_noise * noise
    d = (x - D(x, sigma_hat)) / sigma_hat
    x_next = x + (sigma_next - sigma_hat) * d
    if order == 2 and sigma_next != 0:
        d_next = (x_next - D(x_next, sigma_next)) / sigma_next
        x_next = x + (sigma_next - sigma_hat) * (d + d_next) / 2
    return x_next * alpha_sigma(s)[0]


def flow(denoise, z, t, s, method):
    """Runge-Kutta methods on dz/dτ = ε̂ − x̂ in z = (1 − τ) x + τ ε, τ = σ/(α + σ)."""
    (a_t, s_t), (a_s, s_s) = alpha_sigma(t), alpha_sigma(s)
    tau, tau_next = s_t / (a_t + s_t), s_s / (a_s + s_s)

    def velocity(y, tau):
        logsnr = 2 * np.log((1 - tau) / tau)
        x, eps = denoise(y * sum(alpha_sigma(logsnr)), logsnr)
        return eps - x

    y, step = z / (a_t + s_t), tau_next - tau
    u = velocity(y, tau)
    if method is solvers.FlowMidpoint:
        u = velocity(y + step / 2 * u, tau + step / 2)
    if method is solvers.FlowHeun and tau_next > 0:
        u = (u + velocity(y + step * u, tau_next)) / 2
    return (y + step * u) * (a_s + s_s)


def corrector(rule, denoise, z, logsnr, noise):
    if not np.isfinite(logsnr):
        return z
    sigma = alpha_sigma(logsnr)[1]
    return z - rule.delta / 2 * sigma * denoise(z, logsnr)[1] + np.sqrt(rule.delta) * sigma * noise


def distilled(denoise, z, grid, noises):
    """Imagen Video: DDIM over two steps, then one back; the noise of the way to grid[i] is its."""
    for i in range(len(grid) - 2):
        (a, b), (a_far, b_far) = alpha_sigma(grid[i + 1]), alpha_sigma(grid[i + 2])
        far = ddim(denoise, z, grid[i], grid[i + 2])
        deviation = np.sqrt(b**2 - (a / a_far * b_far) ** 2)
        z = a / a_far * far + deviation * noises[i + 1]
    return ddim(denoise, z, grid[-2], grid[-1])


def run(rule, grid, z, noises, denoise):
    """z at the end of the grid; noises `[steps, 2, ...]`: the rule's and the corrector's."""
    grid = np.asarray(grid, np.float64)
    if isinstance(rule, Distilled):
        return distilled(denoise, z, grid, noises[:, 0])
    inner = rule.rule if isinstance(rule, Corrector) else rule
    memory = {}
    for t, s, (noise, own) in zip(grid, grid[1:], noises, strict=False):
        if isinstance(inner, DDIM):
            z = ddim(denoise, z, t, s)
        elif isinstance(inner, solvers.DPMPP2M):
            z = dpmpp_2m(denoise, z, t, s, memory)
        elif isinstance(inner, solvers.DPMPP2MSDE):
            z = dpmpp_2m(denoise, z, t, s, memory, noise)
        elif isinstance(inner, solvers.DPMPP2S):
            z = dpmpp_2s(denoise, z, t, s)
        elif isinstance(inner, solvers.Euler):
            z = edm(inner, denoise, z, t, s, noise, 2 if isinstance(inner, solvers.Heun) else 1)
        else:
            z = flow(denoise, z, t, s, type(inner))
        if isinstance(rule, Corrector):
            z = corrector(rule, denoise, z, s, own)
    return z


def moments(rule, grid, mean, variance):
    """Mean and variance of what is returned from z drawn of the marginal at grid[0], exactly."""
    a, s = alpha_sigma(np.float64(grid[0]))
    start, deviation = a * mean, np.sqrt(a**2 * variance + s**2)
    steps, elements = len(grid) - 1, len(mean)
    # Of all sources of noise one is 1 in each row, in every element: column 0 is z's own.
    sources = np.concatenate([np.zeros((1, 1 + 2 * steps)), np.eye(1 + 2 * steps)])
    z = start + deviation * sources[:, :1]
    noises = np.moveaxis(sources[:, 1:].reshape(-1, steps, 2, 1), 0, 2)
    noises = np.broadcast_to(noises, (steps, 2, len(sources), elements))
    out = run(rule, grid, z, noises, denoiser(mean, variance))
    return out[0], np.sum((out[1:] - out[0]) ** 2, axis=0)
