"""Writing of safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file that those may read who may read the user's other new files.

    safetensors itself makes files for their owner alone, which others of a lab cannot load.
    Raises OSError, SafetensorError.
    """
    path.touch()
    mode = path.stat().st_mode
    safetensors.numpy.save_file(dict(tensors), path, metadata=dict(metadata))
    path.chmod(mode)
