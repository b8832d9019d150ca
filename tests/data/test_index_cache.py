"""What is kept of a folder's files from one start to the next."""

import dataclasses

import av
import numpy as np
import pytest

from tests.data.video_files import Video, write
from vdm_jax.data import index_cache
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.data.video_index import VideoFile


@pytest.fixture(autouse=True)
def no_memory(monkeypatch, tmp_path):
    """Every test begins as a new process, with a user's cache of its own."""
    monkeypatch.setattr(index_cache, "_KNOWN", {})
    monkeypatch.setattr(index_cache, "_LOADED", {})
    monkeypatch.setattr(index_cache, "USER_CACHE", tmp_path / "users_cache")


def counted_opens(monkeypatch):
    opened = []
    open_ = av.open
    monkeypatch.setattr(av, "open", lambda *a, **kw: opened.append(a[0]) or open_(*a, **kw))
    return opened


def restart(monkeypatch):
    monkeypatch.setattr(index_cache, "_KNOWN", {})
    monkeypatch.setattr(index_cache, "_LOADED", {})


def test_a_second_start_opens_only_new_files(tmp_path, monkeypatch):
    root = tmp_path / "data"
    for name in ("a.mp4", "sub/b.mp4", "c.avi"):
        write(root / name, Video(codec="mpeg4", frames=8))
    (root / "bad.mp4").write_bytes(b"no video")
    opened = counted_opens(monkeypatch)
    first = VideoFolder(root, num_frames=4, image_size=32)
    assert len(opened) > 3 and (root / index_cache.NAME).is_file()
    restart(monkeypatch)
    opened.clear()
    second = VideoFolder(root, num_frames=4, image_size=32)
    assert not opened
    assert second.files == first.files and second.skipped == first.skipped
    write(root / "a.mp4", Video(codec="mpeg4", frames=12))
    restart(monkeypatch)
    opened.clear()
    third = VideoFolder(root, num_frames=4, image_size=32)
    assert {*opened} == {str(root / "a.mp4")} and len(third) == 7


def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
    root = tmp_path / "data"
    for name in "abc":
        write(root / f"{name}.mp4", Video(codec="mpeg4", frames=8))
    expected = VideoFolder(root, num_frames=4, image_size=32).files
    cache = root / index_cache.NAME
    good = cache.read_bytes()
    rng = np.random.default_rng(0)
    damages = [
        b"",
        b"\n",
        b"\xff\xfe",
        b"{}",
        good[:-40],
        good.replace(b'"version":1', b'"version":0'),
    ]
    for _ in range(30):
        flipped = bytearray(good)
        flipped[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
        damages.append(bytes(flipped))
    for damage in damages:
        cache.write_bytes(damage)
        restart(monkeypatch)
        assert VideoFolder(root, num_frames=4, image_size=32).files == expected
        assert cache.read_bytes() == good
    cache.unlink()
    cache.mkdir()
    restart(monkeypatch)
    assert VideoFolder(root, num_frames=4, image_size=32).files == expected


def test_a_folder_that_cannot_be_written_is_cached_elsewhere(tmp_path, monkeypatch):
    root = tmp_path / "data"
    write(root / "a.mp4", Video(codec="mpeg4", frames=8))
    real = index_cache._write

    def refused(place, content):
        if place.parent == root:
            raise PermissionError(f"{place}: read-only")
        real(place, content)

    monkeypatch.setattr(index_cache, "_write", refused)
    VideoFolder(root, num_frames=4, image_size=32)
    assert [path.name for path in root.iterdir()] == ["a.mp4"]
    restart(monkeypatch)
    opened = counted_opens(monkeypatch)
    VideoFolder(root, num_frames=4, image_size=32)
    assert not opened
    monkeypatch.setattr(index_cache, "USER_CACHE", root / "a.mp4" / "no folder")
    restart(monkeypatch)
    assert len(VideoFolder(root, num_frames=4, image_size=32)) == 2
    assert len(opened) > 0


def test_an_index_from_elsewhere_opens_no_other_file(tmp_path):
    """A data set may come with an index that somebody made up."""
    path = write(tmp_path / "a.mp4", Video(codec="mpeg4", frames=8))
    source = VideoFolder(tmp_path, num_frames=4, image_size=32)
    file = source.files[0]
    for packed in (
        VideoFile.of(str(path), dataclasses.replace(file.index, demuxer="concat")).packed,
        b"e30=",
        b"no base 64",
    ):
        source.files[0] = dataclasses.replace(file, packed=packed)
        with (
            pytest.warns(UserWarning, match=r"a.mp4: (demuxer 'concat': allowed|its index|Incorr)"),
            pytest.raises(ValueError, match="no clip can be decoded"),
        ):
            source[0]
