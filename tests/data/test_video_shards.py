"""Shards against the folder that they are of: the same clips, whatever happened to the writing."""

import json
import pickle

import numpy as np
import pytest

from vdm_jax.cli import data as data_command
from vdm_jax.data import pipeline, video_io, video_shards
from vdm_jax.data.source import DataError
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.data.video_shards import VideoShards
from vdm_jax.stage.window import Part
from vdm_jax.systems import vdm

CLIPS = {"num_frames": 3, "image_size": 16, "fps": 8.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos in two folders, and a file that is none."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in ("a_dog/one.mp4", "a_dog/two.mp4", "a_cat/three.mp4", "a_cat/four.mp4"):
        video = rng.integers(256, size=(7, 16, 16, 3), dtype=np.uint8)
        video_io.write_mp4(root / name, video, fps=8, min_size=16)
    (root / "a_cat/four.txt").write_text("a cat\na cat that sleeps")
    (root / "a_cat/broken.mp4").write_bytes(b"no video")
    return root


def write(folder, out, shard_bytes=6000):
    """The files of the shards, after writing them."""
    steps = list(video_shards.write(folder, out, shard_bytes))
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    return sorted(path.name for path in out.iterdir())


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    names = write(folder, out)
    assert len(names) >= 4 and names[0] == "shard-00000.array_record"
    return out


def test_shards_hold_the_clips_of_the_folder(folder, shards):
    files, packed = VideoFolder(folder, **CLIPS), VideoShards(shards, **CLIPS)
    assert len(packed) == len(files) == 8
    assert packed.captions() == files.captions()
    assert list(packed.skipped) == ["a_cat/broken.mp4"]
    packed = pickle.loads(pickle.dumps(packed))
    part = Part((1, 2), (2, 9), (3, 4))
    for index in (5, 0, 7, 3):  # out of order, as shuffled training reads
        np.testing.assert_array_equal(packed[index]["video"], files[index]["video"])
        one, other = (
            source.read_part(index, part, np.random.default_rng(1)) for source in (packed, files)
        )
        assert one["caption"] == other["caption"] and one["video"].shape == (2, 9, 4, 3)
        np.testing.assert_array_equal(one["video"], other["video"])


@pytest.mark.parametrize("kind", [VideoFolder, VideoShards])
def test_no_other_frames_are_decoded_than_those_of_the_part(kind, folder, shards, monkeypatch):
    source = kind(folder if kind is VideoFolder else shards, **CLIPS)
    asked, decode = [], source._decode

    def watched(number, frames):
        asked.append([int(frame) for frame in frames])
        return decode(number, frames)

    monkeypatch.setattr(source, "_decode", watched)
    start = int(source._clips[1][1])  # the second clip of a file
    video = source.read_part(1, Part((1,), (0, 16), (0, 16)))["video"]
    assert video.shape == (1, 16, 16, 3) and asked == [[start + 1]] and start == 3
    np.testing.assert_array_equal(video, source[1]["video"][1:2])


def test_nothing_is_demuxed_when_a_source_is_made(shards, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a file was opened")

    monkeypatch.setattr("av.open", forbidden)
    assert len(VideoShards(shards, **CLIPS)) == 8


def test_writing_goes_on_where_it_stopped(folder, tmp_path):
    names = write(folder, tmp_path)
    content = {name: (tmp_path / name).read_bytes() for name in names}
    (tmp_path / names[3]).unlink()  # as if the second shard's index had not been written
    (tmp_path / names[2]).write_bytes(b"half")
    kept = (tmp_path / names[0]).stat().st_mtime_ns
    assert write(folder, tmp_path) == names
    assert {name: (tmp_path / name).read_bytes() for name in names} == content
    assert (tmp_path / names[0]).stat().st_mtime_ns == kept


def test_shards_of_other_files_are_not_mixed(folder, shards, tmp_path):
    with pytest.raises(DataError, match="another --shard_mb"):
        write(folder, shards, shard_bytes=10**9)
    with pytest.raises(DataError, match="no video file"):
        write(tmp_path, tmp_path)


def test_mistakes_say_what_to_do(shards, folder, tmp_path):
    with pytest.raises(DataError, match=r"no shard-\*\.json.*vdm data shard"):
        VideoShards(tmp_path, **CLIPS)
    with pytest.raises(DataError, match="local paths only.*gcsfuse"):
        VideoShards("gs://bucket/shards", **CLIPS)
    for name in ("shard-00000.json", "shard-00000.array_record"):
        (tmp_path / name).write_bytes((shards / name).read_bytes())
    (tmp_path / "shard-00000.array_record").write_bytes(b"cut short")
    with pytest.raises(DataError, match="has 9 of .*run vdm data shard again"):
        VideoShards(tmp_path, **CLIPS)
    (tmp_path / "shard-00000.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(DataError, match="format 2, this version reads 1"):
        VideoShards(tmp_path, **CLIPS)


def test_an_object_store_that_cannot_be_written_is_told(folder, monkeypatch):
    def lacking(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(video_shards.epath.Path("gs://bucket").__class__, "mkdir", lacking)
    with pytest.raises(DataError, match="--out=gs://bucket/shards: .*pip install gcsfs"):
        list(video_shards.write(folder, "gs://bucket/shards", 10**6))


def test_the_command_writes_what_a_configuration_reads(folder, tmp_path, capsys):
    arguments = ["shard", f"--data_dir={folder}", f"--out={tmp_path}"]
    assert data_command.main(arguments) == 0
    assert "1 of 1 shards" in capsys.readouterr().out
    config = vdm.default_config()
    config.data.update(name="video_shards", data_dir=str(tmp_path), num_frames=3, image_size=16)
    config.data.workers = 0
    assert set(pipeline.all_captions(config)) == {"a dog", "a cat", "a cat that sleeps"}
    options = {"text_encoder": None, "batch_size": 2, "seed": 0, "report": None}
    batches = iter(pipeline.make_dataset(config, **options))
    assert next(batches)["video"].shape == (2, 3, 16, 16, 3)
    batches.close()
