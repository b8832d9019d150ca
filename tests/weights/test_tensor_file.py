"""Files of weights can be read by whom the user's other files can."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.weights import tensor_file

PACKAGE = Path(tensor_file.__file__).parents[1]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_of_any_other_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        tensor_file.write(tmp_path / "a.safetensors", {"a": np.zeros(3)}, {"format": "pt"})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_nothing_else_writes_such_files():
    writing = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(
            isinstance(node, ast.Attribute) and node.attr == "save_file"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert writing == ["tensor_file.py"]
