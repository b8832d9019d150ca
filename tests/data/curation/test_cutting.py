"""The files of clips hold exactly the clips' frames, copied or coded anew."""

from fractions import Fraction

import numpy as np
import pytest

from tests.data import video_files
from vdm_jax.data import video_indexing
from vdm_jax.data.curation import cutting, film
from vdm_jax.data.curation.clips import Clip
from vdm_jax.data.curation.settings import Output
from vdm_jax.data.source import DataError

CASES = [
    (".mp4", "libx264", {}),
    (".mp4", "libx264", {"b_frames": 2}),
    (".mkv", "libx264", {"b_frames": 2, "open_gop": True}),
    (".avi", "mpeg4_packed", {"b_frames": 1}),
    (".webm", "libvpx-vp9", {}),
    (".mpg", "mpeg2video", {"b_frames": 2}),
]


def cut(path, clips, tmp_path, slack=0.2, **changes):
    known = film.identify(path)
    targets = [tmp_path / f"clip{number}.mp4" for number in range(len(clips))]
    written = cutting.write(
        path,
        known.file.index,
        clips,
        targets,
        Output(**changes),
        codec=known.codec,
        slack=slack,
    )
    return targets, written


@pytest.mark.parametrize("suffix,codec,changes", CASES)
@pytest.mark.parametrize("copy", [True, False])
def test_clips_have_their_frames(tmp_path, suffix, codec, changes, copy):
    video = video_files.Video(codec=codec, frames=60, gop=12, **changes)
    path = video_files.write(tmp_path / f"film{suffix}", video)
    shown = video_files.sequential(path)
    clips = [Clip(3, 20), Clip(23, 36), Clip(36, 60)]
    targets, written = cut(path, clips, tmp_path, copy=copy)
    for clip, target, inner in zip(clips, targets, written, strict=True):
        assert clip.start <= inner.start and inner.end <= clip.end
        assert (clip.end - clip.start) - (inner.end - inner.start) <= 2 * round(0.2 * video.fps)
        assert video_files.sequential(target) == shown[inner.start : inner.end]
        if not copy:
            assert inner == clip
        index = video_indexing.build(target)
        assert index.constant and index.fps == pytest.approx(film.identify(path).file.fps, rel=0.01)


def test_a_clip_at_a_key_frame_is_copied_bit_for_bit(tmp_path):
    path = video_files.write(tmp_path / "film.mp4", video_files.Video(frames=48, gop=12))
    (target,), (inner,) = cut(path, [Clip(12, 36)], tmp_path)
    assert inner == Clip(12, 36)
    index = video_indexing.build(path)
    assert cutting.copyable(index, Clip(13, 36), 0.0) is None  # no key frame
    assert cutting.copyable(index, Clip(11, 36), 0.1) == Clip(12, 36)
    decoded = [
        np.stack([frame.picture(64) for frame in film.frames(file, video_indexing.build(file))])
        for file in (path, target)
    ]
    np.testing.assert_array_equal(decoded[0][12:36], decoded[1])


def test_times_of_a_variable_rate_are_kept(tmp_path):
    times = video_files.pattern("slower", 40, fps=30)
    times = (*times[:20], *(times[19] + (k + 1) / 10 for k in range(20)))
    path = video_files.write(tmp_path / "film.mp4", video_files.Video(frames=40, times=times))
    (target,), _ = cut(path, [Clip(15, 30)], tmp_path, copy=False)
    found = film.frame_seconds(video_indexing.build(target))
    np.testing.assert_allclose(found, np.array(times[15:30]) - times[15], atol=2e-3)


def test_stored_clips_can_be_smaller_and_odd_sides_lose_a_column(tmp_path):
    pictures = np.full((20, 45, 67, 3), 80, np.uint8)
    video = video_files.Video(codec="ffv1", frames=20, height=45, width=67)
    path = video_files.write(tmp_path / "film.mkv", video, pictures)
    (target,), _ = cut(path, [Clip(0, 20)], tmp_path)
    assert film.identify(target).height == 44 and film.identify(target).width == 66
    (target,), _ = cut(path, [Clip(0, 20)], tmp_path, side=30)
    assert (film.identify(target).height, film.identify(target).width) == (30, 44)


def test_a_film_that_is_shorter_than_measured_is_an_error(tmp_path):
    path = video_files.write(tmp_path / "film.mp4", video_files.Video(frames=30))
    with pytest.raises(DataError, match="ends before frame 50"):
        cut(path, [Clip(20, 50)], tmp_path, copy=False)


@pytest.mark.parametrize("changes", [{"quarter_turns": 1}, {"mirror": True}, {"sar": Fraction(2)}])
def test_clips_of_turned_films_are_upright(tmp_path, changes):
    path = video_files.write(tmp_path / "film.mp4", video_files.Video(frames=24, gop=12, **changes))
    (target,), (inner,) = cut(path, [Clip(12, 24)], tmp_path)
    shown = [
        np.stack([frame.picture(64) for frame in film.frames(file, video_indexing.build(file))])
        for file in (path, target)
    ]
    assert inner == Clip(12, 24)
    assert np.abs(shown[0][12:].astype(int) - shown[1]).mean() < 4
