"""The folders of published pipelines: what the systems that write them share."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vdm_jax.weights import published

OURS = "_vdm_jax"
"""The entry of model_index.json that holds what this library needs where the text encoder is none
that the published pipeline has. The published library ignores names that begin so."""
_OUR_SECTIONS = ("text", "data", "sample")
_OF_MACHINE = ("data_dir", "workers")  # fields of those that are not written


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


def own_sections(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The sections of a configuration that `OURS` holds."""
    sections = {section: config[section].to_dict() for section in _OUR_SECTIONS}
    return {
        section: {name: value for name, value in fields.items() if name not in _OF_MACHINE}
        for section, fields in sections.items()
    }


def take_own_sections(config: ConfigDict, index: Mapping[str, Any]) -> None:
    """Sets what `OURS` of a model_index.json holds, if it is there, in a configuration."""
    for section, values in (index.get(OURS) or {}).items():
        lists = (name for name, value in values.items() if isinstance(value, list))
        config[section].update(values | {name: tuple(values[name]) for name in lists})


def part_folder(name: str) -> Path:
    """The folder of an autoencoder, also of one that ships with the package. Raises ValueError."""
    if not name:
        raise ValueError("model.autoencoder = '': must name the folder of the autoencoder's files")
    return published.find_folder(name)
