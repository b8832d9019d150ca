"""Parameters that NumPy draws, for tests to which it does not matter how a network starts.

Compiling JAX's initialisers takes seconds for each network; this takes none.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def params(part, seed: int = 0):
    """Parameters of a stage: none is zero, and features keep their order of magnitude.

    Kernels have the variance of one over their inputs, scales are near 1, all else near 0.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            values /= np.sqrt(leaf.size // leaf.shape[-1])
        else:
            values *= 0.1
        if path[-1].key == "scale":
            values += 1
        return jnp.asarray(values, leaf.dtype)

    shapes = nn.meta.unbox(part.abstract_params())
    return jax.tree_util.tree_map_with_path(draw, shapes)
