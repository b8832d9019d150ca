"""vdm gallery: its sections, pictures and page."""

import argparse
import dataclasses
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from vdm_jax import systems
from vdm_jax.cli import gallery, gallery_clips, gallery_page, gallery_sections
from vdm_jax.data import shapes, video_io
from vdm_jax.pipelines import cascade as cascade_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler_program
from vdm_jax.systems import lumiere

SECTIONS = ["text", "extension", "interpolation", "inpainting", "super_resolution", "loop"]
SECTIONS += ["distillation", "cascade", "image_to_video", "completion", "cinemagraph"]


@pytest.fixture
def not_compiled(monkeypatch):
    """Samplers of the shipped models return noise: compiling them all takes minutes."""

    def compile_nothing(self, *_):
        def compiled(params, frozen, key, indices, cond, start, known):
            rng = np.random.default_rng(indices)
            videos = rng.integers(0, 256, (len(indices), *self.video_shape), np.uint8)
            return videos, np.ones(len(indices), bool)

        return compiled

    monkeypatch.setattr(sampler_program, "compile_sampler", compile_nothing)
    monkeypatch.setattr(gallery.common, "setup", lambda device: None)


def options(**changes):
    fields = {
        "seed": 0,
        "num_samples": 2,
        "ladder": None,
        "lumiere": gallery.LUMIERE,
        "style": None,
    }
    return argparse.Namespace(**fields | changes)


def test_the_shipped_models_make_every_section(not_compiled, tmp_path, monkeypatch, capsys):
    # The first of seven stages, which take half a minute to load.
    cascade = cascade_lib.load("imagen_video_tiny")
    cascade = dataclasses.replace(cascade, steps=cascade.steps[:1])
    monkeypatch.setattr(cascade_lib, "load", lambda source: cascade)
    (tmp_path / "gallery.md").write_text("of an earlier run")
    code = gallery.main([f"--out={tmp_path}", "--num_samples=2"])
    assert code == 0, capsys.readouterr().err
    page = (tmp_path / "gallery.md").read_text()
    assert re.findall(r"\(media/gallery/(\w+)\.gif\)", page) == SECTIONS
    assert {path.stem for path in (tmp_path / "media/gallery").iterdir()} == set(SECTIONS)
    assert "of an earlier run" not in page and "<" not in page
    assert f"    vdm gallery --out={tmp_path} --num_samples=2" in page
    rows = {"text": 2, "extension": 2, "super_resolution": 5, "distillation": 6, "cinemagraph": 2}
    frames = {"text": 8, "extension": 64, "super_resolution": 8, "distillation": 8}
    for name, count in rows.items():
        video, _ = video_io.read_video(tmp_path / f"media/gallery/{name}.gif")
        assert video.shape == (frames.get(name, 32), 68 * count - 4, 2 * 68 - 4, 3), name
    video, _ = video_io.read_video(tmp_path / "media/gallery/cascade.gif")
    assert video.shape == (2, 128, 260, 3)  # every second of four frames
    assert "- Rows: given pixels, sample, truth.\n- Columns: red square left, magenta" in page
    assert "- Columns: red square left and green circle up, " in page


def test_a_style_adds_a_section(not_compiled):
    jobs = gallery._jobs(options(style=gallery.LUMIERE))
    assert list(jobs) == [*SECTIONS, "stylisation"]
    section = jobs["stylisation"]()
    assert len(section.rows) == 4 and "0%, 50%, 75% and 100%" in section.legend[0]
    np.testing.assert_array_equal(section.rows[0], section.rows[3])


def test_given_pixels_are_kept_and_the_others_sampled(tmp_path, monkeypatch):
    config = lumiere.stage_config("clip", (32, 16, 16), fps=8.0).unlock()
    config.model.update(channels=8, channel_mult=(1,), num_res_blocks=(1,), attention_levels=())
    config.model.update(head_dim=4, norm_groups=2, patch_size=4, embedding_dim=16, dtype="float32")
    config.stage.masks = ("first_frame", "inpaint")
    lumiere.inflate(config, resize=())
    words = tuple(sorted({word for text in shapes.captions("held_out") for word in text.split()}))
    config.text.update(encoder="words", max_length=5, vocabulary=words, vocabulary_size=len(words))
    config.data.config = "16x16x32"
    config.data.update(num_frames=32, image_size=16, image_width=16)
    config.sample.update(sampler="ddim", guidance=2.0, threshold="static")
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.1 * random.normal(size=leaf.shape).astype(np.float32),
        nn.meta.unbox(systems.build(config).abstract_params()),
    )
    model = pretrained.load(pretrained.save_model(tmp_path / "m.safetensors", params, config))
    monkeypatch.setattr(gallery_clips, "STEPS", 1)

    given, sample = gallery_sections.cinemagraph(model, options()).rows
    unknown = np.zeros(given.shape, bool)
    unknown[:, 1:, 4:12, 4:12] = True
    assert (given[unknown] == 96).all() and (sample[unknown] != 96).mean() > 0.5
    np.testing.assert_array_equal(sample[~unknown], given[~unknown])


@pytest.fixture
def section():
    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    return gallery_page.Section(
        title="Some clips",
        alt="two clips",
        text="word " * 40,
        legend=["Rows: small, large.", "Columns: one, two."],
        command=gallery_page.shell("vdm edit", "--flag=" + "x" * 60, "--other=" + "y" * 60),
        rows=[videos[:, :2, ::2, ::2] // 128 * 255, videos // 128 * 255],
        fps=5.0,
        side=12,
    )


def test_a_picture_is_rows_times_columns_of_clips(section, tmp_path):
    gallery_page.write_picture(tmp_path, "some", section)
    frames, rate = video_io.read_video(tmp_path / "media/gallery/some.gif")
    assert rate == pytest.approx(5.0)
    assert frames.shape == (4, 2 * 16 + 4, 2 * 16 + 4, 3)
    gap = np.broadcast_to(np.array(gallery_page._GAP_COLOR), (4, 36, 4, 3))
    assert np.abs(frames[:, :, 16:20].astype(int) - gap).max() < 8
    small, large = section.rows
    for frame in range(4):
        for column, left in enumerate((2, 22)):
            # The row of two frames holds its second frame.
            held = small[column, min(frame, 1)]
            assert np.abs(frames[frame, 2:16:4, left : left + 14 : 4].astype(int) - held).max() < 8
            sampled = frames[frame, 21::2, left - 1 : left + 15 : 2].astype(int)
            assert np.abs(sampled - large[column, frame]).max() < 8


def test_the_markdown_of_a_section(section):
    assert gallery_page.markdown("some", section) == (
        "## Some clips\n\n![two clips](media/gallery/some.gif)\n\n"
        + ("word " * 20).strip()
        + "\n"
        + ("word " * 20).strip()
        + "\n\n- Rows: small, large.\n- Columns: one, two.\n\n```sh\nvdm edit --flag="
        + "x" * 60
        + " \\\n    --other="
        + "y" * 60
        + "\n```\n"
    )


def test_a_section_that_fails_does_not_lose_the_others(section, monkeypatch, tmp_path, capsys):
    def fail():
        raise ValueError("no such luck")

    jobs = {"first": lambda: section, "second": fail, "third": lambda: section}
    monkeypatch.setattr(gallery, "_jobs", lambda options: jobs)
    monkeypatch.setattr(gallery.common, "setup", lambda device: None)
    assert gallery.main([f"--out={tmp_path}"]) == 1
    assert "section second failed and is not on the page: ValueError: no such luck" in (
        capsys.readouterr().err
    )
    page = (tmp_path / "gallery.md").read_text()
    assert "first.gif" in page and "third.gif" in page and "second" not in page


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lumiere": "lumiere_tiny"}, ValueError, "--lumiere=lumiere_tiny: is a cascade"),
        ({"style": "no_model"}, FileNotFoundError, "no_model"),
        ({"ladder": "no_folder"}, FileNotFoundError, "--ladder=no_folder: holds no progressive_N"),
    ],
)
def test_a_wrong_flag_is_reported_before_anything_is_sampled(changes, error, message):
    with pytest.raises(error, match=message):
        gallery._jobs(options(**changes))


def test_a_ladder_replaces_the_shipped_student(tmp_path):
    assert gallery._students(None) == {8: "moving_shapes_8step"}
    for steps in (8, 2):
        (tmp_path / f"progressive_{steps}.safetensors").touch()
    assert list(gallery._students(str(tmp_path))) == [8, 2]
