"""Each score measures what its name says."""

import cv2
import numpy as np
import pytest

from tests.data.curation import films
from vdm_jax.data.curation import look, motion, tracks
from vdm_jax.data.curation.clips import View
from vdm_jax.data.source import DataError


def view(pictures):
    tracker = tracks.Tracker()
    for picture in pictures:
        tracker.add(picture, 0.0)
    return View(
        seconds=len(pictures) / films.FPS,
        fps=films.FPS,
        samples=list(pictures[:: films.FPS // 2]),
        tracks={name: np.array(values) for name, values in tracker.values.items()},
        hashes=[],
    )


def shaken(amplitude, frames=72):
    rng = np.random.default_rng(0)
    times = np.arange(frames)[:, None] / films.FPS
    rates, phases = rng.uniform(3, 8, (3, 1, 1)), rng.uniform(size=(3, 1, 2))
    waves = np.sin(2 * np.pi * (rates * times + phases)).sum(0)
    return films.scene(1, frames, path=amplitude * waves / waves.std())


def test_a_still_clip_has_no_motion():
    scores = motion.score(view(films.scene(1, 48, pan=(0, 0))))
    assert scores["motion"] < 0.01
    assert scores["still"] == 1
    assert scores["shake"] < 1e-6


def test_a_pan_is_camera_motion():
    # 0.4 pixels of 64 a frame are 1.2 pixels of 16 in half a second.
    scores = motion.score(view(films.scene(1, 72, pan=(0, 0.4))))
    assert scores["motion"] == pytest.approx(1.2, rel=0.25)
    assert scores["camera"] == pytest.approx(scores["motion"], rel=0.1)
    assert scores["objects"] < 0.15 * scores["motion"]
    assert scores["still"] == 0


def test_a_moving_object_is_no_camera_motion():
    scores = motion.score(view(films.scene(1, 48, pan=(0, 0), disc=0.6)))
    # 7.2 pixels of 64 in half a second are 1.8 of 16, in the disc's 7% of the picture.
    assert scores["objects"] == pytest.approx(0.07 * 1.8, rel=0.4)
    assert scores["camera"] < 0.2 * scores["objects"]
    assert scores["still"] == 0


def test_shake_is_told_from_a_pan_and_from_objects():
    strong = motion.shake(view(shaken(1.6)))  # 2.5% of the height
    assert strong == pytest.approx(0.025 * np.sqrt(2), rel=0.5)
    assert motion.shake(view(shaken(0.5))) < 0.5 * strong
    for steady in (
        films.scene(1, 72, pan=(0, 3.0)),
        films.scene(1, 72, pan=(0, 0), disc=1.5),
    ):
        assert motion.shake(view(steady)) < 0.15 * strong


def test_displacement_has_sign_and_size():
    tracker = tracks.Tracker()
    for picture in films.scene(2, 3, pan=(1.0, 2.0)):
        tracker.add(picture, 0.25)
    assert tracker.values["down"][1:] == pytest.approx([1 / 64] * 2, abs=0.2 / 64)
    assert tracker.values["right"][1:] == pytest.approx([2 / 64] * 2, abs=0.2 / 64)
    assert tracker.values["coded"] == [0.25] * 3


def test_the_mirrored_picture_has_the_mirrored_hash():
    for seed in range(8):
        picture = films.texture(seed)[:64, :96]
        plain = tracks.picture_hash(picture, 6.0)
        mirrored = tracks.picture_hash(picture[:, ::-1], 6.0)
        assert (plain ^ tracks.MIRROR ^ mirrored).bit_count() <= 1  # a sign of almost zero
        assert (plain ^ mirrored).bit_count() > 10


def test_hashes_survive_coding_and_scaling_and_differ_between_scenes():
    hashes = []
    for seed in range(8):
        picture = films.texture(seed)[:64, :96]
        coded = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], 1)
        small = cv2.resize(coded, (60, 40), interpolation=cv2.INTER_AREA)
        plain = tracks.picture_hash(picture, 6.0)
        assert (plain ^ tracks.picture_hash(small, 6.0)).bit_count() <= 8
        hashes.append(plain)
    others = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 12


def test_a_picture_without_detail_has_no_hash():
    assert tracks.picture_hash(np.full((40, 40, 3), 90, np.uint8), 6.0) is None


def test_black_bars_are_measured():
    film = films.scene(1, 48)
    assert look.score(view(film))["border"] == 0
    film[:, :8] = film[:, -8:] = 0
    scores = look.score(view(film))
    assert scores["border"] == pytest.approx(16 / 64, abs=0.02)
    assert scores["black"] == 0


def test_black_clips_are_black():
    scores = look.score(view(np.full((48, 64, 96, 3), 4, np.uint8)))
    assert scores["black"] == 1
    assert scores["border"] == 1
    assert scores["clipped"] == 1


def test_blur_lowers_sharpness():
    film = films.scene(1, 24)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in film])
    assert look.score(view(blurred))["sharpness"] < 0.3 * look.score(view(film))["sharpness"]


def test_colourfulness_is_the_papers():
    grey = np.repeat(np.arange(64, dtype=np.uint8)[:, None, None], 64, 1).repeat(3, 2)
    assert look.colourfulness(grey) == 0
    halves = np.zeros((10, 10, 3), np.uint8)
    halves[:5], halves[5:] = (255, 0, 0), (0, 255, 0)
    # rg is ±255, yb 127.5 everywhere: sqrt(255²) + 0.3 · 127.5.
    assert look.colourfulness(halves) == pytest.approx(255 + 0.3 * 127.5)


class Brightness:
    """A scorer as a user may write one."""

    name, version = "brightest", "1"

    def __call__(self, view):
        return {"brightest": float(max(sample.max() for sample in view.samples))}


def test_scorers_are_loaded_by_name():
    scorer = look.load_scorer("tests.data.curation.test_scores:Brightness")
    assert scorer(view(films.scene(1, 24)))["brightest"] > 100


@pytest.mark.parametrize(
    "reference,message",
    [
        ("nothing", "is not MODULE:NAME"),
        ("no_such_module:Scorer", "no_such_module"),
        ("tests.data.curation.films:write", "cannot be loaded|write"),
    ],
)
def test_what_is_no_scorer_is_refused(reference, message):
    with pytest.raises((DataError, TypeError), match=message):
        look.load_scorer(reference)
