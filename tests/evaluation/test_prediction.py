"""vdm evaluate with known frames, on Gaussian videos: their distances have a closed form.

Each pixel is a Gaussian process of its own over the frames, AR(1). The network is the best denoiser
in closed form, given the known frames or without them, and the features are the pixels. So the
distance of the predictions is 0 for the network that uses the known frames, and the distance of two
known Gaussians for the one that ignores them.
"""

import dataclasses
import json

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vdm_jax.cli import evaluate
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.evaluation import clips, comparison, frechet, i3d, i3d_weights, prediction, suite
from vdm_jax.models import layers
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.conditions.video import MaskedVideo
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

SHAPE = (4, 2, 1, 3)  # f h w c
PIXELS = 6
DEVIATION = 0.2
COVARIANCE = DEVIATION**2 * 0.9 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
CLIPS, EACH = 256, 4


class Best(nn.Module):
    """E[x | z] as v, given the first `known` frames of the masked video; of none by default."""

    known: int = 0
    layout: layers.Layout = layers.ANYWHERE
    remat: str = "none"
    multiple = 1
    reach = None

    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        a = slice(self.known)
        gain = COVARIANCE[:, a] @ np.linalg.pinv(COVARIANCE[a, a])
        rest = COVARIANCE - gain @ COVARIANCE[a]
        variances, basis = (jnp.asarray(part, jnp.float32) for part in np.linalg.eigh(rest))
        alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in alpha_sigma(logsnr))

        def over_frames(matrix, x):
            return jnp.einsum("ij,bj...->bi...", matrix, x, precision="highest")

        mean = 0.0
        if self.known:
            mean = over_frames(jnp.asarray(gain, jnp.float32), cond["masked_video"][:, a])
        variances = jnp.maximum(variances, 0).reshape(1, -1, 1, 1, 1)
        shares = alpha * variances / (alpha**2 * variances + sigma**2)
        x = mean + over_frames(basis, shares * over_frames(basis.T, z - alpha * mean))
        return (alpha * z - x) / sigma


def make_stage(known):
    return Stage(
        network=Best(known=known),
        process=Process(prediction="v"),
        space=PixelSpace(data_shape=SHAPE),
        view=View(shape=SHAPE),
        conditions=(MaskedVideo(shape=SHAPE, kinds=("frames",)),),
    )


CONFIG = ml_collections.ConfigDict(
    {
        "data": {"name": "video_folder", "frame_stride": 1, "fps": 0.0},
        "sample": {"sampler": "ddim", "steps": 64, "guidance": 1.0, "batch_size": 1024},
    }
)


class Pixels:
    """In the place of I3D: the pixels, in the units of the data."""

    protocol = {"network": "pixels", "weights": "", "resize": "none", "temporal_padding": ""}

    def __call__(self, videos):
        flat = videos.reshape(len(videos), -1) / 127.5 - 1
        return flat, flat


def drawn(count, seed):
    """Videos of the process, uint8 `n f h w c`."""
    white = np.random.default_rng(seed).normal(size=(count, 4, PIXELS))
    videos = np.einsum("ij,njp->nip", np.linalg.cholesky(COVARIANCE), white)
    return np.rint((videos.clip(-1, 1) + 1) * 127.5).astype(np.uint8).reshape(count, *SHAPE)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """vdm evaluate of the network that knows so many frames: (flags, known of the network) to the
    results as JSON."""
    monkeypatch.setattr(i3d_weights, "load_weights", lambda source=None: {})
    monkeypatch.setattr(i3d, "I3DFeatures", lambda params, filter: Pixels())
    monkeypatch.setattr(evaluate.common, "setup", lambda *_, **__: None)
    np.savez(tmp_path / "test.npz", video=drawn(CLIPS, 0))
    np.savez(tmp_path / "other.npz", video=drawn(CLIPS, 1))

    def run(network, *flags):
        model = pretrained.Model(stage=make_stage(network), params={}, config=CONFIG)
        monkeypatch.setattr(evaluate.common, "load_any", lambda options: model)
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        common = [f"--reference={tmp_path / 'test.npz'}", "--replicates=100", f"--out={out}"]
        assert evaluate.main([*common, *flags]) == 0
        return json.loads(out.read_text()), out

    return run


def known(*flags):
    flags = (f"--samples_per_clip={EACH}", f"--num_references={CLIPS}", *flags)
    return ("--metrics=fvd", "--known=frames:1", "--method=trained", *flags)


def closed_form():
    """Of the videos, and those whose first frame has nothing to do with the others."""
    apart = COVARIANCE.copy()
    apart[0, 1:] = apart[1:, 0] = 0
    zero = np.zeros(4)
    return PIXELS * frechet.frechet(zero, COVARIANCE, zero, apart)


def test_the_distance_of_predictions_is_the_closed_form(measure, capsys):
    true = closed_form()
    (exact,), exact_file = measure(1, *known())
    assert exact["low"] == 0 <= exact["value"] < 0.05 * true
    assert exact["protocol"]["samples"] == CLIPS * EACH
    assert exact["protocol"]["references"] == CLIPS
    (ignoring,), ignoring_file = measure(0, *known())
    assert ignoring["low"] < true < ignoring["high"]
    assert ignoring["value"] == pytest.approx(true, rel=0.15)
    assert ignoring["low"] <= ignoring["value"] <= ignoring["high"]
    # The predicted frames alone are right: only with the known ones they are seen not to fit.
    (predicted,), predicted_file = measure(0, *known("--over=predicted"))
    assert predicted["low"] == 0 <= predicted["value"] < 0.05 * true
    assert predicted["protocol"]["frames"] == 3

    # With known frames and without, or of other frames: no comparison.
    capsys.readouterr()
    assert evaluate.main(["--compare", str(exact_file), str(ignoring_file)]) == 0
    (free,), free_file = measure(0, "--metrics=fvd", f"--num_samples={CLIPS * EACH}")
    assert free["protocol"]["references"] == CLIPS and "known" not in free["protocol"]["options"]
    for other, field in ((free_file, "options.known"), (predicted_file, "options.over")):
        with pytest.raises(ValueError, match=f"fvd is not comparable.*{field}"):
            evaluate.main(["--compare", str(exact_file), str(other)])


def test_what_was_known_is_in_the_protocol(measure, tmp_path):
    flags = ("--known=frames:2", "--method=replacement", "--steps=2", "--num_samples=16")
    (psnr,), _ = measure(0, "--metrics=psnr", *flags)
    # The known frames are equal, so they are left out.
    assert np.isfinite(psnr["value"]) and psnr["protocol"]["frames"] == 2
    assert psnr["protocol"]["options"] == {
        "equal_frames": "as one value off by one",
        "known": "frames:2",
        "known_method": "replacement",
        "known_from": "the references",
        "samples_per_clip": 1,
        "over": "predicted frames",
    }
    other = f"--known_from={tmp_path / 'other.npz'}"
    (fvd, kvd), _ = measure(0, "--metrics=fvd,kvd", *flags, other)
    assert fvd["protocol"]["options"]["known_from"] == "other.npz"
    weighted = ("--method=reconstruction", "--weight=3", "--known=frames:1,low_res:2")
    with pytest.raises(ValueError, match="low_res = 2: must divide 2 x 1 pixels"):
        measure(0, "--metrics=fvd", *flags[2:], *weighted)
    for metric in ("kvd", "psnr"):
        with pytest.raises(ValueError, match=f"{metric}.*--known_from"):
            measure(0, f"--metrics={metric}", *flags, *[other] * (metric == "psnr"))
    with pytest.raises(ValueError, match="frames = 4 of videos of 4: must be from 1 to 3"):
        measure(0, "--metrics=fvd", "--known=frames:4", "--num_samples=4")


def test_the_papers_protocols(measure, tmp_path, monkeypatch):
    bair, kinetics = (prediction.PAPER_PROTOCOLS[name] for name in ("bair", "kinetics600"))
    assert (bair.known, bair.frames, bair.clips, bair.each) == (1, 16, 256, 100)
    assert (kinetics.known, kinetics.frames, kinetics.clips, kinetics.each) == (5, 16, 50_000, 1)
    with pytest.raises(ValueError, match=r"16 frames of 64 x 64, but the model makes \[4, 2, 1\]"):
        measure(1, "--protocol=bair")
    small = dataclasses.replace(bair, frames=4, size=(2, 1), clips=CLIPS, each=2)
    monkeypatch.setattr(prediction, "PAPER_PROTOCOLS", {"bair": small})
    (fvd,), _ = measure(1, "--protocol=bair", "--steps=2")
    # This network takes masked videos.
    assert fvd["protocol"]["options"]["known_method"] == "trained"
    assert (fvd["protocol"]["samples"], fvd["protocol"]["references"]) == (2 * CLIPS, CLIPS)
    assert fvd["protocol"]["options"]["known"] == "frames:1"
    small = dataclasses.replace(small, clips=CLIPS + 1)
    monkeypatch.setattr(prediction, "PAPER_PROTOCOLS", {"bair": small})
    with pytest.raises(ValueError, match="is of 257 test videos, but 256 were found"):
        measure(1, "--protocol=bair")


def test_intervals_are_of_clips_not_of_samples():
    """Samples of one clip are alike, so many of them say little more than one."""
    rng = np.random.default_rng(0)
    each, count = 20, 40
    of_clip = rng.integers(60, 190, (count, 1, 1, 1, 1, 1))
    noise = rng.integers(-3, 4, (count, each, *SHAPE))
    videos = (of_clip + noise).astype(np.uint8).reshape(count * each, *SHAPE)
    description = {"data": "x", "split": "", "resize": "none"}
    samples = clips.Clips(videos=videos, captions=[], description=description)
    reference = dataclasses.replace(samples, videos=drawn(count, 2))
    wide, narrow = (
        suite.measure(
            comparison.Evaluation(
                samples=samples,
                reference=reference,
                network=Pixels(),
                prediction=known,
                replicates=100,
            ),
            ["fvd"],
        )[0]
        for known in (prediction.Prediction(frames=1, method="trained", each=each), None)
    )
    assert wide.standard_error > 2 * narrow.standard_error


def test_all_right_is_not_certain_however_many_samples_a_clip_has():
    """The interval of a share is that of as many clips, not samples."""
    samples = clips.Clips(
        videos=np.zeros((80, *SHAPE), np.uint8), captions=[], description={"resize": "none"}
    )
    known = prediction.Prediction(frames=1, method="trained", each=20)
    found = [
        comparison.Evaluation(samples=part, prediction=which).share("judge", np.ones(count, bool))
        for part, which, count in (
            (samples, known, 80),
            (dataclasses.replace(samples, videos=samples.videos[:4]), None, 4),
        )
    ]
    assert found[0].value == 1 and found[0].low == found[1].low < 0.6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frames", "must be frames:K"),
        ("frames:0", "must be frames:K"),
        ("frames:1,frames:2", "must be frames:K"),
        ("low_res:2", "must have frames:K"),
        ("frames:1,low_res:1", "N at least 2"),
    ],
)
def test_mistakes_of_what_is_known(text, message):
    with pytest.raises(ValueError, match=message):
        prediction.parse_known(text)
    assert prediction.parse_known("frames:1,low_res:2") == {"frames": 1, "low_res": 2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=x", "--metrics=fvd", "--over=all"], "--over needs --known"),
        (["--model=x", "--known=frames:1"], "--known and --out need --metrics"),
        (["--model=x", "--protocol=ucf"], "allowed are bair, kinetics600"),
        (["--model=x", "--protocol=kinetics600"], "needs --reference, the folder of test videos"),
        (["--model=x", "--protocol=bair", "--known=frames:2"], "--known: --protocol=bair sets it"),
        (["--samples=x", "--metrics=fvd", "--known=frames:2"], "--known is for a --model"),
        (
            ["--model=x", "--metrics=fvd", "--known=frames:1", "--samples_per_clip=3"]
            + ["--num_samples=7"],
            "no multiple of --samples_per_clip=3",
        ),
        (["--model=x", "--metrics=fvd", "--size=8x4"], "--size, --stride and --fps are for"),
        (["--samples=x", "--metrics=fvd", "--size=8y4"], "neither a number of pixels nor"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(flags)
    assert message in capsys.readouterr().err
