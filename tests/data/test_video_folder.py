"""VideoFolder on files that the tests write: every kind of good one and of bad one."""

import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from ml_collections import ConfigDict

from vdm_jax.data import index_cache, pipeline, video_io
from vdm_jax.data.source import DataError
from vdm_jax.data.video_folder import VideoFolder

CODECS = {
    ".mp4": "libx264",
    ".webm": "libvpx-vp9",
    ".avi": "mpeg4",
    ".gif": "gif",
    ".mpg": "mpeg2video",
}


@pytest.fixture(autouse=True)
def users_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(index_cache, "USER_CACHE", tmp_path_factory.mktemp("cache"))


def write(path, frames=24, fps=8, width=32, height=32, times=None):
    """A video whose frame k is filled with grey 8 k + 16; times: in 1/fps seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            CODECS[path.suffix], rate=25 if path.suffix == ".mpg" else fps
        )
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        stream.codec_context.gop_size = 10
        for k in range(frames):
            picture = np.full((height, width, 3), 8 * k + 16, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture).reformat(format=stream.pix_fmt)
            frame.pts = k if times is None else times[k]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(video):
    """Which frames they are, by their grey."""
    assert video.dtype == np.uint8
    return [round((frame.mean() - 16) / 8) for frame in video.astype(float)]


def folder(path, **kwargs):
    return VideoFolder(path, **{"num_frames": 4, "image_size": 16, **kwargs})


@pytest.mark.parametrize("suffix", CODECS)
def test_every_kind_of_file_gives_its_frames_exactly(suffix, tmp_path):
    write(tmp_path / f"clip{suffix}")
    source = folder(tmp_path)
    assert not source.skipped and len(source) == 6
    # Out of order, as shuffled training reads: every clip seeks.
    for i in (4, 0, 5, 2, 1, 3):
        assert source[i]["video"].shape == (4, 16, 16, 3)
        assert numbers(source[i]["video"]) == [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]
        frame = source.read_frame(i, np.random.default_rng(i))["image"]
        assert frame.shape == (16, 16, 3) and numbers(frame[None])[0] in range(4 * i, 4 * i + 4)


def test_stride_and_frame_rate_choose_frames(tmp_path):
    write(tmp_path / "clip.mp4")
    assert numbers(folder(tmp_path, frame_stride=2)[1]["video"]) == [8, 10, 12, 14]
    assert numbers(folder(tmp_path, fps=4)[1]["video"]) == [8, 10, 12, 14]
    assert numbers(folder(tmp_path, fps=4, frame_stride=2)[0]["video"]) == [0, 4, 8, 12]
    assert numbers(folder(tmp_path, fps=6)[0]["video"]) == [0, 1, 2, 4]
    more = folder(tmp_path, fps=16)
    assert numbers(more[0]["video"]) == [0, 0, 1, 1]
    assert "frames are repeated" in more.summary()
    assert "repeated" not in folder(tmp_path, fps=8).summary()


def test_a_random_start_reaches_every_frame_and_no_further(tmp_path):
    write(tmp_path / "clip.mp4", frames=22)  # five clips of four frames and two to spare
    source = folder(tmp_path, random_start=True)
    assert numbers(source[4]["video"]) == [16, 17, 18, 19]  # without a generator as ever
    rng = np.random.default_rng(0)
    for index, starts in ((1, {4, 5, 6, 7}), (4, {16, 17, 18})):
        clips = [numbers(source.read(index, rng)["video"]) for _ in range(40)]
        assert {clip[0] for clip in clips} == starts
        assert all(clip == [clip[0] + k for k in range(4)] for clip in clips)
    strided = folder(tmp_path, frame_stride=7, random_start=True)  # spans the whole file
    assert numbers(strided.read(0, rng)["video"]) == [0, 7, 14, 21]


def test_frames_are_scaled_and_cropped_to_the_middle(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv444p"
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, 32:64] = 255  # the centre square is white
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    video = folder(tmp_path)[0]["video"]
    assert video[:, :, 2:-2].min() > 230 and video.shape == (4, 16, 16, 3)


def test_captions(tmp_path):
    write(tmp_path / "running_dogs" / "a.mp4")
    write(tmp_path / "b.mp4").with_suffix(".txt").write_text("a cat sleeps\n\na cat rests\n")
    write(tmp_path / "c.mp4").with_suffix(".json").write_text('{"caption": "über alles"}')
    write(tmp_path / "d.mp4").with_suffix(".json").write_text('["one", "two"]')
    source = folder(tmp_path, num_frames=24)
    found = {i: source[i]["caption"] for i in range(4)}
    assert list(found.values()) == ["a cat sleeps", "über alles", "one", "running dogs"]
    rng = np.random.default_rng(0)
    assert {source.read(0, rng)["caption"] for _ in range(20)} == {"a cat sleeps", "a cat rests"}
    assert sorted(source.captions()) == sorted(
        ["a cat sleeps", "a cat rests", "über alles", "one", "two", "running dogs"]
    )


def test_bad_files_are_skipped_by_name_and_reason(tmp_path):
    write(tmp_path / "good.mp4")
    write(tmp_path / "short.mp4", frames=3)
    write(tmp_path / "single.gif", frames=1)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.webm").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut.mp4").write_bytes(write(tmp_path / "x.mp4").read_bytes()[:700])
    (tmp_path / "x.mp4").unlink()
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:3,\ngood.mp4\n#EXT-X-ENDLIST\n")
    bad_json = {"json": "{", "number": "3", "object": '{"title": "a"}', "blank": '""'}
    for name, text in bad_json.items():
        write(tmp_path / f"bad_{name}.mp4").with_suffix(".json").write_text(text)
    (tmp_path / "notes.md").write_text("no video, and none of our business")
    (tmp_path / "folder.mp4").mkdir()
    source = folder(tmp_path)
    assert [file.path for file in source.files] == [str(tmp_path / "good.mp4")]
    reasons = {path.rsplit("/", 1)[1]: why for path, why in source.skipped.items()}
    assert "too short: 3 frames at 8 fps, a clip takes 4" in reasons.pop("short.mp4")
    assert "too short: 1 frames" in reasons.pop("single.gif")
    for name in ("empty.mp4", "noise.webm", "cut.mp4", "playlist.mp4"):
        assert "unreadable" in reasons.pop(name)
    for name in bad_json:
        assert "caption" in reasons.pop(f"bad_{name}.mp4")
    assert not reasons
    assert "skipped 10 files" in source.summary() and "short.mp4" in source.summary()


def test_a_file_damaged_later_does_not_stop_a_run(tmp_path):
    write(tmp_path / "a.mp4")
    damaged = write(tmp_path / "b.mp4")
    source = folder(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.warns(UserWarning, match="b.mp4.*another clip"):
        assert numbers(source[6]["video"]) == [0, 1, 2, 3]  # b's first, but it is a's
    (tmp_path / "a.mp4").unlink()
    with pytest.warns(UserWarning), pytest.raises(DataError, match="no clip can be decoded"):
        source[0]


def test_no_usable_file_is_an_error_that_says_why(tmp_path):
    with pytest.raises(DataError, match="there is no such directory"):
        folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no video file \(\.mp4"):
        folder(tmp_path)
    write(tmp_path / "short.mp4", frames=3)
    with pytest.raises(DataError, match="no usable file(.|\n)*short.mp4: too short"):
        folder(tmp_path)


def test_through_the_pipeline_with_workers(tmp_path):
    write(tmp_path / "red" / "a.mp4")
    write(tmp_path / "blue" / "b.webm")
    (tmp_path / "broken.avi").write_bytes(b"broken")
    config = ConfigDict(
        {
            "data": {
                "name": "video_folder",
                "data_dir": str(tmp_path),
                "split": "train",
                "num_frames": 4,
                "image_size": 16,
                "frame_stride": 1,
                "fps": 0.0,
                "image_frames": 2,
                "workers": 1,
            },
            "text": {"encoder": "words", "max_length": 3, "vocabulary_size": 9, "vocabulary": ()},
        }
    )
    config = pipeline.with_vocabulary(config)
    assert sorted(config.text.vocabulary) == ["blue", "red"]
    encoder = pipeline.WordEncoder(config.text.vocabulary, max_length=3, vocabulary_size=9)
    reports = []
    dataset = pipeline.make_dataset(
        config, text_encoder=encoder, batch_size=2, seed=0, report=reports.append
    )
    assert "12 clips" in reports[0] and "broken.avi: unreadable" in reports[0]
    iterator = iter(dataset)
    batch = next(iterator)
    iterator.close()
    assert batch["video"].shape == (2, 4, 16, 16, 3)
    assert batch["images"].shape == (2, 2, 16, 16, 3)
    assert batch["image_tokens"].shape == (2, 2, 3)


def test_a_source_is_pickled_as_it_is(tmp_path):
    write(tmp_path / "a.mp4")
    source = folder(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["video"], source[2]["video"])
    assert json.dumps(copy.skipped) == "{}"


def test_links_to_folders_are_followed_once(tmp_path):
    root, other = tmp_path / "data", tmp_path / "elsewhere"
    write(root / "own" / "a.mp4")
    write(other / "deep" / "b.mp4")
    (root / "aa_link").symlink_to(other)
    (root / "ab_again").symlink_to(other)
    (root / "own" / "loop").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (root / "c.mp4").symlink_to(root / "own" / "a.mp4")
    (root / "aliases").symlink_to(root / "own")
    source = folder(root)
    assert [file.path for file in source.files] == [
        str(root / name) for name in ("aa_link/deep/b.mp4", "c.mp4", "own/a.mp4")
    ]
    assert {source[i]["caption"] for i in range(len(source))} == {"deep", "data", "own"}
    assert {path.removeprefix(str(root)): why for path, why in source.skipped.items()} == {
        "/ab_again": "leads to a folder that is read already",
        "/own/loop": "leads to a folder that is read already",
        "/aliases": "leads to a folder that is read already",
        "/gone.mp4": "leads to no file: No such file or directory",
    }
    linked = tmp_path / "link_to_data"
    linked.symlink_to(root)
    assert len(folder(linked).files) == 3


def test_names_that_are_no_text_are_read_and_shown(tmp_path, capsys):
    good = write(tmp_path / "x.mp4")
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9_\xff"))
    strange.mkdir()
    good.rename(strange / os.fsdecode(b"cl\xedp.mp4"))
    (strange / os.fsdecode(b"b\xe1d.mp4")).write_bytes(b"no video")
    (strange / "a:b.mp4").write_bytes((strange / os.fsdecode(b"cl\xedp.mp4")).read_bytes())
    source = folder(tmp_path)
    assert len(source.files) == 2 and len(source.skipped) == 1
    assert numbers(source[7]["video"]) == [4, 5, 6, 7]
    assert source[0]["caption"] == "caf\ufffd \ufffd"
    print(source.summary())  # an error where a surrogate is left
    assert r"caf\xe9_\xff/b\xe1d.mp4: unreadable" in capsys.readouterr().out
    assert len(folder(tmp_path).files) == 2  # from the cache
    (strange / os.fsdecode(b"cl\xedp.mp4")).unlink()
    with pytest.warns(UserWarning, match=r"cl\\xedp.mp4: No such file"):
        source[7]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_captions_in_every_encoding_of_unicode(encoding, tmp_path):
    write(tmp_path / "a.mp4").with_suffix(".txt").write_bytes("a red box\nüber".encode(encoding))
    write(tmp_path / "b.mp4").with_suffix(".json").write_bytes(
        '{"caption": "a blue box"}'.encode(encoding)
    )
    source = folder(tmp_path)
    assert not source.skipped
    assert sorted(set(source.captions())) == ["a blue box", "a red box", "über"]


def test_captions_that_cannot_be_written_are_made_so_or_named(tmp_path):
    lone = write(tmp_path / "lone.mp4").with_suffix(".json")
    lone.write_text(r'["a \ud83d box", "a \ud83d\ude00 box"]')
    write(tmp_path / "bytes.mp4").with_suffix(".txt").write_bytes(b"a \xed\xa0\xbd box")
    write(tmp_path / "latin.mp4").with_suffix(".txt").write_bytes(b"a caf\xe9")
    write(tmp_path / "cut.mp4").with_suffix(".txt").write_bytes("a box".encode("utf-16")[:-1])
    source = folder(tmp_path)
    found = set(source.captions())
    assert found == {"a \ufffd box", "a \U0001f600 box"}
    assert all(text.encode("utf-8") for text in found)
    reasons = {path.rsplit("/", 1)[1]: why for path, why in source.skipped.items()}
    assert reasons.keys() == {"latin.mp4", "cut.mp4"}
    assert reasons["latin.mp4"].startswith("its caption cannot be read: latin.txt is not utf-8 (")
    assert reasons["cut.mp4"].startswith("its caption cannot be read: cut.txt is not utf-16 (")


def test_content_chooses_among_the_containers_that_are_allowed(tmp_path):
    for number, (suffix, other) in enumerate(zip(CODECS, (*list(CODECS)[1:], ".mp4"), strict=True)):
        write(tmp_path / f"x{suffix}").rename(tmp_path / f"{number}{other}")
    (tmp_path / "secret.txt").write_text("nothing")
    playlists = {
        "concat.avi": f"ffconcat version 1.0\nfile '{tmp_path / '0.webm'}'\n",
        "hls.mpg": f"#EXTM3U\n#EXTINF:3,\n{tmp_path / '0.webm'}\n#EXT-X-ENDLIST\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "sdp.mkv": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
    source = folder(tmp_path)
    assert len(source.files) == len(CODECS) and len(source) == 6 * len(CODECS)
    for clip in range(len(source)):
        first = 4 * (clip % 6)
        assert numbers(source[clip]["video"]) == [first, first + 1, first + 2, first + 3]
    assert {path.rsplit("/", 1)[1] for path in source.skipped} == playlists.keys()


def test_one_frame_is_a_clip_of_one_frame(tmp_path):
    for suffix in CODECS:
        write(tmp_path / f"a{suffix}", frames=1)
    source = folder(tmp_path, num_frames=1)
    assert len(source) == len(CODECS) and not source.skipped
    assert all(numbers(source[i]["video"]) == [0] for i in range(len(source)))
    assert len(folder(tmp_path, num_frames=1, fps=8)) == len(CODECS)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_sound_alone_is_said_to_be_no_video(tmp_path):
    write(tmp_path / "a.mp4")
    sound = write_sound(tmp_path / "sound.mp4")
    assert folder(tmp_path).skipped == {str(sound): "has no video, only audio"}
    with pytest.raises(ValueError, match=r"sound.mp4: cannot be read as a video: has no video, on"):
        video_io.read_video(sound)


def damaged(path, way, good):
    """Writes a file that is damaged in one of ten ways; `good`: bytes of an MP4 with its index
    behind the frames."""
    moov = good.find(b"moov") - 4
    noise = np.random.default_rng(way).bytes
    captions = path.with_suffix(".txt")
    if way == 6:
        return write_sound(path)
    if way == 7:
        path.symlink_to(path.with_suffix(".gone"))
        return path
    if way in (8, 9):
        path.write_bytes(good)
        captions.write_bytes(b"" if way == 8 else b"\xff\xfe\x00")
        return path
    content = {
        0: b"",
        1: noise(3000),
        2: good[: len(good) // 2],
        3: good[:moov] + b"free" + noise(len(good) - moov - 4),
        4: good[:48] + bytes(moov - 48) + good[moov:],  # frames of zeros
        5: b"#EXTM3U\n#EXTINF:3,\nclip.mp4\n#EXT-X-ENDLIST\n",
    }[way]
    path.write_bytes(content)
    return path


def write_soak(root):
    """500 files, of which every tenth is damaged in one of ten ways; half of the others have 4
    frames, half 9. Returns the paths of the damaged files and of the others."""
    kinds = []
    for suffix in CODECS:
        kinds += [write(root / f"k{n}{suffix}", frames=n).read_bytes() for n in (4, 9)]
        for n in (4, 9):
            (root / f"k{n}{suffix}").unlink()
    suffixes = [suffix for suffix in CODECS for _ in range(2)]
    bad, good = [], []
    for number in range(500):
        path = root / "a" / f"{number:03d}{suffixes[number % len(kinds)]}"
        path.parent.mkdir(exist_ok=True)
        if number % 10 == 3:
            bad.append(damaged(path.with_suffix(".mp4"), number // 10 % 10, kinds[0]))
        else:
            path.write_bytes(kinds[number % len(kinds)])
            good.append(path)
    return bad, good


def test_a_soak_of_good_and_damaged_files(tmp_path, recwarn):
    """The clips are those of the good files, and the summary names the rest."""
    bad, good = write_soak(tmp_path)
    clips = sum(1 + int(path.stem) % 2 for path in good)
    for _ in range(2):  # the second time from the cache
        source = folder(tmp_path)
        assert len(source.files) == 450 and len(source) == clips
        assert source.skipped.keys() == {str(path) for path in bad}
        summary = source.summary()
        assert all(f"{path}: {source.skipped[str(path)]}" in summary for path in bad)
    for clip in range(0, clips, 3):
        found = numbers(source[clip]["video"])
        assert found in ([0, 1, 2, 3], [4, 5, 6, 7])
    assert not [warning for warning in recwarn if "another clip" in str(warning.message)]
