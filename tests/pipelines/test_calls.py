"""What a call of the library refuses, before anything is compiled."""

import argparse
import inspect

import jax
import numpy as np
import pytest

import vdm_jax
from vdm_jax import systems
from vdm_jax.cli import prompts
from vdm_jax.parallel.mesh import MeshError
from vdm_jax.pipelines import model as pretrained

KEY = jax.random.key(0)
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(stage, make_config):
    params = stage.init(jax.random.key(0))
    return pretrained.Model(stage=stage, params=params, config=make_config())


@pytest.mark.parametrize(
    ("key", "prompt", "changes", "message"),
    [
        (0, PROMPT, {}, r"key = 0: must be one key of JAX"),
        (jax.random.split(KEY), PROMPT, {}, r"key = \w+: must be one key of JAX"),
        (np.zeros(2, np.uint32), PROMPT, {}, r"key = ndarray: must be one key"),
        (KEY, [PROMPT], {}, r"prompt = \['a red circle'\]: must be one text; a list of texts is"),
        (KEY, None, {"prompts": PROMPT}, r"prompts = 'a red circle': must be a list"),
        (KEY, None, {"prompts": [PROMPT, 3]}, r"prompts = .*3\]: must be a list of one text"),
        (KEY, PROMPT, {"num_samples": "2"}, r"num_samples = '2': must be an integer"),
        (KEY, PROMPT, {"guidance": "2"}, r"guidance = '2': must be a number"),
        (KEY, PROMPT, {"steps": "2"}, r"steps = '2': must be an integer"),
        (KEY, PROMPT, {"steps": 2.5}, r"steps = 2.5: must be an integer"),
        (KEY, PROMPT, {"sampler": 3}, r"sampler = 3: must be a text"),
        (KEY, PROMPT, {"eta": True}, r"eta = True: must be a number"),
        (KEY, PROMPT, {"seed": 1}, r"sampler has no field seed; allowed: .*steps"),
    ],
)
def test_what_a_call_refuses(model, key, prompt, changes, message):
    with pytest.raises(ValueError, match=message):
        # The tests' own check of annotations is not there when the library is used.
        inspect.unwrap(pretrained.Model.sample)(model, key, prompt, **changes)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"foo": 2}, r"mesh.foo = 2: the axes are data, fsdp, tensor, context"),
        ({"fsdp": "1"}, r"mesh.fsdp = '1': must be an integer"),
    ],
)
def test_what_a_mesh_refuses(mesh, message):
    with pytest.raises(MeshError, match=message):
        inspect.unwrap(pretrained.load)("moving_shapes", mesh=mesh)


def test_the_nearest_name_comes_first():
    with pytest.raises(FileNotFoundError, match=r"package; the nearest of these is moving_shapes"):
        vdm_jax.load("moving_shape")


def test_a_model_is_saved_where_it_is_loaded_from(
    monkeypatch, stage, model, tmp_path, assert_trees_equal
):
    monkeypatch.setattr(systems, "build", lambda config: stage)
    path = vdm_jax.save_model(tmp_path / "v1.5" / "mine", model.params, model.config)
    assert path == tmp_path / "v1.5" / "mine.safetensors"
    assert_trees_equal(vdm_jax.load(tmp_path / "v1.5" / "mine").params, model.params)
    assert vdm_jax.save_model(tmp_path / "v1.5", model.params, model.config).name == (
        "v1.5.safetensors"
    )


def test_the_package_lists_what_it_offers():
    assert {"load", "save_model"} <= set(dir(vdm_jax))


def test_comments_of_a_file_of_prompts_are_left_out(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# my prompts\na red circle\n\n  # off for now: a blue square\na #1 fan\n")
    lines = prompts.read_lines([], str(file), argparse.ArgumentParser())
    assert [line.prompt for line in lines] == ["a red circle", "a #1 fan"]
