"""Indexes and readers of video files, against decoding from first to last: every container, codec
and pattern of times that PyAV writes here."""

import concurrent.futures
import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data import video_files
from tests.data.video_files import B_FRAMES, CODECS, PATTERNS, Video, numbers, write
from vdm_jax.data import index_cache, video_container, video_indexing, video_reader
from vdm_jax.data.frames import Geometry
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.data.video_index import VideoFile, VideoIndex

PRODUCT = [
    (suffix, codec, b_frames)
    for suffix, codecs in CODECS.items()
    for codec in codecs
    for b_frames in ((0, 2) if codec in B_FRAMES else (0,))
]


def patterns_of(suffix, codec):
    """The patterns that a container can hold. FFmpeg writes program streams of constant rate."""
    if suffix == ".mpg" or codec == "mpeg4_packed":
        return ("constant",)
    return ("constant", "dropped") if suffix == ".avi" else PATTERNS


@pytest.fixture(autouse=True)
def no_memory(monkeypatch, tmp_path):
    """Every test begins as a new process, with a user's cache of its own."""
    monkeypatch.setattr(index_cache, "_KNOWN", {})
    monkeypatch.setattr(index_cache, "_LOADED", {})
    monkeypatch.setattr(index_cache, "USER_CACHE", tmp_path / "users_cache")


@pytest.mark.parametrize(("suffix", "codec", "b_frames"), PRODUCT)
def test_frames_are_those_of_sequential_decoding(suffix, codec, b_frames, tmp_path, monkeypatch):
    from_start = []
    attempt = video_reader._attempt

    def counted(*arguments):
        found = attempt(*arguments)
        if arguments[4] is not None and found is None:
            from_start.append(arguments[0])
        return found

    monkeypatch.setattr(video_reader, "_attempt", counted)
    for name in patterns_of(suffix, codec):
        times = () if name == "constant" else video_files.pattern(name, 24)
        video = Video(codec=codec, b_frames=b_frames, times=times, gop=7)
        path = write(tmp_path / name / f"clip{suffix}", video)
        assert video_files.sequential(path) == list(range(24))
        index = video_indexing.build(path)
        fps = 25 if codec.startswith(("mpeg1", "mpeg2")) else 30
        truth = np.array(times or np.arange(24) / fps)
        found = (index.times - index.times[0]) * float(index.time_base)
        # GIF counts in hundredths of a second; FFmpeg's does not write its first frame late.
        np.testing.assert_allclose(found, truth, atol=0.011 if suffix == ".gif" else 0.0011)
        for first in (20, 6, 0, 13, 7, 22, 3, 15):  # as shuffled training reads
            wanted = [first, first + 1]
            assert numbers(video_reader.decode(path, index, wanted, (32, 32))) == wanted
        source = VideoFolder(path.parent, num_frames=4, image_size=32)
        assert not source.skipped and len(source) == 6
        for clip in (4, 0, 5, 2):
            wanted = index.frames_at(4 * clip + np.arange(4))
            assert numbers(source[clip]["video"]) == list(wanted)
            if name == "constant":
                assert list(wanted) == [4 * clip + k for k in range(4)]
    assert not from_start  # every seek delivered


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_open_groups_of_pictures(codec, tmp_path):
    """Frames before a key frame that are coded after it need the group before."""
    suffix = ".mkv" if codec == "libx264" else ".mpg"
    path = write(tmp_path / f"a{suffix}", Video(codec=codec, b_frames=2, open_gop=True, frames=40))
    assert video_files.sequential(path) == list(range(40))
    index = video_indexing.build(path)
    for first in range(38):
        assert numbers(video_reader.decode(path, index, [first, first + 1])) == [first, first + 1]


@pytest.mark.parametrize("name", ["hevc.mp4", "hevc_open_gop.mkv"])
def test_hevc(name):
    """24 numbered frames with B-frames. The files are kept: libx265 damages the heap of the process
    that encodes frames this small (free(): invalid next size)."""
    path = Path(__file__).parent / name
    assert video_files.sequential(path) == list(range(24))
    index = video_indexing.build(path)
    for first in (20, 3, 9, 0, 22, 14):
        assert numbers(video_reader.decode(path, index, [first, first + 1])) == [first, first + 1]


def cut_at_second_key(path):
    """The file without its first group of pictures, as a stream that was joined late."""
    cut = path.with_name(f"cut{path.suffix}")
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        keys = 0
        for packet in source.demux(stream):
            keys += packet.size > 0 and packet.is_keyframe
            if keys > 1 and packet.size:
                packet.stream = copy
                target.mux(packet)
    path.unlink()
    return cut


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_files_that_begin_with_frames_that_lack_another(suffix, codec, tmp_path):
    video = Video(codec=codec, b_frames=2, open_gop=True, frames=40, gop=11)
    path = cut_at_second_key(write(tmp_path / f"a{suffix}", video))
    whole = video_files.sequential(path)
    first = whole[0]
    assert first > 9 and whole == list(range(first, 40))
    index = video_indexing.build(path)
    assert len(index) == len(whole)
    for number in range(len(index)):
        assert numbers(video_reader.decode(path, index, [number])) == [first + number]


def test_a_long_program_stream_is_read_to_its_end(tmp_path):
    video = Video(codec="mpeg2video", frames=250, gop=120, b_frames=2, width=160, height=128)
    noise = np.random.default_rng(0).integers(0, 30, (128, 160, 1), np.uint8)
    pictures = [video_files.picture(k, 128, 160) + noise for k in range(250)]
    write(tmp_path / "long.mpg", video, pictures)
    source = VideoFolder(tmp_path, num_frames=10, image_size=32)
    assert len(source) == 25
    for clip in (24, 23, 12, 0):
        assert numbers(source[clip]["video"]) == [10 * clip + k for k in range(10)]


def test_threads_do_not_disturb_each_other(tmp_path):
    for k in range(24):
        write(tmp_path / f"{k:02d}.avi", Video(codec="mpeg4_packed", b_frames=2, frames=60))
    paths = sorted(tmp_path.iterdir())
    alone = video_indexing.build(paths[0])
    assert len(alone.packets) == 60 and len(alone.keys) == 7
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for index in pool.map(video_indexing.build, paths):
            np.testing.assert_array_equal(index.packets, alone.packets)
            np.testing.assert_array_equal(index.keys, alone.keys)


def test_an_index_survives_being_stored(tmp_path):
    for suffix, codec in ((".mkv", "libx264"), (".avi", "mpeg4_packed"), (".gif", "gif")):
        times = () if suffix == ".avi" else video_files.pattern("jitter", 24)
        path = write(tmp_path / f"a{suffix}", Video(codec=codec, b_frames=2, times=times))
        index = video_indexing.build(path)
        copy = VideoFile.of(str(path), index).index
        for field in dataclasses.fields(index):
            np.testing.assert_array_equal(getattr(copy, field.name), getattr(index, field.name))


def test_a_hour_takes_few_bytes():
    index = VideoIndex(
        demuxer="mov",
        time_base=Fraction(1, 90000),
        times=np.arange(108_000) * 3000,
        rate=30.0,
        packets=np.arange(108_000),
        keys=np.zeros((400, 5), np.int64),
        geometry=Geometry(height=2, width=2),
        decoded=False,
    )
    assert len(VideoFile.of("a", index).packed) < 10_000


def times_of(pts, dts, step=10):
    none = video_container.NONE
    arrays = (np.array([none if t is None else t for t in row]) for row in (pts, dts))
    return video_indexing.frame_times(*arrays, step).tolist()


def test_times_are_repaired():
    nothing = [None] * 5
    assert times_of([0, 10, 25, 30, 40], nothing) == [0, 10, 25, 30, 40]
    # The pts of H.264 in AVI are in the order of decoding.
    assert times_of([1, 3, 2, 5, 4], [2, 3, 4, None, None], 1) == [2, 3, 4, 5, 6]
    assert times_of([0, None, None, 30, None], nothing) == [0, 10, 20, 30, 40]
    assert times_of(nothing, nothing) == [0, 10, 20, 30, 40]
    assert times_of([500, 510, 0, 10, 20], nothing) == [500, 510, 520, 530, 540]  # two files joined


def test_variable_rates_are_resampled_by_time(tmp_path):
    """30 frames a second, then 24 in dim light: clips at 8 frames a second."""
    times = (*np.arange(60) / 30, *(2 + np.arange(60) / 24))
    write(tmp_path / "phone.mp4", Video(frames=120, b_frames=2, times=times, gop=8))
    source = VideoFolder(tmp_path, num_frames=8, image_size=32, fps=8)
    assert "1 files have a variable frame rate" in source.summary()
    for clip in range(len(source)):
        wanted = (8 * clip + np.arange(8)) / 8
        shown = [max(k for k in range(120) if times[k] <= time + 1e-4) for time in wanted]
        assert numbers(source[clip]["video"]) == shown
    own = VideoFolder(tmp_path, num_frames=8, image_size=32)  # at the mean rate
    fps = 119 / times[-1]
    assert own.files[0].fps == pytest.approx(fps, rel=1e-4)
    wanted = np.arange(8 * 10, 8 * 11) / fps
    assert numbers(own[10]["video"]) == [int(np.searchsorted(times, t + 1e-4)) - 1 for t in wanted]


def test_a_long_pause_repeats_its_frame(tmp_path):
    times = [k / 8 + 2.5 * (k > 12) for k in range(24)]
    write(tmp_path / "a.mp4", Video(fps=8, times=tuple(times)))
    source = VideoFolder(tmp_path, num_frames=8, image_size=32, fps=8)
    clips = [numbers(source[i]["video"]) for i in range(len(source))]
    assert clips[1] == [8, 9, 10, 11, 12, 12, 12, 12] and clips[2] == [12] * 8
    assert clips[4] == [12, 13, 14, 15, 16, 17, 18, 19]


def test_a_wrong_index_is_mended(tmp_path):
    """Packets may promise other frames than the decoder gives."""
    path = write(tmp_path / "a.mp4", Video(b_frames=2))
    source = VideoFolder(tmp_path, num_frames=4, image_size=32)
    file = source.files[0]
    swapped = file.index.packets.copy()
    swapped[[5, 9]] = swapped[[9, 5]]
    wrong = dataclasses.replace(file.index, packets=swapped)
    source.files[0] = VideoFile.of(str(path), wrong)
    assert [numbers(source[k]["video"])[0] for k in range(6)] == [0, 4, 8, 12, 16, 20]
    # Or a place to seek to that is not one.
    moved = file.index.keys + np.array([[0, 0, 0, 0, 0]] + [[1, 0, 0, 0, 0]] * 2)
    wrong = dataclasses.replace(file.index, keys=moved)
    assert numbers(video_reader.decode(path, wrong, [15, 16])) == [15, 16]


def test_a_damaged_frame_is_not_given_out(tmp_path):
    noise = np.random.default_rng(0).integers(0, 30, (64, 64, 1), np.uint8)
    pictures = [video_files.picture(k, 64, 64) + noise for k in range(24)]
    path = write(tmp_path / "a.mp4", Video(codec="mpeg4", gop=8), pictures)
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    at = (places[10] + places[11]) // 2
    data[at : at + 12] = np.random.default_rng(1).bytes(12)
    path.write_bytes(data)
    source = VideoFolder(tmp_path, num_frames=4, image_size=32)
    with pytest.warns(UserWarning, match="a.mp4.*damaged|a.mp4.*Invalid"):
        assert numbers(source[2]["video"]) == [16, 17, 18, 19]  # clips 2 and 3 are of its group
    assert numbers(source[1]["video"]) == [4, 5, 6, 7]


def test_what_can_be_read_of_a_cut_file_is_used(tmp_path):
    path = write(tmp_path / "a.avi", Video(codec="mjpeg", frames=40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    source = VideoFolder(tmp_path, num_frames=4, image_size=32)
    assert 3 <= len(source) < 10
    for clip in range(len(source)):
        assert numbers(source[clip]["video"]) == [4 * clip + k for k in range(4)]


def test_json_of_an_index_is_plain(tmp_path):
    path = write(tmp_path / "a.mp4", Video(quarter_turns=1))
    json.dumps(video_indexing.build(path).to_json(), allow_nan=False)
