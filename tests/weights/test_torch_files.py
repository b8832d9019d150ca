"""Files of torch are read as tensors, and nothing in them is run."""

import io
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vdm_jax.weights import torch_files

FILE = Path(__file__).parent / "golden" / "tensors.pth"


def test_tensors_of_every_layout_are_read():
    found = torch_files.read(FILE)
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "state_dict.weight": np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1),
        "state_dict.bias": np.arange(3, dtype=np.float32) + 1,
        "transposed": base.T,
        "part": base[1:, 2],
        "half": base.astype(np.float16),
        "brain": base.astype(ml_dtypes.bfloat16),
        "count": np.array(7),
        "parameter": base[0],
    }
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def archive(program, storages=None):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", program)
        for name, content in (storages or {}).items():
            made.writestr(f"archive/data/{name}", content)
    return file


class Runs:
    """What runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def touched(path):
    Path(path).write_text("ran")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_that_asks_for_more_than_tensors_is_refused_and_not_run(tmp_path, protocol):
    program = pickle.dumps({"w": Runs(touched, str(tmp_path / "ran"))}, protocol)
    with pytest.raises(ValueError, match="only tensors are read"):
        torch_files.read(archive(program), "bad.pth")
    assert not (tmp_path / "ran").exists()


def tensor(storage=b"", shape=b"K\x02\x85", strides=b"K\x01\x85", rebuild=b"_rebuild_tensor_v2"):
    """A pickle of {"w": a tensor}, whose parts are opcodes."""
    storage = storage or b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    storage += b"X\x03\x00\x00\x00cpuK\x02t"
    built = b"ctorch._utils\n" + rebuild + b"\n(" + storage + b"QK\x00" + shape + strides
    return b"\x80\x02}X\x01\x00\x00\x00w" + built + b"\x89ccollections\nOrderedDict\n)RtRs."


def test_a_pickle_made_by_hand_is_read():
    numbers = np.array([1, 2], np.float32)
    found = torch_files.read(archive(tensor(), {"0": numbers.tobytes()}))
    np.testing.assert_array_equal(found["w"], numbers)


@pytest.mark.parametrize(
    "program,message",
    [
        (tensor(shape=b"K\x03\x85"), "reaches beyond its storage of 2"),
        (tensor(strides=b"K\x05\x85"), "reaches beyond its storage of 2"),
        (tensor(strides=b"J\xff\xff\xff\xff\x85"), "make no tensor"),
        (tensor(strides=b")"), "make no tensor"),
        (tensor(rebuild=b"_rebuild_device_tensor_from_numpy"), "asks for torch._utils._rebuild_"),
        (tensor(storage=b"(X\x06\x00\x00\x00modulectorch\nFloatStorage\n)"), "is no storage"),
        (
            tensor().replace(b"\x89ccollections\nOrderedDict\n)R", b"\x89cos\nsystem\n)R"),
            "os.system",
        ),
        (b"\x80\x02]q\x00.", "holds a list"),
        (b"\x80\x02}q\x00", "its pickle is damaged"),
        (b"\x80\x02ccollections\nOrderedDict\n}\x85R.", "calls _Name"),
    ],
)
def test_broken_and_odd_pickles_are_refused(program, message):
    with pytest.raises(ValueError, match=message):
        torch_files.read(archive(program, {"0": np.zeros(2, np.float32).tobytes()}), "odd.pth")


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        torch_files.read(tmp_path / "none.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"old\.pth: not a file of tensors"):
        torch_files.read(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as made:
        made.writestr("a/b", "c")
    with pytest.raises(ValueError, match=r"other\.zip.*no data\.pkl"):
        torch_files.read(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as made:
        made.writestr("archive/data.pkl", tensor())
        made.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match="big-endian"):
        torch_files.read(tmp_path / "big.pth")
