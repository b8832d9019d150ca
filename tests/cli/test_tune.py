"""vdm tune, on files and drawn weights."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.systems.test_latent_image import write_folder
from vdm_jax import cli
from vdm_jax.cli import outputs, tune
from vdm_jax.data import video_io
from vdm_jax.pipelines import inversion, tuning
from vdm_jax.stage import sampler_program
from vdm_jax.weights import fetch

FRAMES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield write_folder(folder / "model")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video file of six frames of 64 x 64, at 8 a second."""
    video = np.zeros((6, 64, 64, 3), np.uint8)
    for frame in range(6):
        video[frame, 16:48, 4 * frame : 32 + 4 * frame] = (255, 40 * frame, 0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video_io.write_mp4(path, video, fps=8)
    return path


@pytest.fixture
def run(folder, clip, tmp_path):
    def run(*flags, out="out", model=True):
        """The exit status of the command."""
        given = [f"--model={folder}"] if model else []
        command = ["tune", *given, f"--input={clip}", f"--out={tmp_path / out}", "--device=cpu"]
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, *flags])
        return ended.value.code or 0

    return run


@pytest.fixture
def quick(monkeypatch):
    """Nothing is compiled: tuning gives parameters of one half, z is the video's values, and an
    edit adds a number of its prompt to z.

    The real ones are tested in tests/systems/test_tune_a_video.py.
    """

    def tune(self, clip, workdir, config=None):
        shapes = nn.meta.unbox(self.stage.abstract_params())
        half = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
        return self.model(half), "steps"

    def z(params, frozen, key, indices, videos, cond):
        return videos.astype(np.float32)

    def edited(params, frozen, key, indices, cond, start, known):
        number = np.abs(cond["text_embeddings"]).sum((1, 2)) * 100 % 50
        videos = np.minimum(start + number.round()[:, None, None, None, None], 255)
        return videos.astype(np.uint8), np.ones(len(start), bool)

    monkeypatch.setattr(tuning.Tuner, "tune", tune)
    monkeypatch.setattr(inversion, "_compile", lambda *_: z)
    monkeypatch.setattr(sampler_program, "compile_sampler", lambda *_: edited)


TUNING = ("--prompt=a cat", f"--num_frames={FRAMES}", "--stride=1")
SAMPLING = ("--steps=2", "--guidance=3")


def samples(folder):
    with np.load(folder / "samples.npz") as found:
        return dict(found)


def test_a_clip_is_tuned_on_and_edited_and_edited_again(quick, run, tmp_path, capsys):
    assert run(*TUNING, *SAMPLING, "--edit=a dog", "--edit=a bird") == 0
    assert "inverting the clip in 2 steps" in capsys.readouterr().out
    first, made = tmp_path / "out", samples(tmp_path / "out")
    assert made["video"].shape == (2, FRAMES, 16, 16, 3) and float(made["fps"]) == 8
    assert list(made["prompts"]) == ["a dog", "a bird"]
    assert (made["video"][0] != made["video"][1]).any()
    for name in ("tuned.safetensors", "side_by_side.gif", "side_by_side.mp4", "0001_a_bird.mp4"):
        assert (first / name).is_file(), name
    assert not list(first.glob("*_parts"))
    with np.load(first / "source.npz") as source, np.load(first / "z.npz") as found:
        clip = source["video"][0]
        np.testing.assert_array_equal(found["z"][0], clip)
    loaded = tuning.load(first / "tuned.safetensors")
    assert loaded.config.train.tuning.clip == tuning.digest(clip)
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(loaded.params))
    # The same edit from the file gives the same video.
    again = (f"--tuned={first / 'tuned.safetensors'}", "--edit=a bird")
    assert run(*again, *SAMPLING, "--format=gif,png", out="again", model=False) == 0
    assert (tmp_path / "again" / "0000_a_bird.gif").is_file()
    assert (tmp_path / "again" / "0000_a_bird_png").is_dir()
    assert not (tmp_path / "again" / "0000_a_bird.mp4").exists()
    assert "another clip" not in capsys.readouterr().err
    np.testing.assert_array_equal(samples(tmp_path / "again")["video"], made["video"][1:])
    assert run(*again, "--first=2", out="again", model=False) == 0
    assert "is another clip than" in capsys.readouterr().err
    assert run(*again, "--edit=a cat", out="again", model=False) == 1
    assert "--edit='a cat': is what the model was tuned on" in capsys.readouterr().err


def test_an_interrupted_job_goes_on_behind_the_last_edit(quick, run, monkeypatch, capsys):
    add, added = outputs.Parts.add, []

    def counted(self, part):
        if len(added) == 2:
            raise KeyboardInterrupt
        add(self, part)
        added.append(part.dtype)

    flags = (*TUNING, *SAMPLING, "--edit=a dog", "--edit=a bird")
    with monkeypatch.context() as patch:
        patch.setattr(outputs.Parts, "add", counted)
        assert run(*flags) == 130
    assert added == [np.float32, np.uint8]
    capsys.readouterr()
    assert run(*flags) == 0
    out = capsys.readouterr().out
    assert "1 edits are in" in out and "inverting" not in out


def test_ctrl_c_saves_and_stops(run, tmp_path, monkeypatch, capsys):
    def stopped(self, clip, workdir, **_):
        return None, "SIGINT"

    monkeypatch.setattr(tuning.Tuner, "of", lambda config: tuning.Tuner.__new__(tuning.Tuner))
    monkeypatch.setattr(tuning.Tuner, "tune", stopped)
    assert run(*TUNING, "--edit=a dog") == 0
    assert "the same command goes on from there" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tuned.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--edit=a dog"], "give either --prompt"),
        (["--prompt=a cat", "--tuned=x.safetensors"], "give either --prompt"),
        (["--prompt=a cat", "--edit=a cat"], "--edit='a cat': is the prompt"),
        (["--prompt=a cat", "--edit=a dog", "--edit=a dog"], "--edit='a dog': was given twice"),
        (["--prompt=a cat", "--mesh=data=2"], "--mesh has no meaning for tune"),
        (["--prompt=a cat", "--first=-1"], "--first=-1: must not be negative"),
        (["--tuned=x.safetensors", "--edit=b"], "--model has no meaning for --tuned"),
        (["--prompt=a cat", "--remat=half"], "invalid choice: 'half'"),
        (["--prompt=a cat", "--prompt=a dog"], "--prompt: was given 2 times; one video is tuned"),
    ],
)
def test_mistakes_of_flags(run, flags, message, capsys):
    assert run(*flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--num_frames=4"],
            r"has 6 frames, and 4 of every 2 from frame 0 on need 7: give --num_frames=3",
        ),
        (["--num_frames=3", "--first=5"], "need 10: give --num_frames=1"),
        (["--num_frames=3", "--edit=" + 100 * "dog "], "77"),
        (
            ["--num_frames=3", "--model=moving_shapes"],
            "'moving_shapes' is no whole latent image model",
        ),
        (["--num_frames=3", "--model=nowhere"], "'nowhere' is no directory"),
        (["--num_frames=3", "--height=18"], "18 x 16"),
        (
            ["--num_frames=3", "--config.temporal.attention=last"],
            "frames = 'last': allowed are own",
        ),
        (
            ["--num_frames=3", "--inversion=third", "--edit=a dog"],
            "inversion = 'third': allowed are",
        ),
    ],
)
def test_mistakes_of_values(run, flags, message, capsys):
    """All are found before anything is compiled."""
    assert run("--prompt=a cat", *flags) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_tuned_is_refused(run, folder, capsys):
    assert run(f"--tuned={folder}", "--edit=a dog", model=False) == 1
    assert "is no tuned model" in capsys.readouterr().err


def test_a_lack_of_memory_says_what_takes_less(run, monkeypatch, capsys):
    def full(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 20 GB.\nx")

    monkeypatch.setattr(tuning.Tuner, "of", full)
    assert run("--prompt=a cat", f"--num_frames={FRAMES}", "--config.model.dtype=float32") == 1
    error = capsys.readouterr().err
    assert "too little memory (RESOURCE_EXHAUSTED: Out of memory allocating 20 GB.)" in error
    assert "take less: --bf16, fewer --num_frames" in error and "--remat" not in error


def test_every_flag_of_tuning_is_a_field_of_the_recipes():
    from vdm_jax import config as config_lib

    for name in (tune.TINY, tune.PAPER):
        config = config_lib.load_config(name)
        for field in tune._TUNING.values():
            section, key = field.split(".")
            assert key in config[section]
