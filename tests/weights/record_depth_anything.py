"""Records what transformers computes with Depth Anything, for `test_depth_anything.py`.

    python tests/weights/record_depth_anything.py

Needs torch, transformers and Pillow. The networks are tiny and their weights random.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from recording import GOLDEN, randomised, record, save, weighted
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

PATCH = 4


def config(width=12, heads=2, layers=5, taps=(1, 2, 4, 5), image_size=20, patch=PATCH, **changes):
    backbone = Dinov2Config(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        out_indices=list(taps),
        image_size=image_size,
        patch_size=patch,
        reshape_hidden_states=False,
    )
    return DepthAnythingConfig(
        backbone_config=backbone, patch_size=patch, reassemble_hidden_size=width, **changes
    )


def record_networks():
    necks = {"neck_hidden_sizes": [4, 6, 8, 10], "fusion_hidden_size": 8, "head_hidden_size": 6}
    metric = {"depth_estimation_type": "metric", "max_depth": 20}
    for name, changes in {"relative": {}, "metric": metric}.items():
        model = randomised(DepthAnythingForDepthEstimation(config(**necks, **changes)))
        generator = torch.Generator().manual_seed(0)
        # One of the size of the positions, and one that they are interpolated to.
        shape = (2, 3, 5 * PATCH, 5 * PATCH) if name == "metric" else (2, 3, 3 * PATCH, 7 * PATCH)
        images = torch.randn(shape, generator=generator, requires_grad=True)
        depth = model(images).predicted_depth
        weighted(depth).backward()
        print(name, float(depth.min()), float(depth.max()), float((depth == 0).float().mean()))
        values = {"images": images, "depth": depth, "gradient/images": images.grad}
        record(f"depth_anything_{name}", model, values)


def record_preprocessing():
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    processor = DPTImageProcessorPil(
        size={"height": 42, "width": 42}, keep_aspect_ratio=True, ensure_multiple_of=14
    )
    held, draws = {}, np.random.default_rng(0)
    for name, (height, width) in {"wide": (37, 61), "tall": (90, 31), "small": (9, 13)}.items():
        image = draws.integers(256, size=(height, width, 3), dtype=np.uint8)
        values = processor(image, return_tensors="np").pixel_values[0]
        held[f"{name}/image"] = torch.from_numpy(image)
        held[f"{name}/values"] = torch.from_numpy(np.ascontiguousarray(values.transpose(1, 2, 0)))
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        (written,) = Path(folder).iterdir()
        content = json.loads(written.read_text())
    save(GOLDEN / "depth_anything_images.safetensors", held, content)


def count():
    """Parameters and tensors of version 2's small size, which the test has."""
    with torch.device("meta"):
        small = config(384, 6, 12, (3, 6, 9, 12), 518, 14)
        state = DepthAnythingForDepthEstimation(small).state_dict()
    print(sum(value.numel() for value in state.values()), len(state))


if __name__ == "__main__":
    torch.set_num_threads(1)
    record_networks()
    record_preprocessing()
    count()
