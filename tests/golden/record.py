"""Records what the shipped models compute: the reference of `tests/golden/test_golden.py`.

    python -m tests.golden.record        # overwrites tests/golden/shipped.npz

Run it only after a change that is meant to change a shipped model's output.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import vdm_jax

FILE = Path(__file__).parent / "shipped.npz"
COUNT = 256  # numbers a model
PROMPTS = ["a red circle moving left", "a blue square moving up"]


def evaluate(model) -> np.ndarray:
    """`COUNT` values of x̂ of one denoiser evaluation, batch 2, the second example without text."""
    rng = np.random.default_rng(0)
    shape = (2, 8, 16, 16, model.stage.z_shape[-1])

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    z, low_res, known = normal(*shape), normal(*shape), normal(*shape)
    mask = jnp.asarray(rng.random((*shape[:4], 1)) < 0.5, jnp.float32)
    length, width = model.config.text.max_length, 384
    cond = {
        "tokens": jnp.asarray(rng.integers(1, 6, size=(2, length)), jnp.int32),
        "text_embeddings": normal(2, length, width).astype(jnp.float16),
        "token_mask": jnp.arange(length)[None] < jnp.array([[5], [3]]),
        "keep_text": jnp.array([True, False]),
        "guidance": jnp.array([1.5, 2.0]),
        "fps": jnp.array([6.0, 12.0]),
        "low_res": low_res,
        "low_res_logsnr": jnp.array([3.0, 1.0]),
        "low_res_residual": jnp.full((*shape[:4], 1), 0.2),
        "masked_video": known * mask,
        "mask": mask,
    }
    x = jax.jit(
        lambda params: model.stage.denoiser(params)(z, jnp.array([0.5, -2.0]), cond).x
    )
    values = np.asarray(x(model.params), np.float32).ravel()
    return values[:: values.size // COUNT][:COUNT]


def parameters(model) -> np.ndarray:
    """Name and shape of every parameter, one text each, sorted."""
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    named = (
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(leaf.shape)}"
        for path, leaf in leaves
    )
    return np.array(sorted(named))


def sample(model) -> np.ndarray:
    """Two videos, uint8, of a fixed key, four steps."""
    return model.sample(jax.random.key(0), prompts=PROMPTS, steps=4)


def main() -> None:
    from vdm_jax.pipelines import model as pretrained

    found = {}
    for name in pretrained.shipped_names():
        model = vdm_jax.load(name)
        found[f"{name}:values"], found[f"{name}:names"] = evaluate(model), parameters(model)
        print(name, found[f"{name}:values"][:3], flush=True)
    found["moving_shapes:videos"] = sample(vdm_jax.load("moving_shapes"))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
