"""Where a network begins to read a frozen text encoder's states.

A small encoder's states hardly differ from token to token: all of them say what the sentence is
about, and which word belongs to which lies in directions along which they vary little. Training
finds those late. Here the layer that takes the states in starts with the principal directions of
the data's captions scaled alike (principal component analysis), and is trained from there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from vdm_jax.parallel import sharding
from vdm_jax.training import state

# Below this share of the largest variance a direction is float16's rounding.
_NOISE = 1e-6


def statistics(
    states: Float[np.ndarray, "n width"], count: int
) -> tuple[Float[np.ndarray, "width"], Float[np.ndarray, "width count"]]:
    """Mean and projection: (states - mean) @ projection has uncorrelated entries of variance 1.

    count: how many of the principal directions are kept, those of the largest variance. Raises
    ValueError where the states vary in fewer.
    """
    mean = states.mean(axis=0, dtype=np.float64)
    centred = states - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(states))
    varied = int((variances > _NOISE * variances[-1]).sum())
    if not 1 <= count <= varied:
        raise ValueError(
            f"text.whiten = {count}: must be from 1 to {varied}, the number of directions in which "
            f"{len(states)} tokens of the data's captions vary; 0 = none"
        )
    kept = slice(-1, -1 - count, -1)
    projection = directions[:, kept] / np.sqrt(variances[kept])
    return mean.astype(np.float32), projection.astype(np.float32)


def initial_params(
    stage, plan: sharding.Plan, seed: int, states: Float[np.ndarray, "n width"], count: int
) -> PyTree:
    """The parameters that `state.create_state` makes, but for the layer that takes in `states`,
    those of tokens of the data's captions: it sees `count` whitened directions of them."""
    mean, projection = statistics(states, count)

    def start(params: PyTree, mean: jax.Array, projection: jax.Array) -> PyTree:
        layer = params["condition"]["text_states"]
        # Drawn for `width` inputs; for `count` their variance is larger.
        random = layer["kernel"][:count] * jnp.sqrt(len(mean) / count)
        kernel = projection @ random
        changed = {"kernel": kernel, "bias": layer["bias"] - mean @ kernel}
        condition = params["condition"] | {"text_states": changed}
        return params | {"condition": condition}

    params = state.create_params(stage, seed, plan)
    return jax.jit(start, out_shardings=plan.params)(params, mean, projection)
