"""Writes golden files, for the scripts record_*.py, which run where torch is installed."""

import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = f"torch {torch.__version__}, transformers {transformers.__version__}"


def randomised(model):
    """The model with weights that all matter, drawn from the order of their names alone."""
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.2 if parameter.ndim < 2 else 1.0 if "embedding" in name else 0.3
        is_scale = "norm" in name.lower() and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(noise * scale + is_scale)
    return model.eval()


def record(name, model, tensors, state=None, config=None):
    """One file: the folder's config.json and tensors, and inputs, outputs and gradients.

    state, config: in the place of what save_pretrained writes.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        written = safetensors.torch.load_file(f"{folder}/model.safetensors")
        content = config or json.loads(Path(folder, "config.json").read_text())
    held = {f"weights/{key}": value for key, value in (state or written).items()}
    held |= {key: value.detach().contiguous() for key, value in tensors.items()}
    save(GOLDEN / f"{name}.safetensors", held, content)


def save(path, tensors, config):
    """Raises AssertionError where the file is too large to be committed."""
    # One entry: several are written in any order, and a new recording would differ.
    recorded = json.dumps({"config": config, "versions": VERSIONS})
    safetensors.torch.save_file(tensors, path, metadata={"recorded": recorded})
    path.chmod(0o644)
    print(path.name, path.stat().st_size)
    assert path.stat().st_size <= 200_000


def weighted(*outputs):
    """A scalar that every value of the outputs has a part in."""
    total = 0.0
    for output in outputs:
        total = total + (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum()
    return total
