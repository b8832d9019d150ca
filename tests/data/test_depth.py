"""Depth from files of every kind, and by an estimator."""

import numpy as np
import pytest
from PIL import Image

from tests.data.test_exr import write
from tests.weights import golden_files
from tests.weights.test_depth_anything import write_folder
from vdm_jax.data import depth, video_io
from vdm_jax.weights import fetch

DISTANCE = np.linspace(2.0, 12.0, 3 * 6 * 8, dtype=np.float32).reshape(3, 6, 8)
# By hand: inverse distance between those of 2 and of 12, from 255 to 0.
NEAR = np.rint(255 * (1 / DISTANCE - 1 / 12) / (1 / 2 - 1 / 12)).astype(np.uint8)


def test_distances_become_near_bright_over_the_whole_clip(tmp_path):
    folder = tmp_path / "exr"
    folder.mkdir()
    for number, frame in enumerate(DISTANCE):
        write(folder / f"frame_{number:03d}.exr", frame)
    np.savez(tmp_path / "depth.npz", depth=DISTANCE)
    for path in (folder, tmp_path / "depth.npz"):
        found = depth.read(path)
        assert found.dtype == np.uint8 and found.shape == (3, 6, 8, 1)
        assert np.abs(found[..., 0].astype(int) - NEAR).max() <= 1
    assert len(depth.read(folder, frames=2)) == 2
    # Infinitely far is far.
    np.savez(tmp_path / "far.npz", depth=np.where(DISTANCE > 10, np.inf, DISTANCE))
    found = depth.read(tmp_path / "far.npz")
    assert not found[..., 0][DISTANCE > 10].any() and found.max() == 255


def test_whole_numbers_stay_as_they_are(tmp_path):
    folder = tmp_path / "png"
    folder.mkdir()
    for number, frame in enumerate(NEAR):
        Image.fromarray(frame).save(folder / f"{number}.png")
    np.testing.assert_array_equal(depth.read(folder)[..., 0], NEAR)
    np.testing.assert_array_equal(depth.read(folder / "1.png")[0, ..., 0], NEAR[1])
    deep = NEAR.astype(np.uint16) * 256 + 77
    for number, frame in enumerate(deep):
        Image.fromarray(frame).save(folder / f"{number}.png")
    np.testing.assert_array_equal(depth.read(folder)[..., 0], NEAR)
    np.savez(tmp_path / "depth.npz", depth=NEAR[..., None])
    np.testing.assert_array_equal(depth.read(tmp_path / "depth.npz")[..., 0], NEAR)
    big = np.kron(NEAR, np.ones((1, 16, 16), np.uint8))
    video_io.write_mp4(tmp_path / "depth.mp4", np.repeat(big[..., None], 3, -1), min_size=32)
    found = depth.read(tmp_path / "depth.mp4")[..., 0]
    assert found.shape == big.shape and np.abs(found.astype(int) - big).mean() < 3


def test_frames_are_cut_to_the_size_that_is_asked_for(tmp_path):
    wide = np.zeros((2, 8, 32), np.uint8)
    wide[:, :, 12:20] = 200
    np.savez(tmp_path / "depth.npz", depth=wide)
    found = depth.read(tmp_path / "depth.npz", size=(8, 8))
    assert found.shape == (2, 8, 8, 1) and (found == 200).all()
    assert depth.read(tmp_path / "depth.npz", size=(4, 4)).shape == (2, 4, 4, 1)


def test_what_is_no_depth_is_named(tmp_path):
    empty, mixed = tmp_path / "empty", tmp_path / "mixed"
    empty.mkdir(), mixed.mkdir()
    Image.fromarray(NEAR[0]).save(mixed / "0.png")
    write(mixed / "1.exr", DISTANCE[1])
    sizes = tmp_path / "sizes"
    sizes.mkdir()
    for number, frame in enumerate((NEAR[0], NEAR[1][:4])):
        Image.fromarray(frame).save(sizes / f"{number}.png")
    for name, array in (("zero", np.zeros((1, 2, 2), np.float32)), ("flat", np.ones((2, 2)))):
        np.savez(tmp_path / f"{name}.npz", depth=array)
    np.savez(tmp_path / "nan.npz", depth=np.full((1, 2, 2), np.nan, np.float32))
    np.savez(tmp_path / "video.npz", video=NEAR)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for name, message in (
        ("empty", "neither holds depth, .* nor an estimator, config.json"),
        ("mixed", r"holds .exr, .png: must be files of one kind"),
        ("sizes", r"1.png: is uint8\[4, 8\], and 0.png uint8\[6, 8\]: must be alike"),
        ("zero.npz", "must be above 0; the least is 0"),
        ("nan.npz", "must be above 0"),
        ("flat.npz", "holds no array depth of"),
        ("video.npz", "holds no array depth of"),
        ("broken.png", "cannot be read as a picture"),
    ):
        with pytest.raises(ValueError, match=message):
            depth.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        depth.read(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has 2 frames of depth, and 5 are needed"):
        np.savez(tmp_path / "short.npz", depth=NEAR[:2])
        depth.read(tmp_path / "short.npz", frames=5)
    with pytest.raises(ValueError, match="channels"):
        write(tmp_path / "colour.exr", np.ones((4, 4, 3), np.float32))
        depth._channel({"a": DISTANCE[0], "b": DISTANCE[0]}, tmp_path / "colour.exr")


def test_an_estimator_is_found_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    folder = write_folder(tmp_path / "estimator", golden_files.read("depth_anything_relative"))
    assert depth.is_estimator(folder) and not depth.is_estimator(tmp_path)
    images = (folder / "preprocessor_config.json").read_text()
    images = images.replace('"ensure_multiple_of": 14', '"ensure_multiple_of": 4')
    (folder / "preprocessor_config.json").write_text(images.replace("42", "12"))
    videos = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 24, 3), np.uint8)
    found = depth.estimate(folder, videos)
    assert found.shape == (1, 2, 16, 24, 1) and found.dtype == np.uint8
    assert found.min() == 0 and found.max() == 255
