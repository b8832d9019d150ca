"""Golden files: what a published network's original computes, with its folder's content.

A file holds the configuration in its metadata, the folder's tensors as weights/NAME, and inputs,
outputs and gradients under names of their own. `recording.py` writes them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from vdm_jax.weights import published

FOLDER = Path(__file__).parent / "golden"
_WEIGHTS = "weights/"


class Golden(NamedTuple):
    """The configuration, the folder's tensors by name, and inputs, outputs and gradients."""

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    values: dict[str, np.ndarray]


def read(name: str) -> Golden:
    """The file NAME.safetensors."""
    path = FOLDER / f"{name}.safetensors"
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        config = json.loads(file.metadata()["recorded"])["config"]
    weights = {k.removeprefix(_WEIGHTS): v for k, v in tensors.items() if k.startswith(_WEIGHTS)}
    values = {k: v for k, v in tensors.items() if not k.startswith(_WEIGHTS)}
    return Golden(config, weights, values)


def write_folder(folder: Path, golden: Golden, **changes: Any) -> Path:
    """The folder as it was published, with `changes` of its config.json."""
    folder.mkdir(exist_ok=True)
    (folder / published.RECORD).unlink(missing_ok=True)  # other files are meant
    safetensors.numpy.save_file(golden.weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**golden.config, **changes}))
    return folder


def assert_close(found, expected, within: float = 1e-4) -> None:
    """`within`: of the largest value."""
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, atol=within, rtol=0)


def weighted(*outputs):
    """The scalar whose gradients were recorded."""
    return sum((x * jnp.linspace(-1, 1, x.size).reshape(x.shape)).sum() for x in outputs)


def check_text_encoder(network, params, values) -> None:
    """States, and the gradient with respect to the table of words, are those recorded."""
    tokens, mask = jnp.asarray(values["tokens"], jnp.int32), jnp.asarray(values["mask"])

    @jax.jit
    def run(params):
        def loss(table):
            changed = {**params, "words": {"embedding": table}}
            states = network.apply({"params": changed}, tokens, mask)
            return weighted(states * mask[..., None]), states

        return jax.grad(loss, has_aux=True)(params["words"]["embedding"])

    gradient, states = run(params)
    seen = values["mask"]
    assert_close(np.asarray(states)[seen], values["states"][seen])
    assert_close(gradient, values["gradient/words"], within=1e-3)
