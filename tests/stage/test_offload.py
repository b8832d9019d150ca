"""Frozen parameters in the host's memory: the same numbers, and less memory of the device."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny_stage
from vdm_jax import config as config_lib
from vdm_jax.parallel import host_memory, sharding
from vdm_jax.parallel.liveness import array_bytes
from vdm_jax.parallel.mesh import MeshError, mesh_shape
from vdm_jax.stage.low_rank import BASE, LowRank
from vdm_jax.stage.sampler import Sampler
from vdm_jax.systems import vdm
from vdm_jax.training import optimizer, state, step

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stage():
    return LowRank.adapt(tiny_stage.STAGE, rank=2, alpha=3.0, targets=r"Dense_[12]/")


def frozen_part(make_plan, offload):
    plan = dataclasses.replace(make_plan(tiny_stage.STAGE), offload=offload)
    base = tiny_stage.STAGE.init(jax.random.key(0))
    return {BASE: sharding.Frozen(params=jax.device_put(base, plan.params), plan=plan)}


@pytest.fixture(scope="module")
def updated(stage, make_plan, make_config, make_dataset):
    """A function from `offload` to the state after two updates, and the frozen parameters."""

    def run(offload):
        config, plan = make_config(), make_plan(stage)
        tx, frozen = optimizer.make_optimizer(config.train), frozen_part(make_plan, offload)
        update = step.make_train_step(stage, tx, config, plan, frozen)
        current = state.create_state(stage, tx, 0, plan)
        batches = iter(make_dataset())
        for _ in range(2):
            current, _ = update(current, plan.put_batch(next(batches), 4))
        return current, frozen[BASE].params

    return run


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def test_training_is_bit_equal(updated, assert_trees_equal):
    there, base = updated(True)
    assert kinds(base) == {"pinned_host"} and kinds(there) == {"device"}
    assert_trees_equal(there, updated(False)[0])


def test_samples_are_bit_equal(stage, make_plan):
    params = stage.init(jax.random.key(1))
    made = []
    for offload in (False, True):
        frozen = {name: part.params for name, part in frozen_part(make_plan, offload).items()}
        sampler = Sampler.from_config(
            stage, {"sampler": "ddim", "steps": 2}, batch_size=2, frozen=frozen
        )
        made.append(next(sampler.stream(params, jax.random.key(0), ["red left"])))
    np.testing.assert_array_equal(*made)
    with pytest.raises(FloatingPointError, match="not finite"):  # nothing is decoded then
        broken = jax.tree.map(lambda leaf: leaf + np.nan, params)
        next(sampler.stream(broken, jax.random.key(0), ["red left"]))


def test_only_what_is_stored_there_is_moved():
    here = {"a": jax.numpy.ones(2)}
    places = host_memory.places(jax.tree.map(lambda leaf: leaf.sharding, here))
    parts = {"one": jax.device_put(here, places), "other": here}
    moved = host_memory.on_device(parts, parts)
    assert kinds(parts["one"]) == {"pinned_host"} and kinds(moved) == {"device"}
    assert moved["other"] is here


def test_a_device_that_cannot_reach_it_is_named():
    memories = [types.SimpleNamespace(kind="device")]
    lone = types.SimpleNamespace(device_kind="abacus", addressable_memories=lambda: memories)
    with pytest.raises(ValueError, match="mesh.offload = True: abacus has no memory of the host"):
        host_memory.kind([lone])


def test_devices_of_other_processes_take_it_for_granted():
    elsewhere = types.SimpleNamespace(device_kind="abacus", addressable_memories=list)
    assert host_memory.kind([elsewhere]) == "pinned_host"
    memories = [types.SimpleNamespace(kind="unpinned_host")]
    here = types.SimpleNamespace(device_kind="abacus", addressable_memories=lambda: memories)
    assert host_memory.kind([elsewhere, here]) == "unpinned_host"


def test_it_is_a_field_of_the_mesh_and_no_axis():
    config = vdm.default_config()
    config_lib.override(config, "mesh.offload", "true")
    config_lib.validate(config)
    assert mesh_shape(config.mesh, 2).total["data"] == 2
    with pytest.raises(MeshError, match="mesh.offloads"):
        mesh_shape({"offloads": True}, 1)


TPU = """
import json, sys
from vdm_jax.parallel.topology import parse_topology, prepare_environment
machine = parse_topology("v5e:1x1")
prepare_environment(machine)
import dataclasses, jax
from tests import tiny_stage
from vdm_jax.parallel import sharding
from vdm_jax.stage.low_rank import BASE, LowRank
from vdm_jax.training import optimizer, state, step

stage = LowRank.adapt(tiny_stage.STAGE, rank=2, alpha=3.0, targets="Dense_[12]/")
config, found = tiny_stage._config(), {}
tx, devices = optimizer.make_optimizer(config.train), machine.devices()
plan, base = (sharding.make_plan(s, {"data": 1}, devices) for s in (stage, tiny_stage.STAGE))
shapes = jax.eval_shape(tiny_stage.STAGE.init, jax.random.key(0))
for offload in (False, True):
    place = dataclasses.replace(base, offload=offload)
    params = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes, place.params,
    )
    update = step.make_train_step(
        stage, tx, config, plan, {BASE: sharding.Frozen(params=params, plan=place)}
    )
    batch = stage.abstract_batch(4)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=plan.batch), batch
    )
    compiled = update.lower(state.abstract_state(stage, tx, plan), batch).compile()
    memory = compiled.memory_analysis()
    found[str(offload)] = [
        memory.argument_size_in_bytes, memory.host_argument_size_in_bytes,
        compiled.as_text().count("S(5)"),
    ]

import flax.linen as nn
from tests.stage.test_space import SHAPE, Blocks
from vdm_jax.diffusion import grids
from vdm_jax.diffusion.process import Process
from vdm_jax.models import layers
from vdm_jax.parallel import host_memory
from vdm_jax.stage.sampler import Sampler
from vdm_jax.stage.space import LatentSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

class Network(nn.Module):
    layout: layers.Layout = layers.ANYWHERE
    remat: str = "none"
    multiple = 1
    reach = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        zeros = layers.named(nn.initializers.zeros, None)
        return nn.Dense(12, kernel_init=tiny_stage.named(2), bias_init=zeros)(z)

space = LatentSpace(data_shape=SHAPE, autoencoder=Blocks())
stage = Stage(network=Network(), process=Process(), space=space, view=View(shape=SHAPE))
plan = sharding.make_plan(stage, {"data": 1}, devices)
shapes = jax.eval_shape(stage.init, jax.random.key(0))
params = jax.tree.map(
    lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, plan.params
)
place = host_memory.places(plan.everywhere)
frozen = {"autoencoder": {"matrix": jax.ShapeDtypeStruct((12, 12), "float32", sharding=place)}}
settings = {"grid": grids.Spaced(steps=2), "threshold": None, "batch_size": 1}
sampler = Sampler(stage=stage, frozen=frozen, plan=plan, **settings)
text = sampler.compiled.lower(params, *sampler.abstract_inputs()).compile().as_text()
inside, copies = "", []
for line in text.splitlines():
    if line.endswith("{") and not line.startswith(" "):
        inside = line.split()[0]
    elif " copy" in line and "S(5)" in line:
        copies.append(inside)
found["copies"] = copies
print(json.dumps(found))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"'
)
def test_on_a_tpu_they_are_arguments_in_the_hosts_memory():
    done = subprocess.run(
        [sys.executable, "-c", TPU],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    size = array_bytes(jax.eval_shape(tiny_stage.STAGE.init, jax.random.key(0)))
    (device, host, marks), (less, moved, places) = found["False"], found["True"]
    assert (host, marks) == (0, 0) and places > 0
    # Arrays are padded to the tiles of the device's memory.
    assert moved >= size and device - less >= size
    # Copies for decoding are made in a branch behind the last step, not where the program begins.
    assert found["copies"] and "ENTRY" not in found["copies"]
