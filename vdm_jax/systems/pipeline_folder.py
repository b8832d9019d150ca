"""The folders of published pipelines: what the systems that write them share."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm_jax.weights import published


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_parts(folder: Path, sources: Mapping[str, Path]) -> None:
    """Copies the folders of parts, by their names, without pickles and our records of digests.
    Raises FileExistsError."""
    keep = shutil.ignore_patterns(published.RECORD, "*.bin", "*.ckpt")
    for part, source in sources.items():
        shutil.copytree(source, folder / part, ignore=keep)
