"""vdm edit, every job on real files."""

import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from tests.data import video_files
from tests.data.video_files import Video
from vdm_jax.cli import edit, edit_files, edit_inputs, outputs, sample
from vdm_jax.data import video_encoding, video_io
from vdm_jax.data.frames import upright
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler_program

ROOT = Path(__file__).parents[2]
PROMPT = "--prompt=a red square"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video file that is larger than the model's frames, and not square."""
    video = np.zeros((4, 16, 24, 3), np.uint8)
    for frame in range(4):
        video[frame, 4:10, 4 + 2 * frame : 10 + 2 * frame, 0] = 255
    return video_io.write_mp4(tmp_path_factory.mktemp("clip") / "clip.mp4", video, min_size=16)


@pytest.fixture
def run(model_file, tmp_path):
    def run(job, *flags):
        """What a job writes: (what was known, the videos, prompts)."""
        out = tmp_path / job
        flags = (f"--model={model_file}", "--device=cpu", "--steps=2", f"--out={out}", *flags)
        assert edit.main([job, *flags]) == 0
        files = {path.name for path in out.iterdir()}
        assert {"samples.gif", "contact_sheet.png", "samples.npz", "given.gif"} <= files
        with np.load(out / "samples.npz") as made, np.load(out / "given.npz") as given:
            clips = [name for name in files if name.endswith((".mp4", ".webm"))]
            assert len(clips) == len(made["video"])
            return given["video"], made["video"], list(made["prompts"])

    return run


def test_extend_goes_on_from_a_file(run, clip):
    flags = (f"--input={clip}", PROMPT, "--then=a blue square", "--frames=9", "--context=1")
    given, made, prompts = run("extend", *flags, "--method=replacement")
    assert given.shape == (1, 4, 8, 8, 3) and made.shape == (1, 9, 8, 8, 3)
    np.testing.assert_array_equal(made[:, :4], given)
    assert given[0, 0, :, :, 0].max() > 200  # the middle of the file's frames
    assert prompts == ["a red square"]


def test_without_a_file_clips_are_sampled_first(run):
    given, made, prompts = run("interpolate", PROMPT, "--prompt=a blue square")
    assert given.shape == (2, 2, 8, 8, 3) and made.shape == (2, 3, 8, 8, 3)
    np.testing.assert_array_equal(made[:, ::2], given)
    assert prompts == ["a red square", "a blue square"]


def test_an_input_is_made_upright_and_only_its_first_frame_is_read_for_a_still(
    tmp_path, monkeypatch
):
    """A film that a phone stored sideways, with wide pixels; and a photo."""
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24] = 240  # its upper half, which is right once a player has turned it clockwise
    video = Video(frames=6, width=64, height=48, sar=Fraction(3, 4))
    path = video_files.write(tmp_path / "a.mp4", video, [stored] * 6)
    video_files.set_matrix(path, (0, 1, -1, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif)
    stage = SimpleNamespace(find=lambda kind: None)
    sampler = SimpleNamespace(video_shape=(4, 16, 16, 3), stage=stage)
    pictures = []
    monkeypatch.setattr(
        video_io, "upright", lambda *a, **kw: pictures.append(1) or upright(*a, **kw)
    )
    for name, job, count in (
        ("a.mp4", "extend", 6),
        ("a.mp4", "animate", 1),
        ("a.jpg", "animate", 1),
    ):
        options = SimpleNamespace(
            job=job, input=[str(tmp_path / name)], prompt=["x"], factor=None, fps=None
        )
        pictures.clear()
        found = edit_inputs.read(options, SimpleNamespace(fps=30.0), sampler)
        given = found.videos
        assert len(pictures) == count and found.prompts == ["x"] and found.fps == 30
        assert given.shape == (1, 4 if job == "animate" else 6, 16, 16, 3)
        assert given[..., 9:, :].min() > 200 and given[..., :7, :].max() < 50


@pytest.fixture(scope="module")
def longer(clip, tmp_path_factory):
    """The clip with a tone, six frames long."""
    video = np.resize(video_io.read_video(clip)[0], (6, 16, 24, 3))
    folder = tmp_path_factory.mktemp("longer")
    tone = video_files.tone(folder / "tone.mkv", seconds=1.0)
    return video_io.write_mp4(folder / "clip.mp4", video, 8, 16, sound=tone)


def test_an_input_of_another_length_is_cut_and_keeps_its_sound(run, longer, tmp_path, capsys):
    given, made, _ = run("restyle", f"--input={longer}", PROMPT, "--format=webm")
    assert given.shape == made.shape == (1, 4, 8, 8, 3)
    printed = capsys.readouterr().out
    assert "the first 4 of 6 frames at 8 fps are taken" in printed
    assert "--input: pictures are scaled to cover 8 x 8 pixels and cut around" in printed
    (path,) = (tmp_path / "restyle").glob("*.webm")
    assert video_encoding.has_sound(path)
    with pytest.raises(ValueError, match="was made by vdm edit.*restyle"):
        sample.main([f"--like={path}"])


def test_a_shorter_input_is_extended_by_its_last_frame():
    video = np.arange(3, dtype=np.uint8)[:, None, None, None]
    ((fitted,), notes) = edit_files.one_clip([video], 5, 8.0)
    assert fitted[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 2]
    assert notes == ["--input: video 1: 3 frames at 8 fps become 5; the last is repeated"]
    assert edit_files.one_clip([video], 3, 8.0)[1] == []


def test_an_archive_of_samples_brings_its_prompts(run, tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "in.npz", video=videos, prompts=np.array(["a red square", "a blue square"]))
    flags = (f"--input={tmp_path / 'in.npz'}", "--box=1,2,3,4", "--method=projection")
    given, made, prompts = run("inpaint", *flags)
    assert prompts == ["a red square", "a blue square"]
    outside = np.ones((8, 8), bool)
    outside[1:4, 2:6] = False
    np.testing.assert_array_equal(made[:, :, outside], videos[:, :, outside])
    assert (made[:, :, ~outside] != videos[:, :, ~outside]).any()


def test_a_still_comes_alive_and_a_clip_is_restyled(run, clip):
    flags = (f"--input={clip}", PROMPT)
    given, made, _ = run("animate", *flags, "--method=replacement")
    assert made.shape == (1, 4, 8, 8, 3)
    np.testing.assert_array_equal(given, given[:, :1].repeat(4, axis=1))
    np.testing.assert_array_equal(made[:, 0], given[:, 0])
    assert (made[:, 1:] != given[:, 1:]).any()
    box = "--box=1,2,3,4"
    given, made, _ = run("cinemagraph", *flags, box, "--method=replacement")
    outside = np.ones((8, 8), bool)
    outside[1:4, 2:6] = False
    np.testing.assert_array_equal(made[:, :, outside], given[:, :, outside])
    np.testing.assert_array_equal(made[:, 0], given[:, 0])
    assert (made[:, 1:, ~outside] != given[:, 1:, ~outside]).any()
    given, made, _ = run("outpaint", *flags, box, "--method=replacement")
    np.testing.assert_array_equal(made[:, :, ~outside], given[:, :, ~outside])
    given, made, _ = run("restyle", *flags, "--then=a blue square", "--strength=0.5")
    assert made.shape == given.shape and (made != given).any()


def test_super_resolve_and_loop(run, clip):
    given, made, _ = run("super_resolve", f"--input={clip}", PROMPT, "--method=replacement")
    assert given.shape == (1, 4, 4, 4, 3) and made.shape == (1, 4, 8, 8, 3)
    given, made, _ = run("loop", f"--input={clip}", PROMPT, "--method=replacement")
    assert made.shape == (1, 6, 8, 8, 3)
    np.testing.assert_array_equal(made[:, :4], given)
    clips = [f"--input={clip}"] * 2
    given, made, _ = run("join", *clips, PROMPT, "--method=replacement")
    assert made.shape == (1, 4 + 2 + 4, 8, 8, 3) and given.shape == (2, 4, 8, 8, 3)
    np.testing.assert_array_equal(made[:, :4], given[:1])
    np.testing.assert_array_equal(made[:, -4:], given[1:])


def test_a_video_is_brought_to_the_model_s_rate(run, tmp_path, capsys):
    """The model's is 8: a video of 24 played three times too slowly after it had been extended."""
    video = np.repeat(np.arange(0, 240, 20, dtype=np.uint8), 64 * 3).reshape(12, 8, 8, 3)
    clip = video_io.write_mp4(tmp_path / "in.mp4", video, fps=24, min_size=8)
    flags = (f"--input={clip}", PROMPT, "--frames=6", "--context=1", "--method=replacement")
    given, _, _ = run("extend", *flags)
    assert np.abs(given[0, :, 0, 0, 0].astype(int) - [0, 60, 120, 180]).max() < 8
    assert "12 frames at 24 fps become 4 at the model's 8; frames are left out" in (
        capsys.readouterr().out
    )
    out = tmp_path / "extend"
    assert video_io.read_video(next(out.glob("*.mp4")))[1] == 8
    with np.load(out / "samples.npz") as samples:
        assert samples["fps"] == 8

    np.savez(tmp_path / "slow.npz", video=video[None, :2], fps=4.0)
    given, _, _ = run("extend", f"--input={tmp_path / 'slow.npz'}", *flags[1:])
    np.testing.assert_array_equal(given[0], video[[0, 0, 1]])
    assert "2 frames at 4 fps become 3 at the model's 8; frames are repeated" in (
        capsys.readouterr().out
    )
    np.savez(tmp_path / "unknown.npz", video=video[None, :3])
    run("extend", f"--input={tmp_path / 'unknown.npz'}", *flags[1:])
    assert "has no frame rate; it is taken as the model's 8 fps" in capsys.readouterr().out


def test_an_interpolated_video_lasts_as_long_as_before(run, tmp_path, capsys):
    video = np.repeat(np.uint8([[0], [90], [180]]), 64 * 3).reshape(3, 8, 8, 3)
    np.savez(tmp_path / "in.npz", video=video[None], fps=12.0)
    flags = (f"--input={tmp_path / 'in.npz'}", PROMPT, "--method=replacement")
    given, made, _ = run("interpolate", *flags)
    assert given.shape[1] == 3 and made.shape[1] == 5
    out = tmp_path / "interpolate"
    with np.load(out / "samples.npz") as samples, np.load(out / "given.npz") as known:
        assert (samples["fps"], known["fps"]) == (24, 12)
    said = capsys.readouterr().out
    assert "the model learned motion at 8 fps, which takes an input of 4" in said


def test_a_video_of_any_size_and_rate_is_refined(ssr_file, tmp_path):
    video = np.zeros((42, 20, 30, 3), np.uint8)
    video[:, :, :, 0] = np.arange(42)[:, None, None] * 5
    path = video_io.write_mp4(tmp_path / "in.mp4", video, fps=25, min_size=20)
    flags = [f"--model={ssr_file}", "--device=cpu", f"--input={path}", "--method=replacement"]
    assert edit.main(["refine", *flags, f"--out={tmp_path / 'out'}", "--context=4"]) == 0
    with np.load(tmp_path / "out" / "samples.npz") as made:
        # 42 frames of 25 a second are 10 of 6 a second: two parts of 8.
        assert made["video"].shape == (1, 10, 16, 24, 3) and list(made["prompts"]) == [""]
    with np.load(tmp_path / "out" / "given.npz") as given:
        assert given["video"].shape == (1, 10, 8, 12, 3)
        levels = given["video"][0, :, :, :, 0].mean((1, 2))
    np.testing.assert_allclose(levels, 5 * np.floor(np.arange(10) * 25 / 6), atol=6)
    (written,) = (tmp_path / "out").glob("*.mp4")
    assert video_io.read_video(written)[1] == pytest.approx(6)


def test_what_cannot_be_refined_is_refused(ssr_file, model_file, clip, tmp_path):
    flags = [f"--input={clip}", "--device=cpu", f"--out={tmp_path}"]
    with pytest.raises(ValueError, match="has 3 frames at 6 frames a second.*refines 8 at once"):
        edit.main(["refine", *flags, f"--model={ssr_file}"])
    with pytest.raises(ValueError, match="refine: this model refines no video; choose"):
        edit.main(["refine", *flags, f"--model={model_file}"])


def test_a_still_comes_alive_and_follows_a_low_resolution(run, clip, tmp_path):
    means = []
    for level in (40, 200):
        np.savez(tmp_path / "low.npz", video=np.full((1, 4, 4, 4, 3), level, np.uint8))
        flags = (f"--input={clip}", PROMPT, f"--low_res={tmp_path / 'low.npz'}")
        given, made, _ = run("animate", *flags, "--method=projection")
        np.testing.assert_array_equal(made[:, 0], given[:, 0])
        means.append(made[:, 1:].mean())
    # An untrained model's pixels are clipped, so that their means are not quite those.
    assert means[0] < 90 and means[1] > 150


KILLED = """
import os, signal, sys
from vdm_jax.cli import edit, outputs

def add(self, videos, add=outputs.Parts.add):
    add(self, videos)
    if self.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

outputs.Parts.add = add
edit.main(sys.argv[1:])
"""


@pytest.fixture
def three(tmp_path):
    """Three videos of the model's shape and rate, as an archive."""
    videos = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    prompts = ["a red square", "a blue square", "a red square"]
    np.savez(tmp_path / "in.npz", video=videos, prompts=np.array(prompts), fps=8.0)
    return tmp_path / "in.npz"


def test_a_killed_job_goes_on(three, model_file, tmp_path, monkeypatch, capsys):
    """Two rounds of batches of 2 and 1. The job is killed after the first batch, and stopped after
    the third; the result is that of a job that ran through."""
    flags = ["extend", f"--model={model_file}", "--device=cpu", "--steps=2", "--batch_size=2"]
    flags += [f"--input={three}", "--frames=10", "--context=1", "--method=replacement"]
    assert edit.main([*flags, f"--out={tmp_path / 'whole'}"]) == 0
    assert not (tmp_path / "whole" / outputs.PARTS).exists()
    out, drawn, add = tmp_path / "out", [], outputs.Parts.add

    command = [sys.executable, "-c", KILLED, *flags, f"--out={out}"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (out / outputs.PARTS).glob("*.npy")] == ["00000000.npy"]

    def counted(self, videos):
        if self.done == 5:
            raise KeyboardInterrupt
        drawn.append(len(videos))
        add(self, videos)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(outputs.Parts, "add", counted)
        edit.main([*flags, f"--out={out}"])
    assert f"2 clips are in {out / outputs.PARTS}: going on behind them" in capsys.readouterr().out
    assert drawn == [1, 2]  # the rest of the first round, and the second's first batch
    assert edit.main([*flags, f"--out={out}"]) == 0
    assert "5 clips are in" in capsys.readouterr().out
    assert not (out / outputs.PARTS).exists()
    with np.load(out / "samples.npz") as one, np.load(tmp_path / "whole/samples.npz") as other:
        assert one["video"].shape == (3, 10, 8, 8, 3)
        np.testing.assert_array_equal(one["video"], other["video"])


def test_parts_of_another_job_are_kept_and_not_used(three, model_file, tmp_path, monkeypatch):
    flags = [f"--model={model_file}", "--device=cpu", "--steps=2", f"--input={three}"]
    flags += ["--method=replacement", f"--out={tmp_path / 'out'}"]

    def black(params, frozen, key, indices, *_):
        return np.zeros((len(indices), 4, 8, 8, 3), np.uint8), np.ones(len(indices), bool)

    monkeypatch.setattr(sampler_program, "compile_sampler", lambda *_: black)
    monkeypatch.setattr(outputs, "write_samples", lambda *_: 1 / 0)  # after all is drawn

    def parts_after(*others):
        with pytest.raises(ZeroDivisionError):
            edit.main([*others, *flags])
        return len(list((tmp_path / "out").glob(f"{outputs.PARTS}*")))

    # The job, its settings, the contents of files and the seed each make another job.
    jobs = [("animate",), ("animate", "--seed=1"), ("outpaint", "--box=1,1,4,4")]
    jobs += [("outpaint", "--box=1,1,4,5")]
    assert [parts_after(*job) for job in jobs] == [1, 2, 3, 4]
    assert parts_after(*jobs[-1], "--batch_size=1") == 4  # no clip depends on that
    with np.load(three) as content:
        np.savez(three, **{**content, "video": content["video"][:, ::-1]})
    assert parts_after(*jobs[-1]) == 5


def test_stylise_writes_a_model_between_two(model_file, tmp_path):
    model = pretrained.load(model_file)
    styled = jax.tree.map(lambda leaf: leaf + 1, model.params)
    style = pretrained.save_model(tmp_path / "style.safetensors", styled, model.config)
    flags = [f"--model={model_file}", f"--style={style}", "--amount=0.25", "--device=cpu"]
    assert edit.main(["stylise", *flags, f"--out={tmp_path / 'out.safetensors'}"]) == 0
    between = pretrained.load(tmp_path / "out.safetensors").params
    chex.assert_trees_all_close(
        between, jax.tree.map(lambda leaf: leaf + 0.25, model.params), atol=1e-6
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["extend"], "neither --input nor --prompt"),
        (["refine", PROMPT], "refine needs --input"),
        (["loop", "--low_res=x", PROMPT], "--low_res has no meaning for loop"),
        (["loop", "--backwards", PROMPT], "--backwards has no meaning for loop"),
        (["extend", "--factor=2", PROMPT], "--factor has no meaning for extend"),
        (["inpaint", "--box=1,2,0,4", PROMPT], "is not TOP,LEFT,HEIGHT,WIDTH"),
        (["shrink", PROMPT], "invalid choice: 'shrink'"),
        (["extend", "--amount=0.5", PROMPT], "--amount has no meaning for extend"),
        (["stylise", "--out=z"], "stylise needs --model, a space-time U-Net, and --style"),
        (["stylise", "--style=y", "--out=z"], "--out=z: must end in .safetensors for stylise"),
        (["stylise", "--style=y", "--steps=3"], "--steps has no meaning for stylise"),
    ],
)
def test_mistakes_of_flags(model_file, flags, message, capsys):
    with pytest.raises(SystemExit):
        edit.main([*flags, f"--model={model_file}", "--device=cpu"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["extend", "--input=no.mp4", PROMPT], FileNotFoundError, "--input=no.mp4: there is no"),
        (["inpaint", "--low_res=no.npz", PROMPT], FileNotFoundError, "--low_res=no.npz: there is"),
        (["inpaint", "--box=6,0,4,4", PROMPT], ValueError, "reaches beyond 8 x 8"),
        (["super_resolve", "--factor=3", PROMPT], ValueError, "must be at least 2 and divide"),
        (["loop", PROMPT, "--then=a", "--then=red"], ValueError, "--then was given more than once"),
        (["extend", PROMPT, "--then=a purple square"], ValueError, "purple"),
        (["extend", PROMPT, "--method=magic"], ValueError, "method='magic' is unknown"),
    ],
)
def test_mistakes_of_values(model_file, flags, error, message, tmp_path):
    with pytest.raises(error, match=message):
        edit.main([*flags, f"--model={model_file}", "--device=cpu", f"--out={tmp_path}"])


def test_a_mask_is_stretched_to_the_models_frame(tmp_path):
    picture = np.zeros((40, 60), np.uint8)
    picture[:20, :15] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    chosen = edit_inputs.mask(SimpleNamespace(mask=tmp_path / "mask.png"), 8, 8)
    assert chosen[:4, :2].all() and chosen.sum() == 8


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no such file"), ("text", "is no picture"), (0, "no pixels"), (255, "all")],
)
def test_a_mask_that_chooses_nothing_is_refused(tmp_path, content, words):
    path = tmp_path / "mask.png"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        Image.new("L", (8, 8), content).save(path)
    with pytest.raises((ValueError, FileNotFoundError), match=f"--mask=.*{words}"):
        edit_inputs.mask(SimpleNamespace(mask=path), 8, 8)


def test_a_mask_in_the_place_of_a_box_is_what_is_made_anew(run, clip, tmp_path):
    picture = np.zeros((8, 8), np.uint8)
    picture[:, 5:] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    flags = (f"--input={clip}", PROMPT, f"--mask={tmp_path / 'mask.png'}", "--method=replacement")
    given, made, _ = run("inpaint", *flags)
    np.testing.assert_array_equal(made[..., :5, :], given[..., :5, :])
    assert (made[..., 5:, :] != given[..., 5:, :]).any()
    with pytest.raises(SystemExit):
        edit.main(["inpaint", f"--input={clip}", "--box=0,0,2,2", "--mask=mask.png"])
