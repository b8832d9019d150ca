"""vdm evaluate of models as they are meant to be sampled, of any shape."""

import json

import numpy as np
import pytest

from vdm_jax.cli import evaluate
from vdm_jax.data import video_io
from vdm_jax.evaluation import clips, i3d, i3d_weights, suite
from vdm_jax.stage import sampler as sampling


class Means:
    """In the place of I3D: the mean of each frame."""

    protocol = {"network": "means", "weights": "", "resize": "none", "temporal_padding": ""}

    def __call__(self, videos):
        means = videos.mean((2, 3)).reshape(len(videos), -1)
        return means, means


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos that are wider than high, at 12 frames a second."""
    root = tmp_path_factory.mktemp("wide")
    for index in range(5):
        video = np.random.default_rng(index).integers(0, 256, (1, 4, 6, 3), np.uint8)
        video = video.repeat(10, 1).repeat(10, 2).repeat(16, 0)
        video_io.write_mp4(root / f"{index}.mp4", video, fps=12, min_size=40)
        (root / f"{index}.txt").write_text("a red square")
    return root


@pytest.fixture
def run(monkeypatch, folder, capsys):
    monkeypatch.setattr(i3d_weights, "load_weights", lambda source=None: {})
    monkeypatch.setattr(i3d, "I3DFeatures", lambda params, filter: Means())
    assert suite.METRICS["psnr"].paired  # imported before, as it names the class

    def run(*flags):
        flags = (f"--reference={folder}", "--device=cpu", "--json", "--replicates=20", *flags)
        assert evaluate.main(list(flags)) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_stage_refines_the_coarse_versions_of_wide_references(run, ssr_file, folder, monkeypatch):
    stream, given = sampling.Sampler.stream, []

    def watched(self, *arguments, **options):
        given.append(options["inputs"]["low_res"])
        return stream(self, *arguments, **options)

    monkeypatch.setattr(sampling.Sampler, "stream", watched)
    psnr, fvd = run(f"--model={ssr_file}", "--metrics=psnr,fvd", "--num_samples=5")
    protocol = psnr["protocol"]
    assert protocol["size"] == [16, 24] and protocol["crop"] == "centre, 16 x 24"
    assert protocol["resize"] == "bicubic, antialiased, of the centre 16 x 24"
    # The files' 12 frames a second are brought to the model's 6, as in training.
    options = {"fps": "6", "equal_frames": "as one value off by one"}
    assert protocol["options"] == options and protocol["frames"] == 8
    # The model's own sampler, of which no flag says anything.
    assert psnr["subject"] == {
        "model": str(ssr_file),
        "sampler": "ddim",
        "steps": 3,
        "guidance": 1.0,
    }
    assert fvd["n"] == psnr["n"] == 5
    first = clips.from_path(folder, num_frames=8, size=(16, 24), stride=1, fps=6.0, count=1, seed=0)
    coarse = first.videos.reshape(1, 8, 8, 2, 12, 2, 3).mean((3, 5))
    assert min(np.abs(video - coarse[0]).max() for video in given[0]) <= 1
    assert given[0].shape == (5, 8, 8, 12, 3)
    (other,) = run(f"--model={ssr_file}", "--metrics=fvd", "--num_samples=5", "--steps=2")
    assert other["subject"]["steps"] == 2


def test_known_frames_of_references_of_a_folder(run, model_file):
    flags = ("--known=frames:2", "--method=replacement", "--num_samples=6", "--samples_per_clip=2")
    (psnr,) = run(f"--model={model_file}", "--metrics=psnr", *flags, "--guidance=1")
    assert psnr["n"] == 6 and psnr["protocol"]["references"] == 3
    assert psnr["protocol"]["options"]["known"] == "frames:2"
    assert psnr["subject"]["steps"] == 2
