"""NVIDIA GPUs of this machine, counted by the driver's own tool, so that JAX need not work."""

import os
import subprocess
from collections.abc import Mapping

# Seconds. The first call after a start of the machine loads the driver, if no daemon keeps it.
_PATIENCE = 60


def listed() -> int:
    """How many GPUs `nvidia-smi` lists; 0 where it is missing or fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_PATIENCE
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return sum(line.startswith("GPU ") for line in lines)


def visible(environment: Mapping[str, str] = os.environ) -> int:
    """How many GPUs a process may use: those of CUDA_VISIBLE_DEVICES, else those of `listed`."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return listed()
    names = [name.strip() for name in chosen.split(",")]
    # CUDA ignores every entry from the first invalid one on.
    end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
    return min(end, listed())
