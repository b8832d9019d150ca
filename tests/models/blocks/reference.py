"""Layers written out in numpy, and random parameters for those of the library."""

import flax.linen as nn
import jax
import numpy as np

HEADS, HEAD_DIM, CHANNELS = 2, 4, 8


def randomised(module, x, *args):
    """Parameters without zeros and the compiled output for them; `args` are static."""
    rng = np.random.default_rng(1)
    shapes = nn.meta.unbox(jax.eval_shape(lambda x: module.init(jax.random.key(0), x, *args), x))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes["params"])
    output = jax.jit(lambda params, x: module.apply({"params": params}, x, *args))(params, x)
    return params, np.asarray(output)


def normed(x, params, groups):
    """Group normalisation of one frame (h, w, c), in numpy float64."""
    h, w, c = x.shape
    grouped = x.astype(np.float64).reshape(h * w, groups, c // groups)
    mean = grouped.mean((0, 2), keepdims=True)
    var = grouped.var((0, 2), keepdims=True)
    flat = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(h * w, c)
    return flat * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])


def softmax(a, axis=-1):
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def project(h, params, name):
    return np.einsum("pc,chd->phd", h, np.asarray(params[name]["kernel"], np.float64))


def merge(h, params):
    out = np.einsum("phd,hdc->pc", h, np.asarray(params["out"]["kernel"], np.float64))
    return out + np.asarray(params["out"]["bias"])
