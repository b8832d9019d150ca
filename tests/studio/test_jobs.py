"""Jobs of the page, on a tiny model: what they make, show and refuse, without a page."""

import base64
import io
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from vdm_jax.cli import sample
from vdm_jax.data import video_io
from vdm_jax.stage import sampler_program
from vdm_jax.studio import inputs, jobs, markup, models, paint, studio_page
from vdm_jax.studio.requests import RequestError


def finish(job):
    """All updates of a job."""
    updates = list(job.updates())
    assert updates[-1].state in jobs.ENDS
    return updates


def videos(job):
    with np.load(job.out / "samples.npz") as made:
        return made["video"]


@pytest.fixture(scope="module")
def made(studio, values):
    """A job of a prompt that is done, and its updates."""
    job, _ = studio.start("sample", values)
    return job, finish(job)


def canvas(alpha):
    """A painted canvas, as the page sends it."""
    pixels = np.zeros((*alpha.shape, 4), np.uint8)
    pixels[..., 3] = alpha
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def test_a_job_shows_estimates_and_ends_with_files(made):
    job, updates = made
    assert updates[-1].state == jobs.DONE and updates[-1].text.startswith("Done in")
    assert [path.suffix for path in updates[-1].files] == [".mp4"]
    assert job.out.name == "0001"
    page = markup.progress(updates[-1], 8.0, job.request.command_line(job.out))
    assert "0000_a_red_square.mp4" in page and "vdm sample" in page


def test_the_command_line_makes_the_same_video(made, tmp_path):
    job, _ = made
    program, command, *flags = shlex.split(job.request.command_line(tmp_path))
    assert (program, command) == ("vdm", "sample")
    assert sample.main(flags) == 0
    with np.load(tmp_path / "samples.npz") as alone:
        np.testing.assert_array_equal(alone["video"], videos(job))


def test_the_same_settings_are_not_compiled_again(studio, values, made, monkeypatch):
    compiled = []
    compile = sampler_program.compile_sampler
    monkeypatch.setattr(
        sampler_program, "compile_sampler", lambda *of: compiled.append(of) or compile(*of)
    )
    job, _ = studio.start("sample", {**values, "seed": 4})
    updates = finish(job)
    assert updates[-1].state == jobs.DONE and not compiled
    assert not np.array_equal(videos(job), videos(made[0]))


def test_jobs_wait_for_each_other_and_can_be_cancelled(studio, values):
    """One that runs and one that waits; the second visitor knows it, and goes away."""
    first, _ = studio.start("sample", {**values, "steps": 1000})
    second, _ = studio.start("sample", values)
    assert second.now().text == "Waiting: 1 job is before yours."
    second.cancel()
    seen = []
    for update in first.updates():
        seen.append(update)
        if update.preview is not None:
            first.cancel()
    assert seen[-1].state == jobs.CANCELLED and not first.out.exists()
    estimated = next(update for update in seen if update.preview is not None)
    assert estimated.preview.shape == (1, 4, 8, 8, 3)
    assert "estimate" in markup.progress(estimated, 8.0)
    assert any(re.match(r"Step \d+ of 1000, .* left", update.text) for update in seen)
    assert finish(second)[-1].state == jobs.CANCELLED and not second.out.exists()


def test_a_visitor_who_goes_away_ends_the_job(studio, values):
    job, _ = studio.start("sample", {**values, "steps": 1000})
    updates = job.updates()
    next(updates)
    updates.close()
    assert job.cancelled


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "a purple square"}, "does not know the word 'purple'"),
        ({"prompt": ""}, "no prompt"),
        ({"sampler": "fastest"}, "fastest"),
    ],
)
def test_what_the_command_refuses_is_said_and_the_next_job_is_made(studio, values, changes, words):
    job, _ = studio.start("sample", {**values, **changes})
    update = finish(job)[-1]
    assert update.state == jobs.FAILED and words in update.text
    assert not job.out.exists()


def test_an_unexpected_error_leaves_the_server_alive(studio, values, monkeypatch, capsys):
    def broken(arguments):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("vdm_jax.studio.requests.run", broken)
    update = finish(studio.start("sample", values)[0])[-1]
    assert update.state == jobs.FAILED and "RuntimeError: a fault of ours" in update.text
    assert "a fault of ours" in capsys.readouterr().err
    monkeypatch.undo()
    assert finish(studio.start("sample", values)[0])[-1].state == jobs.DONE


def test_what_is_painted_is_made_anew_and_the_rest_stays(studio, values, tmp_path):
    """A longer upload is cut to a clip of the model."""
    film = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)
    upload = video_io.write_mp4(tmp_path / "film.mp4", film, fps=8, min_size=64)
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, :32] = 255
    job, _ = studio.start("inpaint", {**values, "input": str(upload), "mask": canvas(alpha)})
    assert finish(job)[-1].state == jobs.DONE
    with np.load(job.out / "given.npz") as given:
        np.testing.assert_array_equal(videos(job)[:, :, :, 4:], given["video"][:, :, :, 4:])
        assert (videos(job)[:, :, :, :4] != given["video"][:, :, :, :4]).any()
        assert given["video"].shape == (1, 4, 8, 8, 3)


@pytest.mark.parametrize(
    ("job", "name", "words"),
    [
        ("animate", "notes.txt", "notes.txt"),
        ("animate", "broken.mp4", "broken.mp4"),
        ("restyle", "broken.mp4", "broken.mp4"),
        ("restyle", "short.mp4", "has 2 frames at the model's 8 fps"),
        ("inpaint", "short.mp4", "nothing is painted"),
        ("extend", "gone.mp4", "gone: upload it again"),
    ],
)
def test_uploads_that_cannot_be_used_are_refused(studio, values, tmp_path, job, name, words):
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0 ftypisom" + bytes(100))
    video_io.write_mp4(tmp_path / "short.mp4", np.zeros((2, 8, 8, 3), np.uint8), fps=8)
    with pytest.raises(RequestError, match=words) as refused:
        studio.start(job, {**values, "input": str(tmp_path / name)})
    assert str(tmp_path) not in str(refused.value)  # the server's folders are no one's business


def test_a_mask_is_what_the_page_painted(tmp_path):
    alpha = np.zeros((16, 24), np.uint8)
    alpha[3:5] = 100
    np.testing.assert_array_equal(paint.painted(canvas(alpha)), alpha > 0)
    for text in ("", "data:image/png;base64,AAAA", "https://example.com/a.png"):
        with pytest.raises(RequestError, match="paint it again"):
            paint.painted(text)
    with pytest.raises(RequestError, match="nothing is painted"):
        inputs.keep_mask(canvas(0 * alpha), tmp_path)


def test_only_the_models_of_the_list_are_there_for_others(studio, values, runner, model_file):
    with pytest.raises(RequestError, match="this server offers the models of the list only"):
        studio.start("sample", {**values, "model": "/etc"})
    anywhere = studio_page.Studio(runner, [str(model_file)], any_model=True)
    with pytest.raises(RequestError, match="no model of the package"):
        anywhere.start("sample", {**values, "model": "moving_shape"})
    copy = model_file.with_name("copy.safetensors")
    shutil.copyfile(model_file, copy)
    assert anywhere.card(str(copy)).shape == (4, 8, 8)


def test_a_command_line_is_shown_while_fields_are_filled(studio, values):
    line = studio.command_line("inpaint", {**values, "input": "/tmp/up/a b.mp4"})
    assert "'--input=a b.mp4'" in line and "--mask=MASK" in line and "/tmp" not in line.split()[3:]
    assert studio.command_line("sample", {**values, "steps": 0}) == ""


def test_models_that_ship_are_described_without_loading_them():
    card = models.read("moving_shapes_8step")
    assert (card.shape, card.steps, card.cascade) == ((8, 16, 16), 8, False)
    assert "magenta" in card.text and set(card.example.split()) <= set(card.words)
    cascade = models.read("lumiere_tiny")
    assert cascade.cascade and cascade.shape == (32, 32, 32)
    with pytest.raises(RequestError, match="refines videos of another model"):
        models.read("imagen_video_tiny/ssr_16")
    names = models.names()
    assert names[0] == "moving_shapes_8step"  # the fastest
    assert "imagen_video_tiny" in names and "imagen_video_tiny/ssr_16" not in names
