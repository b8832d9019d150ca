"""The comparison with published originals, on a tiny network and without PyTorch."""

import sys

import numpy as np
import pytest

from benchmarks import parity
from benchmarks.parity_networks import NETWORKS, Published
from benchmarks.parity_ours import READERS, difference

TINY = Published(name="tiny", title="tiny", kind="text", options={})
# Writes what record_clip.py recorded as the originals' process does.
PEER = """
from pathlib import Path
import safetensors.numpy
from benchmarks import serving
from benchmarks.parity_networks import INPUT, OUTPUT, RECORDED
from tests.weights import golden_files

def write(name, folder):
    golden = golden_files.read("clip_text")
    golden_files.write_folder(Path(folder) / "network", golden)
    values = {INPUT + "tokens": golden.values["tokens"].astype("int32")}
    for output in ("states", "pooled"):
        values[OUTPUT + output] = golden.values[output]
    safetensors.numpy.save_file(values, Path(folder) / RECORDED)
    parameters = sum(w.size for name, w in golden.weights.items() if "position_ids" not in name)
    return {"parameters": parameters, "versions": {"torch": "0"}}

serving.serve(lambda: {"write": write})
"""


def test_a_tiny_network_is_compared_by_two_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = parity.measure(TINY, [sys.executable, "-c", PEER], limit=120)
    assert parity.is_right(result), result
    assert result["parameters"] > 1000
    assert result["tensors"] > 10
    assert result["load_bytes"] > 0
    assert set(result["differences"]) == {"states", "pooled"}
    assert set(result["versions"]) == {"jax", "flax", "torch"}
    assert not list(tmp_path.iterdir())


def test_a_failing_original_is_a_row():
    result = parity.measure(TINY, [sys.executable, "-c", "raise SystemExit(3)"], limit=120)
    assert "status 3" in result["error"] or "has ended" in result["error"]
    assert not parity.is_right(result)


def test_difference_is_relative_to_the_largest_value():
    wanted = np.array([1.0, -4.0])
    assert difference(np.array([1.0, -4.2]), wanted) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="not finite"):
        difference(np.array([np.nan, 1.0]), wanted)
    with pytest.raises(ValueError, match="shape"):
        difference(np.zeros(3), wanted)


def test_a_difference_above_the_tolerance_is_not_right():
    assert parity.is_right({"differences": {"a": 9e-5}})
    assert not parity.is_right({"differences": {"a": 9e-5, "b": 2e-4}})


def test_networks_are_chosen_by_name(capsys):
    assert parity.choose("") == list(NETWORKS)
    assert [row.name for row in parity.choose("taesd,sd15")] == ["taesd", "sd15"]
    options = parity.parse(["--peer_python=python", "--only=taesd", "--json=x"])
    assert [row.name for row in options.networks] == ["taesd"]
    with pytest.raises(SystemExit):
        parity.parse(["--peer_python=python", "--only=taesd,other"])
    assert "--only=other: allowed are sd15, " in capsys.readouterr().err
    assert {row.kind for row in NETWORKS} == READERS.keys()


def test_the_table_has_a_row_for_each_network():
    result = {
        "parameters": 1234,
        "tensors": 5,
        "differences": {"mean": 1e-6, "decoded": 3e-6},
        "load_seconds": 0.25,
        "load_bytes": 11_000_000,
        "file_bytes": 10_000_000,
    }
    head, _, first, second = parity.table({"taesd": result, "sd15": {"error": "no | memory"}})
    assert "fails: no / memory" in first
    assert "| 1,234 | 5 | 2 × 64 × 64 × 3 | 3.0e-06 | 10 | 0.2 | 11 | 1.10 |" in second
    assert len({line.count("|") for line in (head, first, second)}) == 1
