"""From clips to figures with protocols, and vdm evaluate on files.

The network of the features is a random projection here; test_i3d.py has the real one.
"""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest

from tests.data import video_files
from tests.data.video_files import Video
from vdm_jax.cli import evaluate
from vdm_jax.data import video_io
from vdm_jax.data.source import DataError
from vdm_jax.evaluation import clips, i3d, i3d_weights, kinetics, protocol, suite


class Projection:
    """In the place of I3D: linear in the pixels and in their changes from frame to frame."""

    protocol = {
        "network": "projection",
        "weights": "seed 0",
        "resize": "none",
        "temporal_padding": "none",
    }

    def __call__(self, videos):
        pixels = videos.astype(float) / 255
        change = np.abs(np.diff(np.repeat(pixels, 2, axis=1), axis=1)).mean((1, 4))
        flat = np.concatenate([pixels.mean((1, 4)), change], axis=1).reshape(len(videos), -1)
        matrix = np.random.default_rng(0).normal(size=(flat.shape[1], 12))
        return flat @ matrix, flat @ matrix[:, :6]


@pytest.fixture(scope="module")
def shapes():
    return clips.from_moving_shapes("16x16x8", "held_out", 96)


def half(found, first):
    chosen = slice(0, 48) if first else slice(48, 96)
    return clips.Clips(
        videos=found.videos[chosen],
        captions=found.captions[chosen],
        description=found.description,
    )


def measure(samples, reference, names, **changes):
    settings = {"network": Projection(), "replicates": 50, **changes}
    evaluation = suite.Evaluation(samples=samples, reference=reference, **settings)
    return dict(zip(names, evaluation.measure(names), strict=True))


def altered(found, change):
    videos = change(found.videos)
    return clips.Clips(videos=videos, captions=found.captions, description=found.description)


def test_what_is_further_from_the_references_has_larger_distances(shapes):
    ours, theirs = half(shapes, True), half(shapes, False)
    names = ["fvd", "kvd", "ffd", "precision", "recall"]
    real = measure(ours, theirs, names)
    frozen = measure(altered(ours, lambda v: np.repeat(v[:, :1], 8, 1)), theirs, names)
    rng = np.random.default_rng(0)
    noisy = measure(
        altered(ours, lambda v: rng.integers(0, 256, v.shape).astype(np.uint8)), theirs, names
    )
    for name in ("fvd", "kvd"):
        assert real[name].value < frozen[name].value < noisy[name].value
    # Single frames do not know that nothing moves.
    assert frozen["ffd"].value < 3 * real["ffd"].value < noisy["ffd"].value
    assert real["precision"].value > 0.8 and real["recall"].value > 0.8
    assert noisy["precision"].value == 0
    fvd = real["fvd"]
    assert 0 <= fvd.low <= fvd.high and fvd.extra["fvd_infinity"] < fvd.value
    assert fvd.protocol.weights == "seed 0" and fvd.protocol.references == 48
    assert fvd.n == 48 and fvd.protocol.dataset == "moving_shapes/16x16x8"


def test_clip_by_clip(shapes):
    names = ["psnr", "ssim", "judge", "warp"]
    pytest.importorskip("cv2")
    same = measure(shapes, shapes, names, network=None)
    assert same["psnr"].value == np.inf and same["psnr"].low is None
    assert same["ssim"].value == pytest.approx(1.0)
    assert same["judge"].value == 1.0 and same["judge"].extra["judge_color"] == 1.0
    backwards = altered(shapes, lambda v: v[:, ::-1])
    turned = measure(backwards, shapes, names, network=None)
    assert turned["ssim"].value < 0.95 and 0 < turned["psnr"].value < 40
    assert turned["judge"].value == 0.0 == turned["judge"].extra["judge_direction"]
    assert turned["ssim"].low < turned["ssim"].value < turned["ssim"].high


class Colours:
    """In the place of I3D: red is the number of the class, and the features are the colour."""

    protocol = Projection.protocol

    def __call__(self, videos):
        colour = videos.mean((1, 2, 3))
        return -np.abs(np.arange(400) - colour[:, :1]), colour


def coloured(colours, captions=()):
    """A clip for each row of colours, one a frame."""
    frames = np.array(colours, np.uint8)[:, :, None, None]
    videos = np.broadcast_to(frames, (*frames.shape[:2], 4, 4, 3))
    return clips.Clips(videos=videos, captions=captions, description={"resize": "none"})


def test_the_class_of_a_clip():
    names = [kinetics.class_names()[number] for number in (10, 21, 40, 250)]
    found = coloured([[[number, 0, 0]] * 2 for number in (10, 20, 30, 250)], names)
    accuracy = measure(found, None, ["accuracy"], network=Colours())["accuracy"]
    assert accuracy.value == 0.5 and accuracy.extra == {"accuracy_top5": 0.75}
    assert 0 < accuracy.low < 0.5 < accuracy.high < 1
    other = dataclasses.replace(found, captions=["zumba", "a red square", "zumba", "zumba"])
    with pytest.raises(ValueError, match="captions 'a red square': must be names of Kinetics"):
        measure(other, None, ["accuracy"], network=Colours())


def test_consecutive_frames_are_compared_with_each_other():
    red, green, blue = np.eye(3, dtype=np.uint8) * 200
    still = coloured([[red] * 4, [green] * 4, [blue] * 4])
    found = measure(still, None, ["consistency"], network=Colours())["consistency"]
    assert found.value == pytest.approx(1) and found.extra == {"consistency_strangers": 0}
    # Of three pairs of frames one is of equal ones: a third, over many clips.
    changing = coloured([[red, red, green, blue]] * 300)
    found = measure(changing, None, ["consistency"], network=Colours())["consistency"]
    assert found.low < 1 / 3 < found.high and found.high - found.low < 0.15
    assert found.protocol.options == {"pairs of frames a clip": 1}
    with pytest.raises(ValueError, match="clips of 1 frame have no consecutive ones"):
        measure(coloured([[red]]), None, ["consistency"], network=Colours())


def test_what_cannot_be_measured_is_told(shapes):
    with pytest.raises(ValueError, match="metrics fid: allowed are fvd, ffd"):
        measure(shapes, None, ["fid"])
    with pytest.raises(ValueError, match="metrics fvd, psnr: need a reference"):
        measure(shapes, None, ["fvd", "is", "psnr"])
    with pytest.raises(ValueError, match="48 samples, 96 references"):
        measure(half(shapes, True), shapes, ["psnr"])
    short = altered(shapes, lambda v: v[:, :4])
    with pytest.raises(ValueError, match=r"samples are \[4, 16, 16, 3\] a clip, references"):
        measure(short, shapes, ["psnr"])
    silent = clips.Clips(videos=shapes.videos, captions=[], description=shapes.description)
    with pytest.raises(ValueError, match="judge: the samples have no captions"):
        measure(silent, None, ["judge"])


@pytest.fixture(scope="module")
def folders(shapes, tmp_path_factory):
    """An archive of clips, and the same as files of another size."""
    root = tmp_path_factory.mktemp("clips")
    (root / "ours").mkdir()
    np.savez(
        root / "ours" / "samples.npz",
        video=shapes.videos[:6],
        prompts=np.array(shapes.captions[:6]),
    )
    for index, video in enumerate(shapes.videos[:6]):
        video_io.write_mp4(root / "theirs" / f"{index}.mp4", video, min_size=64)
    return root


def test_clips_of_files_and_archives(folders, shapes):
    ours = clips.from_path(folders / "ours", num_frames=8, size=16, stride=1, count=None, seed=0)
    np.testing.assert_array_equal(ours.videos, shapes.videos[:6])
    assert ours.captions == shapes.captions[:6]
    theirs = clips.from_path(
        folders / "theirs", num_frames=8, size=16, stride=1, count=None, seed=0
    )
    # Enlarged, compressed and scaled down again.
    assert np.abs(theirs.videos.astype(int) - ours.videos).mean() < 10
    few = clips.from_path(folders / "ours", num_frames=3, size=8, stride=2, count=2, seed=1)
    assert few.videos.shape == (2, 3, 8, 8, 3) and len(few.captions) == 2
    assert clips.size_of(folders / "ours") == (8, 16)
    assert clips.size_of(folders / "theirs") == (8, 64)
    wide = Video(frames=5, width=64, height=48, sar=Fraction(1, 2))
    video_files.write(folders / "wide" / "b.mp4", wide)
    (folders / "wide" / "a.mp4").write_bytes(b"no video")
    assert clips.size_of(folders / "wide") == (5, 64)  # 64 x 96 square pixels
    (folders / "wide" / "b.mp4").unlink()
    with pytest.raises(DataError, match=r"none of 1 video files can be used; .*a.mp4: unreadable"):
        clips.size_of(folders / "wide")
    with pytest.raises(DataError, match="16 frames at a stride of 1 take 16"):
        clips.from_path(folders / "ours", num_frames=16, size=16, stride=1, count=None, seed=0)
    with pytest.raises(DataError, match="no directory, and no archive"):
        clips.from_path(folders / "none", num_frames=8, size=16, stride=1, count=None, seed=0)


def test_evaluate_measures_folders_and_compares(folders, monkeypatch, capsys):
    monkeypatch.setattr(i3d_weights, "load_weights", lambda source=None: {})
    monkeypatch.setattr(i3d, "I3DFeatures", lambda params, filter: Projection())
    monkeypatch.setattr(evaluate.common, "setup", lambda *_, **__: None)

    def run(samples, out, *more):
        flags = [f"--samples={folders / samples}", f"--out={folders / out}", "--replicates=20"]
        reference = f"--reference={folders / 'theirs'}"
        flags += [reference, "--metrics=fvd,psnr", "--num_frames=8", "--size=16", *more]
        assert evaluate.main(flags) == 0
        return capsys.readouterr().out

    assert "Fréchet video distance" in run("ours", "a.json")
    results = json.loads(run("theirs", "b.json", "--json"))
    assert [result["protocol"]["metric"] for result in results] == ["fvd", "psnr"]
    assert results[0]["value"] == pytest.approx(0, abs=1e-6)
    assert protocol.load(folders / "b.json")[0].subject == {"model": "theirs"}

    assert evaluate.main(["--compare", str(folders / "a.json"), str(folders / "b.json")]) == 0
    table = capsys.readouterr().out
    assert "| fvd |" in table and "ours" in table

    run("ours", "c.json", "--num_frames=4")
    with pytest.raises(ValueError, match="fvd is not comparable.*frames"):
        evaluate.main(["--compare", str(folders / "a.json"), str(folders / "c.json")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples=x"], "--samples needs --metrics"),
        (["--samples=x", "--model=y", "--metrics=fvd"], "give one of them"),
        (["--out=x"], "need --metrics"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(flags)
    assert message in capsys.readouterr().err
