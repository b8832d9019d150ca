"""`vdm sample --system=text2video_zero` on drawn weights."""

import json

import numpy as np
import pytest

from tests.systems.test_latent_image import write_folder
from tests.systems.test_text2video_zero import GOLDEN, write_network
from vdm_jax import cli
from vdm_jax.data import video_io
from vdm_jax.weights import fetch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield write_folder(folder / "model")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video file of three frames."""
    video = np.zeros((3, 64, 64, 3), np.uint8)
    for frame in range(3):
        video[frame, 16:48, 8 + 8 * frame : 40 + 8 * frame] = 255
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video_io.write_mp4(path, video, fps=4)
    return path


def sample(folder, *flags):
    """The exit status of the command."""
    command = ["sample", "--system=text2video_zero", f"--model={folder}", "--prompt=a cat", *flags]
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    return ended.value.code or 0


def test_a_clip_is_sampled_and_written(folder, tmp_path, capsys):
    flags = ("--num_frames=4", "--chunk=3", "--steps=2", "--motion=128,0", "--preview")
    assert sample(folder, *flags, f"--out={tmp_path}") == 0
    out = capsys.readouterr().out
    assert "1 samples, 2 steps of ddim, guidance 7.5" in out
    assert "no masks of objects (--foreground): the background is not smoothed" in out
    with np.load(tmp_path / "samples.npz") as found:
        assert found["video"].shape == (1, 4, 16, 16, 3)
        assert np.ptp(found["video"].astype(int), axis=1).max() > 2
    for name in ("contact_sheet.png", "preview.png"):
        assert (tmp_path / name).is_file()


def test_a_clip_follows_a_control_video(folder, clip, tmp_path):
    import safetensors

    with safetensors.safe_open(GOLDEN, "numpy") as file:
        network = json.loads(file.metadata()["networks"])["controlnet"]
    controlnet = write_network(tmp_path / "controlnet", network)
    flags = ("--num_frames=2", "--steps=1", f"--control=canny:{clip}", f"--out={tmp_path / 'out'}")
    assert sample(folder, *flags, f"--controlnet={controlnet}") == 0
    with np.load(tmp_path / "out" / "samples.npz") as found:
        assert found["video"].shape == (1, 2, 16, 16, 3)
        assert float(found["fps"]) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--control=canny:CLIP",), "--control and --controlnet need each other"),
        (("--control=canny", "--controlnet=x"), "--control needs a file here"),
        (("--control=canny:CLIP", "--controlnet=x", "--motion=1,1"), "--motion: with --control"),
        (("--motion=1",), "'1' is not X,Y or none"),
        (("--motion=none", "--foreground=CLIP"), "--foreground: has no effect with --motion=none"),
        (("--mesh=data=1",), "--mesh has no meaning for --system=text2video_zero"),
        (("--motion_unit=yards",), "unit = 'yards': allowed are picture, latent"),
        (("--attention=last",), "frames = 'last': allowed are own, first"),
        (("--foreground=CLIP", "--num_frames=4"), "has 3 frames, the result 4"),
        (("--foreground=scenes",), r"clips [1, 16, 16, 3]: must be [f, 64, 64, 3]"),
        (("--source=CLIP",), "edits no video; give the folder of an InstructPix2Pix model"),
        (("--chunk=1",), "chunk = 1: must be at least 2"),
        (("--foreground=gone.mp4",), "gone.mp4: there is no such file"),
    ],
)
def test_flags_that_do_not_fit_are_refused(folder, clip, tmp_path, capsys, flags, message):
    flags = [flag.replace("CLIP", str(clip)) for flag in flags]
    assert sample(folder, *flags, f"--out={tmp_path}") != 0
    assert message in capsys.readouterr().err


def test_the_flags_need_the_system(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sample", "--prompt=a cat", "--motion=1,1"])
    assert "--motion: needs --system=text2video_zero" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sample", "--prompt=a cat", "--system=text2video_zero"])
    assert "needs --model, a latent image model" in capsys.readouterr().err
