"""The share of a picture that text covers, from each pixel's chance to be text."""

import numpy as np
import pytest

from vdm_jax.data.curation import text
from vdm_jax.data.source import DataError


def chances(*boxes, size=(100, 200), chance=0.9):
    found = np.zeros(size, np.float32)
    for top, left, height, width in boxes:
        found[top : top + height, left : left + width] = chance
    return found


def test_marked_boxes_grow_to_what_the_text_covers():
    """The network is trained to mark boxes that lack area over perimeter times 1.6."""
    assert text.covered(chances(), 0.5) == 0
    grown = 1.6 * 20 * 80 / (2 * (20 + 80))
    expected = (20 + 2 * grown) * (80 + 2 * grown) / (100 * 200)
    assert text.covered(chances((40, 50, 20, 80)), 0.5) == pytest.approx(expected, rel=0.12)


def test_boxes_that_overlap_count_once():
    one = text.covered(chances((40, 20, 20, 60)), 0.5)
    both = text.covered(chances((40, 20, 20, 60), (40, 82, 20, 60)), 0.5)
    assert one < both < 2 * one


@pytest.mark.parametrize("boxes,chance", [([(40, 50, 2, 2)], 0.9), ([(40, 50, 20, 80)], 0.4)])
def test_specks_and_doubtful_boxes_do_not_count(boxes, chance):
    assert text.covered(chances(*boxes, chance=chance), 0.5) == 0


def test_pictures_are_enlarged_and_blue_comes_first():
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[..., 0] = 255
    found = text.prepare(picture, 480)
    assert found.shape == (1, 3, 480, 864) and found.dtype == np.float32
    assert found[0, 2].min() == 1 and found[0, 0].max() == -1
    assert text.prepare(np.zeros((700, 900, 3), np.uint8), 480).shape == (1, 3, 704, 896)


def test_another_file_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(b"no network")
    monkeypatch.setenv(text.VARIABLE, str(path))
    with pytest.raises(DataError, match="is not PP-OCRv4's detector"):
        text.model_file()
    monkeypatch.setenv(text.VARIABLE, str(tmp_path / "missing.onnx"))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        text.model_file()
