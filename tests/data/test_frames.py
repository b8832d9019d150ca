"""Pictures come out upright, with square pixels, whatever a file stores."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.data import video_files
from tests.data.video_files import Video, write
from vdm_jax.data import index_cache, video_io
from vdm_jax.data.frames import upright
from vdm_jax.data.video_folder import VideoFolder


@pytest.fixture(autouse=True)
def users_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(index_cache, "USER_CACHE", tmp_path / "users_cache")


CORNERS = ((230, 40, 40), (40, 230, 40), (40, 40, 230), (230, 230, 230))


def corners(height, width):
    """A picture whose quarters have different colours."""
    image = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    image[:] = np.array(CORNERS, np.uint8).reshape(2, 2, 3)[rows][:, columns]
    return image


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_turned_and_mirrored_films_are_upright(suffix, mirror, turns, tmp_path):
    shown = corners(48, 64)
    # What is stored becomes what is shown by turning clockwise, then exchanging left and right.
    stored = np.rot90(shown[:, ::-1] if mirror else shown, turns)
    height, width = stored.shape[:2]
    path = write(
        tmp_path / f"a{suffix}",
        Video(frames=4, width=width, height=height),
        [np.ascontiguousarray(stored)] * 4,
    )
    # Rows of the matrix: where a step right and a step down in what is stored lead to.
    turned = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), turns)
    video_files.set_matrix(path, (turned @ np.diag([-1 if mirror else 1, 1])).ravel())
    video, _ = video_io.read_video(path)
    assert video.shape == (4, 48, 64, 3)
    assert np.abs(video[0].astype(int) - shown).mean() < 12
    clip = VideoFolder(tmp_path, num_frames=4, image_size=24, image_width=32)[0]["video"]
    assert clip.shape == (4, 24, 32, 3)
    assert np.abs(clip[0].astype(int) - corners(24, 32)).mean() < 12


def disc(height, width):
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / (height / 3)) ** 2 + ((x - width / 2) / (height / 3)) ** 2 < 1
    return np.repeat(np.where(inside, 230, 20).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "libx264"), (".mpg", "mpeg2video")]
)
@pytest.mark.parametrize("sar", [Fraction(64, 45), Fraction(8, 9), Fraction(1)])
def test_a_disc_stays_round(suffix, codec, sar, tmp_path):
    if suffix == ".mpg" and sar != 1:
        sar = Fraction(16, 9) / Fraction(96, 72)  # MPEG-2 stores one of four ratios of the picture
    width = 96
    round_one = Image.fromarray(disc(72, round(width * sar)))
    stored = np.asarray(round_one.resize((width, 72), Image.Resampling.BICUBIC))
    video = Video(codec=codec, frames=4, width=width, height=72, sar=sar)
    path = write(tmp_path / f"a{suffix}", video, [stored] * 4)
    for picture in (
        video_io.read_video(path)[0][0],
        VideoFolder(tmp_path, num_frames=4, image_size=64)[0]["video"][0],
        video_io.read_video(path, size=(64, 64), frames=1)[0][0],
    ):
        bright = picture.mean(axis=-1) > 125
        height, width_ = bright.any(axis=1).sum(), bright.any(axis=0).sum()
        assert height == pytest.approx(width_, rel=0.06)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(orientation, tmp_path):
    operations = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    shown = corners(48, 64)
    stored = Image.fromarray(np.ascontiguousarray(operations[orientation](shown)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "photo.jpg") as image:
        assert np.abs(upright(image).astype(int) - shown).mean() < 6
    video, fps = video_io.read_video(tmp_path / "photo.jpg")
    assert video.shape == (1, 48, 64, 3) and fps == 0
    assert np.abs(video[0].astype(int) - shown).mean() < 6
    small, _ = video_io.read_video(tmp_path / "photo.jpg", size=(16, 16))
    assert small.shape == (1, 16, 16, 3)


def test_a_photo_of_16_bits_keeps_its_greys(tmp_path):
    greys = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(32, axis=0)
    Image.fromarray(greys).save(tmp_path / "a.png")
    video, _ = video_io.read_video(tmp_path / "a.png")
    np.testing.assert_array_equal(video[0, 0, :, 0], greys[0] >> 8)


def test_an_aspect_that_cannot_be_is_left_out():
    import av

    from vdm_jax.data.frames import Geometry

    frame = av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8))
    assert Geometry.of_frame(frame, Fraction(1, 1000)).aspect == 1
    assert Geometry.of_frame(frame, None).upright_size == (8, 8)
    assert Geometry.of_frame(frame, Fraction(1, 2)).upright_size == (16, 8)
