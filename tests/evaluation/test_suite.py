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
from vdm_jax.evaluation import clips, comparison, i3d, i3d_weights, kinetics, protocol, suite


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
    return clips.from_rendered("moving_shapes", "16x16x8", "held_out", 96)


class Noise:
    """In the place of I3D: features that are far more than clips, and independent."""

    protocol = Projection.protocol

    def __call__(self, videos):
        seeds = [int(video.astype(int).sum()) for video in videos]
        features = [np.random.default_rng(seed).normal(size=400) for seed in seeds]
        return np.array(features), np.array(features)


def half(found, first):
    chosen = slice(0, 48) if first else slice(48, 96)
    return clips.Clips(
        videos=found.videos[chosen],
        captions=found.captions[chosen],
        description=found.description,
    )


def measure(samples, reference, names, **changes):
    settings = {"network": Projection(), "replicates": 50, **changes}
    evaluation = comparison.Evaluation(samples=samples, reference=reference, **settings)
    return dict(zip(names, suite.measure(evaluation, names), strict=True))


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
    plain = {
        name: found["ffd"].extra["ffd_uncorrected"]
        for name, found in (("real", real), ("frozen", frozen), ("noisy", noisy))
    }
    assert plain["frozen"] < 3 * plain["real"] < plain["noisy"]
    assert real["precision"].value > 0.8 and real["recall"].value > 0.8
    assert noisy["precision"].value == 0
    fvd = real["fvd"]
    assert fvd.extra["fvd_infinity"] < fvd.extra["fvd_uncorrected"]
    assert fvd.protocol.features.weights == "seed 0" and fvd.protocol.references == 48
    assert fvd.n == 48 and fvd.protocol.dataset == "moving_shapes/16x16x8"


@pytest.mark.parametrize("count", [6, 12, 40])
def test_an_estimate_lies_in_its_interval(shapes, count):
    """The distance of few clips is far above the interval for that of the distributions."""
    ours, theirs = (
        dataclasses.replace(part, videos=part.videos[:count])
        for part in (half(shapes, True), half(shapes, False))
    )
    equal = measure(ours, theirs, ["fvd"], network=Noise())["fvd"]
    assert equal.low <= equal.value <= equal.high < equal.extra["fvd_uncorrected"]
    fvd = measure(altered(ours, lambda v: v // 2), theirs, ["fvd"])["fvd"]
    assert fvd.low < fvd.value < min(fvd.high, fvd.extra["fvd_uncorrected"])
    assert f"{count} clips for 12 features are few" in fvd.note and "from 60 clips" in fvd.note
    # Without intervals the estimate is the same, up to the draws of the halves.
    bare = measure(altered(ours, lambda v: v // 2), theirs, ["fvd"], replicates=0)["fvd"]
    assert bare.low is None and bare.value == pytest.approx(fvd.value, abs=fvd.standard_error)
    assert bare.protocol == fvd.protocol


def test_three_clips_are_too_few_to_correct(shapes):
    three = dataclasses.replace(shapes, videos=shapes.videos[:3])
    fvd = measure(three, half(shapes, False), ["fvd"])["fvd"]
    assert fvd.low is None and "3 clips are too few" in fvd.note
    assert fvd.protocol.options["estimate"] == "of these clips, biased"


def test_clip_by_clip(shapes):
    names = ["psnr", "ssim", "judge", "warp"]
    pytest.importorskip("cv2")
    same = measure(shapes, shapes, names, network=None)
    assert same["psnr"].value == pytest.approx(10 * np.log10(255**2 * 16 * 16 * 3))
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
    assert clips.size_of(folders / "ours") == (8, 16, 16)
    assert clips.size_of(folders / "theirs", stride=3) == (3, 64, 64)
    wide = clips.from_path(
        folders / "theirs", num_frames=8, size=(8, 16), stride=1, count=1, seed=0
    )
    assert wide.videos.shape == (1, 8, 8, 16, 3)
    assert wide.description["resize"] == "bicubic, antialiased, of the centre 8 x 16"
    # An archive in its own size is not resized.
    assert ours.description["resize"] == "none" and few.description["resize"] == clips.FILTER
    video_files.write(
        folders / "wide" / "b.mp4", Video(frames=5, width=64, height=48, sar=Fraction(1, 2))
    )
    (folders / "wide" / "a.mp4").write_bytes(b"no video")
    assert clips.size_of(folders / "wide") == (5, 96, 64)  # square pixels
    (folders / "wide" / "b.mp4").unlink()
    with pytest.raises(DataError, match=r"no usable file"):
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


def moving(frames, start, color):
    """A square that moves by one pixel a frame."""
    video = np.zeros((frames, 16, 32, 3), np.uint8)
    for frame in range(frames):
        video[frame, 4:12, start + frame : start + frame + 8, color] = 255
    return video


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folders of four clips of the same names, each with another defect."""
    root = tmp_path_factory.mktemp("pairs")
    lengths = {"true": (8, 8, 8), "short": (8, 6, 8), "long": (20, 8, 8), "few": (8, 8)}
    for name, frames in lengths.items():
        for index, count in enumerate(frames):
            video = moving(count, index, index)
            video_io.write_mp4(root / name / "sub" / f"v{index}.mp4", video, fps=8, min_size=16)
    for index in range(3):
        video = moving(8, index, index)
        video_io.write_mp4(root / "fast" / "sub" / f"v{index}.mp4", video, fps=16, min_size=16)
        video_io.write_mp4(root / "named" / f"{index:04d}_a_b.mp4", video, fps=8, min_size=16)
    (root / "broken" / "sub").mkdir(parents=True)
    for path in (root / "true" / "sub").iterdir():
        (root / "broken" / "sub" / path.name).write_bytes(path.read_bytes())
    (root / "broken" / "sub" / "v2.mp4").write_bytes(b"nothing")
    videos = np.stack([moving(8, index, index) for index in range(3)])
    for name, texts in (("archive", "abc"), ("other", "abd")):
        np.savez(root / f"{name}.npz", video=videos, prompts=np.array(list(texts)))
    np.savez(root / "timed.npz", video=videos, fps=16.0)
    return root


def paired(root, ours, theirs, count=None):
    cut = {"num_frames": 8, "size": (16, 32), "stride": 1}
    listings = (clips.open_path(root / name, **cut) for name in (ours, theirs))
    return clips.paired(*listings, count, seed=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("true", "true"), ("long", "true"), ("true", "long"), ("named", "archive.npz")],
)
def test_clips_pair_by_name(pairs, ours, theirs):
    a, b, remarks = paired(pairs, ours, theirs)
    assert len(a.videos) == 3 and list(a.names) == list(b.names)
    worst = np.abs(a.videos.astype(int) - b.videos).mean((1, 2, 3, 4)).max()
    assert worst < 10  # compressed; another clip's colours differ by 20
    if "long" in (ours, theirs):
        assert "files of different length" in remarks[0] and "sub/v0 (" in remarks[0]
    else:
        assert not remarks
    few, same, _ = paired(pairs, ours, theirs, count=2)
    assert len(few.videos) == 2 and list(few.names) == list(same.names)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ("short", "true", r"only in the references: sub/v1 \(too short: 6 frames"),
        ("true", "short", r"only in the samples: sub/v1 \(too short: 6 frames"),
        ("broken", "true", r"only in the references: sub/v2 \(unreadable"),
        ("few", "true", "only in the references: sub/v2"),
        ("true", "fast", r"other frame rates: sub/v0 \(8 and 16\)"),
        ("true", "named", "only in the samples: sub/v0, sub/v1, sub/v2; only in the references"),
        ("true", "archive.npz", "sub/v0 does not begin with a number"),
        ("archive.npz", "other.npz", "captions differ of clips 2"),
        ("timed.npz", "named", r"other frame rates: 0 \(16 and 8\), 1"),
    ],
)
def test_what_does_not_pair_is_named(pairs, ours, theirs, message):
    with pytest.raises(DataError, match=message):
        paired(pairs, ours, theirs)


def test_an_archive_with_a_frame_rate_is_brought_to_another(pairs):
    cut = {"size": (16, 32), "stride": 1, "count": None, "seed": 0}
    slow = clips.from_path(pairs / "timed.npz", num_frames=4, fps=8.0, **cut)
    whole = clips.from_path(pairs / "timed.npz", num_frames=8, **cut)
    np.testing.assert_array_equal(slow.videos, whole.videos[:, ::2])
    assert (slow.fps, whole.fps) == ((8.0, 8.0), (16.0, 16.0))
    assert clips.size_of(pairs / "timed.npz", fps=8.0) == (4, 16, 32)
    with pytest.raises(DataError, match="5 frames at a stride of 2 take 9"):
        clips.from_path(pairs / "timed.npz", num_frames=5, fps=8.0, **cut)


def test_two_files_of_one_name_do_not_pair(pairs, tmp_path):
    for suffix in ("mp4", "m4v"):
        (tmp_path / f"v0.{suffix}").write_bytes((pairs / "true" / "sub" / "v0.mp4").read_bytes())
    with pytest.raises(DataError, match="samples: two files are called v0"):
        paired(tmp_path, ".", pairs / "true")


def test_figures_say_what_was_left_out_and_the_frame_rate(pairs, monkeypatch, capsys):
    monkeypatch.setattr(i3d_weights, "load_weights", lambda source=None: {})
    monkeypatch.setattr(i3d, "I3DFeatures", lambda params, filter: Projection())
    monkeypatch.setattr(evaluate.common, "setup", lambda *_, **__: None)

    def run(ours, theirs, *flags):
        flags = ("--num_frames=8", f"--reference={pairs / theirs}", *flags)
        flags = (f"--samples={pairs / ours}", "--json", "--replicates=0", *flags)
        assert evaluate.main(list(flags)) == 0
        return json.loads(capsys.readouterr().out)[0]

    # Without pairs a file less is another set, and said so.
    fvd = run("broken", "true", "--metrics=fvd")
    assert fvd["n"] == 2 and fvd["protocol"]["references"] == 2
    assert "left out of the samples: sub/v2.mp4 (unreadable" in fvd["note"]
    assert fvd["protocol"]["options"]["fps"] == "8"
    assert fvd["protocol"]["size"] == [16, 32] and fvd["protocol"]["crop"] == "centre, 16 x 32"
    psnr = run("long", "true", "--metrics=psnr", "--size=16x16")
    assert psnr["n"] == 3 and "files of different length" in psnr["note"]
    options = {"fps": "8", "pairs": "by name", "equal_frames": "as one value off by one"}
    assert psnr["protocol"]["options"] == options
    assert psnr["protocol"]["crop"] == "centre square"
    with pytest.raises(DataError, match="samples have 8 frames a second, references 16.*--fps"):
        run("true", "fast", "--metrics=fvd")
    # Two frames of 4 a second last half a second: twice in these samples, once in the references.
    assert run("true", "fast", "--metrics=fvd", "--fps=4", "--num_frames=2")["n"] == 6
    with pytest.raises(DataError, match="only in the references: sub/v2"):
        run("broken", "true", "--metrics=psnr")
    with pytest.raises(ValueError, match="--num_references"):
        run("true", "true", "--metrics=psnr", "--num_references=2")


def test_clips_of_a_data_set_pair_by_caption(folders, shapes, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(evaluate.common, "setup", lambda *_, **__: None)
    flags = ["--metrics=psnr", "--reference=moving_shapes/16x16x8", "--json", "--replicates=0"]
    assert evaluate.main([f"--samples={folders / 'ours'}", *flags]) == 0
    # Equal to the last bit.
    assert json.loads(capsys.readouterr().out)[0]["value"] == pytest.approx(76.984, abs=1e-3)
    np.savez(tmp_path / "moved.npz", video=shapes.videos[1:7], prompts=shapes.captions[1:7])
    with pytest.raises(ValueError, match="pair with samples of the same captions"):
        evaluate.main([f"--samples={tmp_path / 'moved.npz'}", *flags])


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
