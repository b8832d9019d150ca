"""vdm edit control and vdm edit interpolate --method=rife, on files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.systems.test_controlvideo import drawn
from tests.systems.test_latent_image import write_folder
from vdm_jax.cli import edit, outputs
from vdm_jax.data import controls, video_io
from vdm_jax.models import rife
from vdm_jax.models.controlnet import ControlNet
from vdm_jax.stage import sampler_program
from vdm_jax.weights import controlnet, fetch, latent_unet
from vdm_jax.weights import rife as rife_weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of a model and of a ControlNet for it."""
    folder = tmp_path_factory.mktemp("control")
    unet = json.loads((write_folder(folder / "model") / "unet" / "config.json").read_text())
    ours = latent_unet.from_config(unet, folder)
    network = ControlNet(unet=ours.unet, settings=ours.settings, hint_widths=(4, 8))
    params = drawn(controlnet.shapes(network))
    controlnet.write_folder(folder / "controlnet", network, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield [f"--model={folder / 'model'}", f"--controlnet={folder / 'controlnet'}"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Five frames of a square that moves, larger than the model's and not square."""
    video = np.zeros((5, 32, 48, 3), np.uint8)
    for frame in range(5):
        video[frame, 8:24, 10 + 2 * frame : 26 + 2 * frame] = 255
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return video_io.write_mp4(path, video, fps=6, min_size=32)


@pytest.fixture
def black(monkeypatch):
    """Sampling without a network: a control video's first value is in the result."""

    def run(params, frozen, key, indices, cond, *_):
        videos = np.zeros((len(indices), *cond["hint"].shape[1:]), np.uint8)
        videos[:, 0, 0, 0, 0] = indices + 1
        return videos, np.ones(len(indices), bool)

    monkeypatch.setattr(sampler_program, "compile_sampler", lambda *_: run)


def test_a_video_is_made_that_has_the_inputs_first_frames_and_rate(folders, clip, tmp_path):
    pytest.importorskip("cv2")
    flags = [f"--input={clip}", "--control=canny", "--prompt=a cat", "--steps=2", "--device=cpu"]
    flags += ["--no_smoother", "--num_frames=3", f"--out={tmp_path}"]
    assert edit.main(["control", *folders, *flags]) == 0
    with np.load(tmp_path / "samples.npz") as made, np.load(tmp_path / "given.npz") as given:
        assert made["video"].shape == (1, 3, 16, 16, 3) and list(made["prompts"]) == ["a cat"]
        assert float(made["fps"]) == 6
        expected = controls.canny(video_io.read_video(clip, size=(16, 16), frames=3)[0])
        np.testing.assert_array_equal(given["video"][0], expected)
        assert expected.any()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"contact_sheet.png", "samples.gif", "given.gif"} <= names
    assert outputs.PARTS not in names


def test_a_stopped_job_goes_on(folders, tmp_path, black, monkeypatch, capsys):
    videos = np.random.default_rng(0).integers(0, 256, (3, 9, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "depth.npz", video=videos)
    flags = [*folders, f"--control=depth:{tmp_path / 'depth.npz'}", "--prompt=a cat"]
    flags += ["--hierarchical", "--no_smoother", "--device=cpu", f"--out={tmp_path / 'out'}"]
    add = outputs.Parts.add

    def stopped(self, videos):
        if self.done == 2:
            raise KeyboardInterrupt
        add(self, videos)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(outputs.Parts, "add", stopped)
        edit.main(["control", *flags])
    assert edit.main(["control", *flags]) == 0
    assert "2 clips are in" in capsys.readouterr().out
    with np.load(tmp_path / "out" / "samples.npz") as made:
        assert made["video"].shape == (3, 9, 16, 16, 3)  # all frames of the input
        assert list(made["video"][:, 0, 0, 0, 0]) == [1, 2, 3]


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--controlnet=x", "--input=y", "--prompt=z"], "control needs --control"),
        (["--control=canny", "--input=y", "--prompt=z"], "control needs --controlnet"),
        (["--control=canny", "--controlnet=x", "--prompt=z"], "needs either --input or a file"),
        (["--control=canny:y", "--controlnet=x", "--input=y"], "needs either --input or a file"),
        (["--control=canny", "--controlnet=x", "--input=y"], "control needs --prompt"),
        (["--control=canny", "--method=rife"], "--method has no meaning for control"),
        (
            ["--control=canny", "--controlnet=x", "--mesh=fsdp=2"],
            "--mesh has no meaning for control",
        ),
    ],
)
def test_mistakes_of_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        edit.main(["control", "--model=m", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--control=lines"], "--control=lines: allowed are canny, hed, depth, pose"),
        (["--control=depth", "--num_frames=8", "--hierarchical"], "window = 2: must be at least 3"),
        (["--control=depth", "--attention=some"], "frames = 'some': allowed are own"),
        (["--control=depth", "--prompt=b"], "2 prompts, 1 videos"),
    ],
)
def test_what_does_not_fit_is_refused_before_compiling(
    folders, clip, tmp_path, monkeypatch, flags, message
):
    monkeypatch.setattr(sampler_program, "compile_sampler", lambda *_: 1 / 0)
    monkeypatch.setattr(rife_weights, "load", lambda: 1 / 0)
    flags = [*folders, f"--input={clip}", "--prompt=a", "--device=cpu", *flags]
    with pytest.raises(ValueError, match=message):
        edit.main(["control", *flags, f"--out={tmp_path}"])


def test_rife_makes_the_frames_between(clip, tmp_path, monkeypatch):
    network = rife.MotionNetwork(widths=(4, 4, 4, 4), scales=(2, 2, 1, 1))
    image = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), image, image, 0.5)["params"]
    loaded = rife_weights.Loaded(network, drawn(nn.meta.unbox(shapes)))
    monkeypatch.setattr(rife_weights, "load", lambda: loaded)
    flags = [f"--input={clip}", "--method=rife", "--factor=3", "--device=cpu", f"--out={tmp_path}"]
    assert edit.main(["interpolate", *flags]) == 0
    video, fps = video_io.read_video(clip)
    with np.load(tmp_path / "samples.npz") as made:
        found = made["video"]
        assert float(made["fps"]) == 3 * fps and list(made["prompts"]) == [""]
    assert found.shape == (1, 13, 32, 48, 3)
    np.testing.assert_array_equal(found[0, ::3], video)
    pair = (jnp.asarray(video[i : i + 1], jnp.float32) / 255 for i in (1, 2))
    expected = 255 * rife.between(*loaded, *pair, 2 / 3)[0]
    assert np.abs(found[0, 5] - np.clip(expected, 0, 255)).max() < 0.51


@pytest.mark.parametrize(
    "job,flags,message",
    [
        ("extend", ["--input=x"], "--method=rife has no meaning for extend"),
        ("interpolate", ["--input=x", "--steps=3"], "--steps has no meaning for --method=rife"),
        ("interpolate", ["--prompt=x"], "--method=rife needs --input"),
    ],
)
def test_rife_refuses_flags_of_models(job, flags, message, capsys):
    with pytest.raises(SystemExit):
        edit.main([job, "--method=rife", *flags])
    assert message in capsys.readouterr().err
