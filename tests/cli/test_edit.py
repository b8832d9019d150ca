"""vdm edit, every job on real files, and the page that shows them."""

import re
from fractions import Fraction
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from tests.data import video_files
from tests.data.video_files import Video
from vdm_jax.cli import edit, gallery
from vdm_jax.data import video_io
from vdm_jax.data.frames import upright
from vdm_jax.pipelines import model as pretrained

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
            assert len([name for name in files if name.endswith(".mp4")]) == len(made["video"])
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
    sampler = SimpleNamespace(video_shape=(4, 16, 16, 3))
    pictures = []
    monkeypatch.setattr(
        video_io, "upright", lambda *a, **kw: pictures.append(1) or upright(*a, **kw)
    )
    for name, job, count in (
        ("a.mp4", "extend", 6),
        ("a.mp4", "animate", 1),
        ("a.jpg", "animate", 1),
    ):
        options = SimpleNamespace(job=job, input=[str(tmp_path / name)], prompt=["x"], factor=None)
        pictures.clear()
        given, prompts, fps = edit._inputs(options, sampler)
        assert len(pictures) == count and prompts == ["x"] and fps == (30 if name == "a.mp4" else 8)
        assert given.shape == (1, 4 if job == "animate" else 6, 16, 16, 3)
        assert given[..., 9:, :].min() > 200 and given[..., :7, :].max() < 50


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


def test_a_page_shows_every_clip(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    section = gallery.Section(
        name="some",
        title="Some <clips>",
        text="a & b",
        command="vdm edit",
        captions=["one", "two"],
        rows=[("known", videos[:, ::3]), ("made", videos)],
    )
    page = gallery._write(tmp_path, [section], fps=8).read_text()
    shown = re.findall(r'src="([^"]+)"', page)
    assert len(shown) == 4 and "Some &lt;clips&gt;" in page and "a &amp; b" in page
    for name, frames in zip(shown, (2, 2, 4, 4), strict=True):
        video, rate = video_io.read_video(tmp_path / name)
        assert video.shape == (frames, 8, 8, 3)
        assert rate == pytest.approx(8 * frames / 4, rel=0.05)  # both last as long
