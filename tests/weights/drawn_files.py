"""Golden files whose weights are drawn: what a published network computes, with its configuration
and the shapes of its weights in the metadata. The scripts record_*.py write them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from tests.weights import drawn_weights

FOLDER = Path(__file__).parent / "golden"


class Drawn(NamedTuple):
    """The configuration, the drawn weights by name, and inputs, outputs and gradients."""

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    def write(self, folder: Path, stem: str, **changes: Any) -> Path:
        """The folder as it is published, with `changes` of its config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**self.config, **changes}))
        safetensors.numpy.save_file(self.weights, folder / f"{stem}.safetensors")
        return folder

    def gradients(self) -> dict[str, np.ndarray]:
        """The recorded gradients of parameters, by their published names."""
        found = {k.removeprefix("gradient/"): v for k, v in self.values.items()}
        return {name: found[name] for name in self.weights if f"gradient/{name}" in self.values}


def read(name: str) -> Drawn:
    """The file NAME.safetensors."""
    path = FOLDER / f"{name}.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    config, shapes, factors = (json.loads(metadata[k]) for k in ("config", "shapes", "factors"))
    weights = drawn_weights.draw_all(shapes, factors)
    return Drawn(config, weights, safetensors.numpy.load_file(path))


def assert_close(found, wanted, within: float = 1e-4, name: str = "") -> None:
    """`within`: of the largest wanted value."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape, name
    scale = np.abs(wanted).max()
    assert scale > 0, name
    assert np.abs(found - wanted).max() <= within * scale, name
