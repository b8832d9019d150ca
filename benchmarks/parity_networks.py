"""The published networks that `benchmarks.parity` compares, in their real sizes.

Both sides read this table, so it needs neither JAX nor PyTorch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

RECORDED = "recorded.safetensors"  # in the folder of a comparison: inputs and outputs
INPUT, OUTPUT = "input/", "output/"  # how the names of its tensors begin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A network, and the input on which both sides compute.

    Attributes:
      name: for `--only`.
      title: for the table.
      kind: which class it is and what it computes, a key of `benchmarks.parity_ours.READERS`.
      options: of the original class.
      motion: options of the MotionAdapter inside it.
      size: height and width of the input: latents of U-Nets and ControlNets, pixels of others.
      frames: of a clip.
      batch: clips, images or texts.
    """

    name: str
    title: str
    kind: str
    options: Mapping[str, Any]
    motion: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 16
    frames: int = 1
    batch: int = 2

    @property
    def input(self) -> str:
        """The input, for the table."""
        if self.kind == "text":
            return f"{self.batch} × 77 tokens"
        channels = {"unet": 4, "controlnet": 4, "motion": 4, "wan": 16}.get(self.kind, 3)
        frames = f"{self.frames} × " if self.frames > 1 else ""
        return f"{self.batch} × {frames}{self.size} × {self.size} × {channels}"


_SD_1 = {"cross_attention_dim": 768}
_SD_2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_LARGE = {"num_attention_heads": 16, "intermediate_size": 4096, "hidden_size": 1024}
_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
}
NETWORKS = (
    Published(name="sd15", title="U-Net, SD 1.5", kind="unet", options=_SD_1),
    Published(name="sd21", title="U-Net, SD 2.1-v", kind="unet", options=_SD_2),
    Published(name="controlnet", title="ControlNet, SD 1.5", kind="controlnet", options=_SD_1),
    Published(
        name="clip-l-text",
        title="CLIP L/14, text",
        kind="text",
        options={
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
        },
    ),
    Published(
        name="clip-h-text",
        title="OpenCLIP H/14, text, SD 2's 23 layers",
        kind="text",
        options={**_LARGE, "num_hidden_layers": 23, "hidden_act": "gelu"},
    ),
    Published(
        name="clip-l-vision",
        title="CLIP L/14, vision",
        kind="vision",
        options={**_LARGE, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
        size=224,
    ),
    Published(
        name="clip-h-vision",
        title="OpenCLIP H/14, vision",
        kind="vision",
        options={
            "hidden_size": 1280,
            "num_attention_heads": 16,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "patch_size": 14,
            "projection_dim": 1024,
            "hidden_act": "gelu",
        },
        size=224,
    ),
    Published(
        name="autoencoder-kl",
        title="AutoencoderKL, SD",
        kind="autoencoder",
        options={**_KL, "up_block_types": ("UpDecoderBlock2D",) * 4},
        size=64,
    ),
    Published(
        name="autoencoder-temporal",
        title="AutoencoderKLTemporalDecoder, SVD",
        kind="temporal",
        options=_KL,
        size=64,
        frames=4,
        batch=1,
    ),
    Published(name="taesd", title="AutoencoderTiny, TAESD", kind="tiny", options={}, size=64),
    Published(
        name="motion-v2",
        title="MotionAdapter v2 on SD 1.5",
        kind="motion",
        options=_SD_1,
        motion={"use_motion_mid_block": True},
        frames=4,
        batch=1,
    ),
    Published(
        name="motion-v3",
        title="MotionAdapter v3 on SD 1.5",
        kind="motion",
        options=_SD_1,
        motion={"use_motion_mid_block": False},
        frames=4,
        batch=1,
    ),
    Published(
        name="wan-autoencoder",
        title="AutoencoderKLWan, Wan 2.1",
        kind="wan-autoencoder",
        options={},
        size=64,
        frames=9,
        batch=1,
    ),
    Published(
        name="wan-1.3b",
        title="Transformer, Wan 2.1 of 1.3 B",
        kind="wan",
        options={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        frames=3,
        batch=1,
    ),
)
