"""Training a ControlNet: it starts as its base, and only it is trained."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.systems.test_latent_image import write_folder
from vdm_jax import systems
from vdm_jax.models.controlnet import copy_encoder
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial as initial_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.conditions.hint import Hint
from vdm_jax.stage.control import ControlStage
from vdm_jax.stage.low_rank import BASE
from vdm_jax.weights import controlnet, fetch


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        found = systems.read_published(write_folder(folder / "model"))
        with found.unlocked():
            found.train.control.source = "edges"
            found.train.control.hint_widths = (4, 8)
            found.train.control.base = str(folder / "model")
            found.train.cond_dropout = 0.0
        yield pretrained.with_base(found.lock())


@pytest.fixture(scope="module")
def stage(config):
    return systems.build(config)


@pytest.fixture(scope="module")
def frozen(config):
    return {name: part.params for name, part in pretrained.read_frozen(config).items()}


@pytest.fixture(scope="module")
def params(stage, config, frozen):
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    return initial_lib.adapted(stage, config, plan, frozen)


@pytest.fixture(scope="module")
def loss(stage):
    """(params, frozen, batch) -> the loss and its gradient."""

    def run(params, frozen, batch):
        return stage.loss(params, batch, jax.random.key(2), frozen)[0]

    return jax.jit(jax.value_and_grad(run))


def batch(stage, edges):
    rng = np.random.default_rng(0)
    shapes = stage.abstract_batch(2)
    drawn = {name: rng.normal(size=leaf.shape).astype(leaf.dtype) for name, leaf in shapes.items()}
    drawn["video"] = rng.integers(0, 256, shapes["video"].shape, np.uint8)
    drawn["edges"] = np.full(shapes["edges"].shape, edges, np.uint8)
    return jax.device_put(drawn)


def test_it_starts_as_its_base_and_the_hint_trains_it(config, stage, params, frozen, loss):
    base = systems.build_base(config)
    data = batch(stage, 255)
    plain = jax.jit(lambda p: base.loss(p, data, jax.random.key(2), frozen)[0])(frozen[BASE])
    value, gradient = loss(params, frozen, data)
    assert value == pytest.approx(float(plain), rel=1e-5)
    (control,) = gradient.values()
    ends = [name for name in control if name.startswith("residual_")]
    assert ends and all(np.abs(control[name]["kernel"]).max() > 0 for name in ends)
    # One step away from zero the output depends on the hint.
    moved = jax.tree.map(lambda leaf: leaf + 0.05, params)
    values = [float(loss(moved, frozen, batch(stage, edges))[0]) for edges in (0, 255)]
    assert values[0] != pytest.approx(values[1], rel=1e-4)


def test_its_way_down_is_copied_from_the_base(params, frozen):
    (control,) = params.values()
    copied = copy_encoder(control, frozen[BASE])
    same = jax.tree.map(np.array_equal, control, copied)
    assert all(jax.tree.leaves(same))
    assert set(control) & set(frozen[BASE]) >= {"input_conv", "condition"}


def test_a_missing_base_is_named(stage, params):
    with pytest.raises(ValueError, match="lacks 'base'"):
        stage.network_params(params, {})


def test_the_folder_holds_the_controlnet(stage, params, tmp_path):
    systems.write_control(tmp_path, stage, params, "float32")
    network, read = controlnet.read_folder(tmp_path)
    (control,) = stage.network.controls
    assert network.clone(time=control.network.time) == control.network
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, read, params[control.name])))
    assert safetensors.numpy.load_file(tmp_path / "diffusion_pytorch_model.safetensors")


def test_hints_are_read_of_what_the_data_has(stage):
    hint = stage.find(Hint)
    assert isinstance(stage, ControlStage) and hint.source == "edges"
    with pytest.raises(ValueError, match="images have no edges"):
        hint.batch_shapes(1, 2)


def test_an_adaptation_is_one(config):
    both = config.copy_and_resolve_references()
    with both.unlocked():
        both.train.lora.rank = 2
    with pytest.raises(ValueError, match="a run trains one of them"):
        systems.build(both)
    wide = config.copy_and_resolve_references()
    with wide.unlocked():
        wide.train.control.hint_widths = (4, 8, 8)
    with pytest.raises(ValueError, match="shrinks the hint 4 times"):
        systems.build(wide)
