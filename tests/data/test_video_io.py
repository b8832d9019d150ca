"""Videos written to real files and read back."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.data import video_files
from tests.data.video_files import Video
from vdm_jax.data import video_io
from vdm_jax.data.frames import upright


@pytest.fixture
def clip():
    """Five frames of 12 x 16 in which a red block moves right over blue."""
    video = np.zeros((5, 12, 16, 3), np.uint8)
    video[..., 2] = 200
    for index, frame in enumerate(video):
        frame[4:8, 2 * index : 2 * index + 4] = (220, 20, 20)
    return video


def test_mp4_round_trip(tmp_path, clip):
    path = video_io.write_mp4(tmp_path / "sub" / "clip.mp4", clip, fps=6)
    video, fps = video_io.read_video(path)
    assert fps == 6
    assert video.shape == (5, 192, 256, 3)  # enlarged 16 times: watchable
    small = video[:, 8::16, 8::16]
    assert np.abs(small.astype(int) - clip).mean() < 8  # lossy, colour at half resolution
    assert np.abs(small.astype(int) - clip[::-1]).mean() > 12  # the motion is in it


def test_mp4_is_what_every_player_opens(tmp_path, clip):
    import av

    path = video_io.write_mp4(tmp_path / "clip.mp4", clip[:, :11, :15], min_size=1)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.height, context.width) == (12, 16)  # odd sides are completed


def test_gif_round_trip(tmp_path, clip):
    path = video_io.write_gif(tmp_path / "clip.gif", clip, fps=10, min_size=24)
    video, fps = video_io.read_video(path)
    assert fps == pytest.approx(10, rel=0.05)
    np.testing.assert_allclose(video[:, ::2, ::2].astype(int), clip, atol=2)
    with Image.open(path) as image:
        assert image.n_frames == 5 and image.info["loop"] == 0


def test_contact_sheet_shows_every_frame_and_the_captions(tmp_path, clip):
    videos = np.stack([clip, 255 - clip])
    path = video_io.contact_sheet(
        tmp_path / "sheet.png", videos, ["a red block", "its negative"], frame_size=24
    )
    sheet = np.asarray(Image.open(path))
    row = 18 + 24 + 2
    assert sheet.shape[0] == 2 * row and sheet.shape[1] >= 5 * (32 + 2)
    for index in range(2):
        for column in range(5):
            top, left = index * row + 18, column * 34
            tile = sheet[top : top + 24 : 2, left : left + 32 : 2]
            np.testing.assert_array_equal(tile, videos[index, column])
        text = sheet[index * row : index * row + 18]
        assert (text > 200).any()  # ink
    other = video_io.contact_sheet(tmp_path / "o.png", videos, ["b", "c"], frame_size=24)
    assert not np.array_equal(np.asarray(Image.open(other))[:18], sheet[:18])
    with pytest.raises(ValueError, match="1 captions for 2 clips"):
        video_io.contact_sheet(tmp_path / "x.png", videos, ["one"])


def test_a_contact_sheet_of_many_clips_can_be_looked_at(tmp_path):
    videos = np.zeros((56, 8, 16, 16, 3), np.uint8)
    videos += np.arange(100, 156, dtype=np.uint8)[:, None, None, None, None]
    captions = [f"{index:04d} a red circle moving left" for index in range(56)]
    sheet = np.asarray(Image.open(video_io.contact_sheet(tmp_path / "a.png", videos, captions)))
    assert 1 < sheet.shape[1] / sheet.shape[0] < 2.2
    # Down the columns; 32 of the 56, the first and the last among them.
    cells = sheet[18 + 2 :: 18 + 64 + 2, 2 :: 8 * 66 + 16, 0].T
    shown = [value - 100 for value in cells.ravel() if value >= 100]
    assert len(shown) == 32 == len(set(shown)) and shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0, 55)
    assert (sheet[-18:] > 200).any()  # the note of how many there are

    few = np.asarray(Image.open(video_io.contact_sheet(tmp_path / "b.png", videos[:4], ["x"] * 4)))
    assert few.shape[:2] == (4 * (18 + 64 + 2), 8 * 66)
    long = np.zeros((1, 100, 300, 300, 3), np.uint8)
    wide = Image.open(video_io.contact_sheet(tmp_path / "c.png", long, ["endless " * 500]))
    assert wide.size == (16 * (128 + 2), 18 + 128 + 2)


def test_grid_places_clips_row_by_row(clip):
    videos = np.stack([np.full_like(clip, value) for value in (10, 20, 30)])
    tiled = video_io.grid(videos, columns=2, gap=1)
    assert tiled.shape == (5, 25, 33, 3)
    assert [tiled[0, 0, 0, 0], tiled[0, 0, 17, 0], tiled[0, 13, 0, 0]] == [10, 20, 30]
    assert tiled[0, 13, 17, 0] == 0 and tiled[0, 12].max() == 0


def test_wrong_arrays_and_files_are_refused(tmp_path, clip):
    with pytest.raises(ValueError, match=r"float32 \(5, 12, 16, 3\): must be a uint8"):
        video_io.write_mp4(tmp_path / "x.mp4", clip.astype(np.float32))
    with pytest.raises(ValueError, match="n f h w c"):
        video_io.grid(clip)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all")
    with pytest.raises(ValueError, match=r"bad\.mp4: cannot be read"):
        video_io.read_video(bad)


def test_only_what_is_wanted_is_decoded_and_held(tmp_path, monkeypatch):
    video = Video(frames=60, width=640, height=480)
    path = video_files.write(tmp_path / "large.mp4", video)  # 53 MiB of pixels
    tracemalloc.start()
    frames, fps = video_io.read_video(path, size=(32, 32))
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert video_files.numbers(frames) == list(range(60)) and fps == pytest.approx(30)
    decoded = []
    monkeypatch.setattr(
        video_io, "upright", lambda *a, **kw: decoded.append(1) or upright(*a, **kw)
    )
    still, fps = video_io.read_video(path, size=(32, 32), frames=1)
    assert len(decoded) == 1 and still.shape == (1, 32, 32, 3) and fps == 30


def test_a_video_is_resampled_by_time(tmp_path):
    times = (*np.arange(30) / 30, *(1 + np.arange(30) / 15))
    path = video_files.write(tmp_path / "a.mp4", Video(frames=60, b_frames=2, times=times))
    video, fps = video_io.read_video(path, size=(32, 32), fps=10)
    shown = [int(np.searchsorted(times, k / 10 + 1e-4, "right")) - 1 for k in range(30)]
    assert video_files.numbers(video) == shown and fps == 10
    few, _ = video_io.read_video(path, size=(32, 32), fps=10, frames=4)
    assert video_files.numbers(few) == shown[:4]


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "libx264"), (".avi", "mpeg4_packed")])
def test_frames_come_in_the_order_in_which_they_are_shown(suffix, codec, tmp_path):
    path = video_files.write(tmp_path / f"a{suffix}", Video(codec=codec, b_frames=2))
    video, fps = video_io.read_video(path)
    assert video_files.numbers(video) == list(range(24)) and fps == pytest.approx(30)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff", ".jpg"])
def test_a_still_image_is_a_video_of_one_frame(suffix, tmp_path, clip):
    Image.fromarray(clip[0]).save(tmp_path / f"a{suffix}")
    video, fps = video_io.read_video(tmp_path / f"a{suffix}")
    assert video.shape == (1, 12, 16, 3) and fps == 0
    assert np.abs(video[0].astype(int) - clip[0]).mean() < 12


def test_an_animated_image_is_a_video(tmp_path):
    pictures = [Image.fromarray(video_files.picture(k, 32, 32)) for k in range(5)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=125)
    video, fps = video_io.read_video(tmp_path / "a.webp")
    assert video_files.numbers(video) == list(range(5)) and fps == pytest.approx(8)


def test_no_file_but_the_one_that_is_named_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video_files.write(tmp_path / "a.mp4", Video(frames=3)).rename(tmp_path / "concat:b.mp4")
    assert len(video_io.read_video("concat:b.mp4")[0]) == 3
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile 'concat:b.mp4'\n")
    with pytest.raises(ValueError, match=r"list.txt: cannot be read as a video"):
        video_io.read_video("list.txt")
    with pytest.raises(ValueError, match=r"nothing.mp4: cannot be read as a video: No such file"):
        video_io.read_video("nothing.mp4")
