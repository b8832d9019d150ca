"""A cascade from video files to videos, by the commands."""

import json
import sys

import jax
import numpy as np
import pytest

import vdm_jax
from tests import cascades, drawn, tiny
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.cli import cascade as cascade_cli
from vdm_jax.cli import sample, train
from vdm_jax.pipelines import cascade as cascade_lib
from vdm_jax.pipelines import model as pretrained

STAGE = """
from vdm_jax.config import config_folder, load_recipe
from vdm_jax.systems import imagen_video

def get_config():
    tiny = config_folder() / "imagen_video" / "tiny" / "cascade.py"
    TINY = load_recipe(str(tiny), "_recipe.py").TINY
    config = imagen_video.stage_config(TINY, {name!r})
    config.device = "cpu"
    config.stage.update(shape={shape!r}, low_res={low_res!r})
    config.model.update({network!r})
    config.text.update(encoder="words", max_length=6, vocabulary_size=8)
    config.data.update(data_dir={videos!r}, num_frames=4, image_size=8, image_width=8, fps=0.0,
        workers=0)
    config.train.update(steps=1, batch_size=2, warmup_steps=1, log_every=1, sample_every=0)
    config.sample.update(steps=2, guidance=1.0, sampler="ddim", threshold="static")
    return config
"""
CASCADE = """
from ml_collections import ConfigDict

def get_config():
    fields = {"steps": None}
    return ConfigDict({"stages": ("base_8", "tsr_6fps"),
        "sample": {"base_8": dict(fields), "tsr_6fps": dict(fields)}})
"""


@pytest.fixture
def cascade(tmp_path):
    """The file of a cascade of two stages, and its data."""
    tiny.write_config(tmp_path)
    shapes = {"base_8": ((2, 8, 8), ()), "tsr_6fps": ((4, 8, 8), (2, 8, 8))}
    for name, (shape, low_res) in shapes.items():
        text = STAGE.format(
            name=name,
            shape=shape,
            low_res=low_res,
            network=cascades.LIGHT,
            videos=str(tmp_path / "videos"),
        )
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "cascade.py").write_text(CASCADE)
    return tmp_path / "cascade.py"


def test_a_cascade_is_trained_and_sampled(cascade, tmp_path, capsys):
    workdir, out = tmp_path / "runs", tmp_path / "out"
    flags = [f"--config={cascade}", f"--workdir={workdir}"]
    assert train.main([*flags, "--stages=base_8", "--config.train.seed=3"]) == 0
    saved = json.loads((workdir / "base_8" / "config.json").read_text())
    assert saved["train"]["seed"] == 3 and saved["stage"]["shape"] == [2, 8, 8]
    assert "base_8: done" in capsys.readouterr().out
    # The other stage as a file of somebody else's training.
    config = config_lib.load_config(
        cascade.with_name("tsr_6fps.py"), {"text.vocabulary": "a,red,square"}
    )
    params = drawn.params(systems.build(config))
    pretrained.save_model(workdir / "tsr_6fps.safetensors", params, config)

    flags = [f"--model={workdir}", "--prompt=a red square", "--num_samples=2", "--device=cpu"]
    assert sample.main([*flags, f"--out={out}", "--stage.tsr_6fps.steps=1"]) == 0
    with np.load(out / "samples.npz") as found:
        assert found["video"].shape == (2, 4, 8, 8, 3)
    assert np.load(out / "stages" / "00_base_8.npy").shape == (2, 2, 8, 8, 3)
    assert (out / "samples.gif").exists()
    assert "tsr_6fps: 4 x 8 x 8" in capsys.readouterr().out

    # The same cascade from Python.
    model = vdm_jax.load(workdir)
    assert model.stages == ("base_8", "tsr_6fps") and model.fps == 6.0
    changes = {"tsr_6fps": {"steps": 1}}
    key = jax.random.key(0)
    videos = model.sample(key, prompt="a red square", num_samples=2, changes=changes)
    with np.load(out / "samples.npz") as found:
        np.testing.assert_array_equal(videos, found["video"])

    with pytest.raises(ValueError, match="--steps: for a cascade, set --stage.NAME.FIELD"):
        sample.main([*flags, "--steps=2"])
    with pytest.raises(config_lib.ConfigError, match=r"nearest is --stage\.base_8\.steps"):
        sample.main([*flags, "--stage.base_8.step=2"])
    with pytest.raises(ValueError, match="is a cascade.*its stages are .*/base_8, .*/tsr_6fps"):
        pretrained.load(workdir)
    assert pretrained.load(workdir / "tsr_6fps").config.stage.name == "tsr_6fps"


DISTILL = """
from vdm_jax.systems import distillation

def get_config(stage):
    config = distillation.default_config()
    config.device = "cpu"
    config.data.workers = 0
    config.train.update(batch_size=2, warmup_steps=1, log_every=1, sample_every=0)
    config.distill.update(teacher_steps=4, end_steps=2, guidance_max=1.0, guidance_updates=0,
        guidance=1.0, updates=2, last_updates=2, samples=2)
    return config
"""


def test_a_trained_stage_is_distilled(cascade, tmp_path, capsys):
    # A stage that makes what it adds about blends, as those that ship do.
    with cascade.with_name("tsr_6fps.py").open("a") as file:
        file.write("\nof_repeats = get_config\n\ndef get_config():\n    config = of_repeats()\n")
        file.write("    config.stage.update(fill='blend', residual=0.1)\n    return config\n")
    file = tmp_path / "distill.py"
    file.write_text(DISTILL)
    workdir = tmp_path / "runs"
    flags = [f"--config={cascade}", f"--workdir={workdir}", "--stages=tsr_6fps"]
    assert train.main([*flags, f"--distill={file}"]) == 0
    told = capsys.readouterr().out
    assert told.index("training") < told.index("distilling")
    student = pretrained.load(workdir / "distilled" / "tsr_6fps.safetensors")
    assert student.config.sample.steps == 2
    assert student.stage.parametrisation.deviation == 0.1
    of_student, of_teacher = (
        dict(jax.tree_util.tree_leaves_with_path(model.params))
        for model in (student, pretrained.load(workdir / "tsr_6fps"))
    )
    # The student is told a guidance scale besides.
    assert of_teacher.keys() < of_student.keys()
    assert any((leaf != of_student[path]).any() for path, leaf in of_teacher.items())


IMAGE = """
from vdm_jax.systems import lumiere

def get_config():
    config = lumiere.stage_config({name!r}, {shape!r}, fps=8.0)
    config.device = "cpu"
    config.model.update(channels=8, channel_mult=(1, 1), num_res_blocks=(1, 1),
        attention_levels=(), head_dim=4, norm_groups=2, patch_size=2, embedding_dim=16,
        dtype="float32")
    config.text.update(encoder="words", max_length=6, vocabulary_size=8)
    config.data.update(name="video_folder", data_dir={videos!r}, num_frames=4, image_size=8,
        image_width=8, workers=0)
    config.train.update(steps=1, batch_size=2, warmup_steps=1, log_every=1, sample_every=0)
    config.sample.update(steps=2, guidance=1.0, sampler="ddim", threshold="static")
    return {inflate}(config{resize})
"""
INFLATED = """
from vdm_jax.pipelines import cascade as cascade_sampling

def get_config():
    return cascade_sampling.cascade_config(["clip"], init_from={"clip": "image"})
"""


def test_what_a_stage_starts_from_is_trained_before_it_and_kept(tmp_path, capsys):
    tiny.write_config(tmp_path)
    videos = str(tmp_path / "videos")
    for name, shape, inflate, resize in (
        ("image", (2, 8, 8), "", ""),
        ("clip", (4, 8, 8), "lumiere.inflate", ", resize=(0,)"),
    ):
        text = IMAGE.format(name=name, shape=shape, videos=videos, inflate=inflate, resize=resize)
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "cascade.py").write_text(INFLATED)
    workdir = tmp_path / "runs"
    flags = [f"--config={tmp_path / 'cascade.py'}", f"--workdir={workdir}", "--jobs=2"]
    assert train.main(flags) == 0
    told = capsys.readouterr().out
    assert told.index("image: done") < told.index("clip: training")
    image, clip = (pretrained.load(workdir / name) for name in ("image", "clip"))
    of_clip = dict(jax.tree_util.tree_leaves_with_path(clip.params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(image.params):
        np.testing.assert_array_equal(leaf, of_clip[path])


def test_a_wrong_stage_is_named_before_anything_is_trained(cascade, tmp_path):
    with cascade.with_name("tsr_6fps.py").open("a") as file:
        file.write("\nof_before = get_config\n\ndef get_config():\n    config = of_before()\n")
        file.write("    config.model.patch_size = 3\n    return config\n")
    workdir = tmp_path / "runs"
    with pytest.raises(ValueError, match="^tsr_6fps: .*patch_size"):
        train.main([f"--config={cascade}", f"--workdir={workdir}"])
    assert not any(workdir.iterdir())


def test_the_last_lines_of_a_stage_that_fails_are_shown(tmp_path, capsys):
    fails = "import sys; [print('line', n) for n in range(9)]; sys.exit('no space left')"
    commands = {"base": [sys.executable, "-c", fails]}
    assert cascade_cli._run_all("training", commands, tmp_path, 1) == 1
    shown = capsys.readouterr().out
    assert "base: ended with 1 after" in shown
    assert "no space left" in shown and "line 8" in shown and "line 3" not in shown


def test_stages_that_train_at_once_share_a_gpu_s_memory(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    tell = "import os; print(os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE'))"
    commands = {name: [sys.executable, "-c", tell] for name in ("first", "second")}
    for jobs, told in ((2, "false"), (1, "None")):
        logs = tmp_path / str(jobs)
        assert cascade_cli._run_all("asking", commands, logs, jobs) == 0
        assert {(logs / f"{name}.log").read_text() for name in commands} == {f"{told}\n"}


def test_what_is_not_there_is_told(cascade, tmp_path, capsys):
    workdir = tmp_path / "none"
    flags = [f"--config={cascade}", f"--workdir={workdir}"]
    assert train.main([*flags, "--stages="]) == 0
    with pytest.raises(FileNotFoundError, match="stage base_8: .*vdm train"):
        sample.main([f"--model={workdir}", "--prompt=a red square", "--device=cpu"])
    with pytest.raises(ValueError, match="--stages: ssr_64; there are base_8, tsr_6fps"):
        train.main([*flags, "--stages=ssr_64"])
    single = [f"--config={cascade.with_name('base_8.py')}", f"--workdir={workdir}"]
    with pytest.raises(SystemExit):
        train.main([*single, "--jobs=2"])
    assert "is no cascade" in capsys.readouterr().err


def test_shipped_cascades_are_whole_and_in_order():
    """What is checked before a sample is drawn; sampling one is the same code as above."""
    for name in pretrained.shipped_cascades():
        model = vdm_jax.load(name)
        cascade_lib._check_chain(model.steps, ["a red circle"])
        assert model.fps == 24.0
    assert {"imagen_video_tiny", "lumiere_tiny"} <= set(pretrained.shipped_cascades())
