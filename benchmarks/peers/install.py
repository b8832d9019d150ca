"""The peers' environment, made once: PyTorch for the CPU and the peers, at pinned versions.

    python -m benchmarks.peers.install

PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives the CPU build of PyTorch where the
default index has the CUDA build. The peers are installed without what they declare: plainly, they
replace a CPU torch by a CUDA build through torchvision, and bring half a dozen libraries that
nothing here imports.
"""

import json
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parent.parent / ".peer"
TORCH = ("torch==2.13.0",)
# Installed without their dependencies.
PEERS = (
    "torchvision==0.28.0",
    "video-diffusion-pytorch==0.7.0",
    "einops==0.8.2",
    "einops-exts==0.0.4",
    "rotary-embedding-torch==0.9.1",
    "diffusers==0.42.1",
    "make-a-video-pytorch==0.4.0",
    "lumiere-pytorch==0.0.24",
    "denoising-diffusion-pytorch==2.3.4",
    "beartype==0.23.1",
    "x-transformers==2.31.10",
    "torch-einops-utils==0.2.0",
    "einx==0.4.3",
    "frozendict==2.5.1",
    "loguru==0.7.3",
    "ema-pytorch==0.8.3",
    "accelerate==1.15.0",
)
# What those import and what does not depend on torch.
LIGHT = (
    "numpy==2.4.6",
    "pillow==13.0.0",
    "tqdm==4.70.1",
    "packaging==26.4",
    "psutil==7.2.2",
    "pyyaml==6.0.4",
    "scipy==1.17.1",
    "safetensors==0.8.0",
    "huggingface-hub==2.4.0",
    "requests==2.34.2",
)
STEPS = (TORCH + LIGHT, ("--no-deps", *PEERS))


def install() -> Path:
    """The Python of the peers' environment, made on the first call and when a version changes."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "installed.json"
    wanted = json.dumps(STEPS)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers into {ENVIRONMENT} (once)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    for packages in STEPS:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    print(install())
