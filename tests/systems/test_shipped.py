"""The models that ship in folders are those that their configurations describe; cascades whole."""

from pathlib import Path

import chex
import pytest

from tests.cascades import TINY
from vdm_jax import config as config_lib
from vdm_jax.pipelines import model as pretrained

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("folder", ["imagen_video/tiny", "imagen_video/film", "lumiere/tiny"])
def test_what_ships_is_what_the_configurations_describe(folder):
    configs = CONFIGS / folder
    prefix = folder.replace("/", "_") + "/"
    stages = [n.removeprefix(prefix) for n in pretrained.shipped_names() if n.startswith(prefix)]
    cascade = configs / "cascade.py"
    described = (
        config_lib.load_config(cascade).stages
        if cascade.exists()
        else [file.stem for file in configs.glob("[!_]*.py")]
    )
    assert sorted(stages) == sorted(described)
    for name in stages:
        model = pretrained.load(prefix + name)
        config = config_lib.load_config(configs / f"{name}.py")
        # But for fields that came later and are off.
        # A student has a further input, the guidance scale, and steps of its own.
        is_student = "distill" in model.config
        for section in ("stage", "process", "model", *([] if is_student else ["sample"])):
            saved, described = (c[section].to_dict() for c in (model.config, config))
            if is_student and section == "model":
                assert saved.pop("guidance_embedding") and not described.pop("guidance_embedding")
            later = {f: value for f, value in described.items() if f not in saved and not value}
            assert saved | later == described, (name, section)
        # What a run adds are the words of its data.
        assert model.config.text.encoder == config.text.encoder
        chex.assert_tree_all_finite(model.params)


def test_every_stage_of_the_tiny_imagen_video_is_a_student_of_eight_steps():
    for spec in TINY:
        student = pretrained.load(f"imagen_video_tiny/{spec.name}")
        assert student.config.sample.steps == 8
        assert student.stage.takes_guidance  # told the scale, instead of two evaluations a step
        chex.assert_tree_all_finite(student.params)
