"""Every format of a clip, its comment and its sound, written to real files and read back."""

import av
import numpy as np
import pytest

from tests.data import video_files
from vdm_jax.data import recipes, video_encoding, video_formats, video_io

RECIPE = {"vdm_jax": "1", "prompt": "a “red” circle, " * 60}  # longer than a block of a GIF


@pytest.fixture
def clip():
    """Six frames of 11 x 16 in which a red block moves right over blue."""
    video = np.zeros((6, 11, 16, 3), np.uint8)
    video[..., 2] = 200
    for index, frame in enumerate(video):
        frame[4:8, 2 * index : 2 * index + 4] = (220, 20, 20)
    return video


def heard(path):
    """The codec of a file's sound, its length in seconds, and its loudest frequency."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        blocks = [frame.to_ndarray() for frame in container.decode(stream)]
        rate, name = stream.rate, stream.codec_context.name
    wave = np.concatenate([block.reshape(block.shape[0], -1)[0] for block in blocks])
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return name, len(wave) / rate, np.argmax(spectrum) * rate / len(wave)


@pytest.mark.parametrize("kind", video_formats.FORMATS)
def test_a_format_holds_the_clip_and_its_recipe(kind, tmp_path, clip):
    text = recipes.to_text(RECIPE)
    path = video_formats.write(tmp_path / "a.b:c", clip, 10, kind, text)
    assert recipes.read(path) == RECIPE
    if kind == "png":
        assert [one.name for one in sorted(path.iterdir())] == [f"{n:05d}.png" for n in range(6)]
        video = np.stack([video_io.read_video(one)[0][0] for one in sorted(path.iterdir())])
        np.testing.assert_array_equal(video, clip)
        return
    video, fps = video_io.read_video(path)
    assert fps == pytest.approx(10, rel=0.01) and len(video) == 6
    small = video[:, 9:198:18, 9::18]
    assert np.abs(small.astype(int) - clip).mean() < 8
    if kind == "webp":
        np.testing.assert_array_equal(small, clip)
    assert recipes.read(video_formats.write(tmp_path / "still", clip[:1], 10, kind, text)) == RECIPE


def test_webm_is_av1_and_mp4_is_h264(tmp_path, clip):
    codecs = {}
    for kind in video_formats.WITH_SOUND:
        with av.open(str(video_formats.write(tmp_path / "clip", clip, 8, kind))) as container:
            codecs[kind] = container.streams.video[0].codec_context.codec.canonical_name
    assert codecs == {"mp4": "h264", "webm": "av1"}


def test_a_file_without_a_recipe_is_refused(tmp_path, clip):
    (tmp_path / "text.mp4").write_text("no video")
    for path in (video_io.write_mp4(tmp_path / "clip.mp4", clip), tmp_path / "text.mp4"):
        with pytest.raises(ValueError, match="does not say how it was made"):
            recipes.read(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        recipes.read(tmp_path / "nothing.png")


@pytest.mark.parametrize(
    ("name", "codec", "kind", "expected"),
    [
        ("film.mp4", "aac", "mp4", "aac"),
        ("film.mp4", "aac", "webm", "opus"),
        ("film.mkv", "libopus", "webm", "opus"),
        ("film.avi", "ac3", "mp4", "ac3"),
    ],
)
def test_sound_is_kept_for_as_long_as_the_clip(name, codec, kind, expected, tmp_path, clip):
    source = video_files.tone(tmp_path / name, codec)
    path = video_formats.write(tmp_path / "out", clip, 12, kind, sound=source)  # half a second
    found, seconds, hertz = heard(path)
    assert found == expected
    assert 0.4 < seconds < 0.6 and hertz == pytest.approx(440, abs=6)
    video, fps = video_io.read_video(path)
    assert len(video) == 6 and fps == pytest.approx(12, rel=0.01)


def test_a_source_without_sound_gives_silence(tmp_path, clip):
    source = video_io.write_mp4(tmp_path / "silent.mp4", clip)
    assert not video_encoding.has_sound(source)
    path = video_formats.write(tmp_path / "out", clip, 8, sound=source)
    assert not video_encoding.has_sound(path)
