"""vdm export writes a model as a file that loads again."""

import numpy as np
import pytest

from vdm_jax.cli import export
from vdm_jax.pipelines import model as pretrained
from vdm_jax.pipelines import model_file as files


def test_a_model_is_written_whole_or_as_its_difference(model_file, tmp_path, capsys):
    half, same = tmp_path / "half.safetensors", tmp_path / "same.safetensors"
    assert export.main([f"--model={model_file}", f"--out={half}", "--half"]) == 0
    assert pretrained.digest(half) in capsys.readouterr().out
    tensors = files.read_tensors(half)
    assert tensors and all(tensor.dtype == np.float16 for tensor in tensors.values())
    assert export.main([f"--model={half}", f"--out={same}", f"--base={half}"]) == 0
    assert files.read_tensors(same) == {}
    assert pretrained.read_config(same) == pretrained.read_config(model_file)
    with pytest.raises(SystemExit):
        export.main([f"--model={half}", f"--out={tmp_path / 'folder'}"])
