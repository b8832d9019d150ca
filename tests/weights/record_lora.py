"""Records what diffusers makes of a pipeline's weights with LoRA files, for `test_lora.py`.

    PYTHON -m tests.weights.record_lora

PYTHON has torch, diffusers, transformers and peft. `golden/lora.safetensors` holds some values of
each fused weight, by the layout of the LoRA file; its metadata holds the shapes of the files'
tensors. Weights are drawn (`drawn_weights.py`).
"""

import importlib.metadata
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from tests.weights import drawn_weights
from tests.weights.record_pipeline import pipeline

FILE = Path(__file__).parent / "golden" / "lora.safetensors"
SCALE, EVERY, ALPHA = 0.7, 7, 3.0
RANKS = {"conv": 2, "linear": 4}
BLOCK = "down_blocks.0.attentions.0"
UNET = (
    f"{BLOCK}.proj_in",
    f"{BLOCK}.transformer_blocks.0.attn1.to_q",
    f"{BLOCK}.transformer_blocks.0.attn2.to_k",
    f"{BLOCK}.transformer_blocks.0.attn2.to_out.0",
    f"{BLOCK}.transformer_blocks.0.ff.net.0.proj",
    f"{BLOCK}.transformer_blocks.0.ff.net.2",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.1.resnets.0.conv_shortcut",
)
TEXT = ("text_model.encoder.layers.1.self_attn.q_proj", "text_model.encoder.layers.0.mlp.fc1")


def shapes(network, names, layout, part):
    """The tensors of a file for some layers."""
    state, found = network.state_dict(), {}
    for name in names:
        own = name if f"{name}.weight" in state else name.removeprefix("text_model.")
        outputs, inputs, *kernel = state[f"{own}.weight"].shape
        rank = RANKS["conv" if kernel else "linear"]
        ends = ("lora_A", "lora_B") if layout == "diffusers" else ("lora_down", "lora_up")
        kohya = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + name.replace(".", "_")
        layer = f"{part}.{name}" if layout == "diffusers" else kohya
        found[f"{layer}.{ends[0]}.weight"] = [rank, inputs, *kernel]
        found[f"{layer}.{ends[1]}.weight"] = [outputs, rank, *[1] * len(kernel)]
        if layout == "kohya":
            found[f"{layer}.alpha"] = []
    return found


def tensors(shapes):
    """The content of a file; `alpha` is `ALPHA`."""
    drawn = drawn_weights.draw_all({n: s for n, s in shapes.items() if s})
    return drawn | {n: np.array(ALPHA, np.float32) for n, s in shapes.items() if not s}


def record(layout):
    pipe = pipeline()
    parts = {"unet": (pipe.unet, UNET), "text_encoder": (pipe.text_encoder, TEXT)}
    if layout == "kohya":
        # The text encoder's attention of such files is dropped by these versions.
        parts["text_encoder"] = (pipe.text_encoder, TEXT[1:])
    if layout == "metadata":
        parts = {"unet": (pipe.unet, UNET[1:4])}
    form = "kohya" if layout == "kohya" else "diffusers"
    held = {}
    for part, (network, names) in parts.items():
        held |= shapes(network, names, form, part)
    metadata = {"format": "pt"}
    if layout == "metadata":
        settings = {"unet.r": 4, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 10}}
        settings["unet.target_modules"] = list(UNET[1:4])
        metadata["lora_adapter_metadata"] = json.dumps(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        safetensors.numpy.save_file(tensors(held), path, metadata)
        pipe.load_lora_weights(path)
        pipe.fuse_lora(lora_scale=SCALE)
    values = {}
    for part, (network, names) in parts.items():
        state = network.state_dict()
        for name in names:
            own = name if part == "unet" else name.removeprefix("text_model.")
            keys = [k for k in state if k.endswith(f"{own}.base_layer.weight")]
            (key,) = keys
            fused = state[key].numpy().ravel()[::EVERY]
            values[f"{layout}/{part}.{name}"] = np.ascontiguousarray(fused)
    return values, {"shapes": held, "metadata": metadata}


if __name__ == "__main__":
    torch.set_num_threads(1)
    values, files = {}, {}
    for layout in ("diffusers", "kohya", "metadata"):
        found, files[layout] = record(layout)
        values |= found
    libraries = ("torch", "diffusers", "transformers", "peft")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    content = {"recorded": json.dumps({"files": files, "versions": versions})}
    safetensors.numpy.save_file(values, FILE, content)
    FILE.chmod(0o644)
    print(FILE.name, FILE.stat().st_size, versions)
