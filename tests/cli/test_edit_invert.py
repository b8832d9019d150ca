"""vdm edit invert, on files."""

import jax
import numpy as np
import pytest

from vdm_jax.cli import edit, outputs
from vdm_jax.pipelines import inversion
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler_program


@pytest.fixture(scope="module")
def clips(model_file, tmp_path_factory):
    """Two clips that the model samples, as an archive: it makes them of some noise."""
    model = pretrained.load(model_file)
    prompts = ["a red square", "a blue square"]
    videos = model.sample(jax.random.key(1), prompts=prompts, steps=4, guidance=1.0, sampler="ddim")
    path = tmp_path_factory.mktemp("clips") / "in.npz"
    np.savez(path, video=videos, prompts=np.array(prompts), fps=8.0)
    return path


@pytest.fixture
def run(model_file, clips, tmp_path):
    def run(*flags, name="out", steps=4):
        """The exit status and the files of a job: (z.npz, samples.npz), as dictionaries."""
        out = tmp_path / name
        command = ["invert", f"--model={model_file}", "--device=cpu", f"--steps={steps}"]
        assert edit.main([*command, f"--input={clips}", f"--out={out}", *flags]) == 0
        assert not list(out.glob("*_parts"))
        found = []
        for file in ("z.npz", "samples.npz"):
            with np.load(out / file) as arrays:
                found.append(dict(arrays))
        return found

    return run


PROMPTS = ("--prompt=a red square", "--prompt=a blue square")


def test_a_clip_is_reconstructed_and_edited(run, clips, capsys):
    z, made = run(*PROMPTS, "--then=a blue square", "--guidance=3")
    with np.load(clips) as arrays:
        given = arrays["video"]
    assert z["z"].shape == given.shape and z["z"].dtype == np.float32
    assert made["video"].shape == (4, *given.shape[1:])
    assert list(made["prompts"]) == ["a red square", "a blue square"] + 2 * ["a blue square"]
    assert np.abs(made["video"][:2].astype(int) - given).max() <= 1
    assert z["psnr"].min() > 45
    assert (made["video"][2:] != given).any(axis=(1, 2, 3, 4)).all()
    assert f"PSNR {z['psnr'][0]:.2f} dB" in capsys.readouterr().out
    # Without a prompt: the null condition, whose z is another.
    null, _ = run("--inversion=first", name="null")
    assert np.abs(null["z"] - z["z"]).max() > 1e-3
    assert null["psnr"].max() < z["psnr"].min()


def test_an_interrupted_job_goes_on(run, monkeypatch, tmp_path, capsys):
    """The second run goes on within the inversion, the third within the reconstruction. z is the
    video's values plus its number, and a reconstruction is that of z."""

    def z(params, frozen, key, indices, videos, cond):
        return videos + indices[:, None, None, None, None].astype(np.float32)

    def videos(params, frozen, key, indices, cond, start, known):
        return np.minimum(start, 255).astype(np.uint8), np.ones(len(start), bool)

    monkeypatch.setattr(inversion, "_compile", lambda *_: z)
    monkeypatch.setattr(sampler_program, "compile_sampler", lambda *_: videos)
    flags = (*PROMPTS, "--batch_size=1")
    whole = run(*flags, name="whole")
    add, added = outputs.Parts.add, []
    for stop in (1, 3):

        def counted(self, part, stop=stop):
            if len(added) == stop:
                raise KeyboardInterrupt
            add(self, part)
            added.append(part.dtype)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(outputs.Parts, "add", counted)
            run(*flags)
    assert added == [np.float32, np.float32, np.uint8]
    capsys.readouterr()
    resumed = run(*flags)
    assert f"1 clips are in {tmp_path / 'out' / outputs.PARTS}" in capsys.readouterr().out
    for one, other in zip(resumed, whole, strict=True):
        for name, values in one.items():
            if name == "recipe":  # it names the folder
                continue
            np.testing.assert_array_equal(values, other[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "invert needs --input"),
        (["--input=x.mp4", "--guidance=3"], "--guidance has no meaning for invert without --then"),
        (["--input=x.mp4", "--mesh=data=2"], "--mesh has no meaning for invert"),
        (["--input=x.mp4", "--context=2"], "--context has no meaning for invert"),
    ],
)
def test_mistakes_of_flags(model_file, flags, message, capsys):
    with pytest.raises(SystemExit):
        edit.main(["invert", f"--model={model_file}", "--device=cpu", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--input=no.mp4"], FileNotFoundError, "--input=no.mp4: there is no such file"),
        (["--inversion=third"], ValueError, "inversion = 'third': allowed are first, second"),
        (["--sampler=ancestral"], ValueError, "draws noise or remembers earlier steps"),
        (["--sampler=dpmpp_2m"], ValueError, "draws noise or remembers earlier steps"),
        (["--num_frames=8"], ValueError, "the video has 4 frames at the model's frame rate, and 8"),
        (["--then=a purple square"], ValueError, "purple"),
    ],
)
@pytest.mark.filterwarnings("ignore:num_frames")
def test_mistakes_of_values(model_file, clips, flags, error, message, tmp_path):
    given = [] if any(flag.startswith("--input") for flag in flags) else [f"--input={clips}"]
    with pytest.raises(error, match=message):
        edit.main(
            ["invert", f"--model={model_file}", "--device=cpu", f"--out={tmp_path}", *given, *flags]
        )
