"""Meshes and the rules that cut parameters; and that a mesh changes no result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vdm_jax.models import layers
from vdm_jax.parallel import mesh, sharding
from vdm_jax.parallel.mesh import MeshError

MESHES = ("8x1x1x1", "1x8x1x1", "2x2x2x1", "1x2x1x4")  # data x fsdp x tensor x context
PROGRAM = Path(__file__).with_name("on_eight_devices.py")


@pytest.fixture(scope="module")
def report():
    """How eight devices differ from one, in every mesh."""
    done = subprocess.run(
        [sys.executable, PROGRAM, *MESHES],
        capture_output=True,
        text=True,
        cwd=PROGRAM.parents[2],
        env=jax_free_environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The partitioner says so where it finds no good way from one layout to the next. It may for
    # the gradient of the table of words, which is summed over the batch and cut by channels.
    lost = [line for line in done.stderr.splitlines() if "Involuntary full remat" in line]
    assert not [line for line in lost if "op_name=" in line]
    return json.loads(done.stdout.splitlines()[-1])


def jax_free_environment():
    own = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    return {k: v for k, v in os.environ.items() if k not in own} | {
        "PYTHONPATH": str(PROGRAM.parents[2])
    }


@pytest.mark.parametrize("name", MESHES)
def test_an_update_is_that_of_one_device(report, name):
    differences = report[name]
    # float32 sums in another order: some 1e-7 of the largest value of each array.
    assert differences["loss"] < 1e-6
    assert differences["gradients"] < 1e-5
    # Adam divides by the gradient's size: where that is rounding error, so is the update.
    assert differences["params"] < 1e-3 and differences["ema"] < 1e-3
    assert (differences["cut"] > 20) == (name != "8x1x1x1")


def test_microbatches_are_those_of_one_device(report):
    assert report["accumulate"] < 1e-5


def test_a_student_learns_as_on_one_device(report):
    assert report["distillation"]["loss"] < 1e-6
    assert report["distillation"]["gradients"] < 1e-5
    assert report["distillation"]["cut"] > 20  # the teacher is not whole on every device


def test_a_new_run_starts_alike_on_every_mesh(report):
    assert report["created"] == 0.0


def test_samples_are_those_of_one_device(report):
    assert report["sample_shape"][0] == 5
    assert report["sample_range"] > 50  # something was drawn
    assert max(report["samples"]) <= 1


SIZES = {"data": 2, "fsdp": 4, "tensor": 2, "context": 1}
IN, OUT, HIDDEN, HEADS = layers.IN, layers.OUT, layers.HIDDEN, layers.HEADS


@pytest.mark.parametrize(
    ("shape", "names", "spec", "note"),
    [
        ((3, 3, 8, 16), (None, None, IN, OUT), P(None, None, "fsdp", None), ""),
        ((8, 16), (IN, HIDDEN), P("fsdp", "tensor"), ""),
        ((16, 8), (HIDDEN, OUT), P("tensor", "fsdp"), ""),
        ((8, 2, 5), (IN, HEADS, layers.HEAD_DIM), P("fsdp", "tensor", None), ""),
        # What does not divide is cut elsewhere, or not at all, and that is said.
        ((3, 8), (IN, OUT), P(None, "fsdp"), "fsdp: in_channels 3 does not divide by 4, out_chann"),
        ((3, 8), (IN, HIDDEN), P(None, ("tensor", "fsdp")), "fsdp: in_channels 3 does not divide"),
        ((3, 5), (IN, OUT), P(None, None), "fsdp: in_channels 3 does not divide by 4, repeated"),
        (
            (8, 3, 4),
            (IN, HEADS, layers.HEAD_DIM),
            P("fsdp", None, None),
            "tensor: heads 3 does not",
        ),
        ((64,), (layers.CHANNELS,), P(None), ""),
    ],
)
def test_rules(shape, names, spec, note):
    plan = sharding.plan_parameter(shape, names, jnp.bfloat16, SIZES, min_fsdp_size=1)
    assert plan.spec == spec
    assert plan.note.startswith(note) and bool(plan.note) == bool(note)
    used = [axis for part in plan.gathered for axis in (part or ())]
    assert "fsdp" not in str(used) and ("tensor" in str(spec)) == ("tensor" in str(plan.gathered))


def test_small_parameters_are_repeated():
    plan = sharding.plan_parameter((8, 16), (IN, OUT), jnp.float32, SIZES, min_fsdp_size=129)
    assert plan.spec == P(None, None) and "fewer than 129 elements" in plan.note


def test_a_mesh_takes_the_rest():
    shape = mesh.mesh_shape({"fsdp": 4, "tensor": 2}, 64)
    assert shape.total == {"data": 8, "fsdp": 4, "tensor": 2, "context": 1}
    shape = mesh.mesh_shape({"data": 1, "fsdp": -1, "dcn_data": -1}, 128, num_slices=2)
    assert (shape.inner, shape.outer) == ((1, 64, 1, 1), (2, 1, 1, 1))
    assert mesh.parse_mesh("fsdp=-1, data=1") == {"data": 1, "fsdp": -1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fsdp": 3}, "mesh.fsdp = 3.* multiply to 3, which does not fit 8 devices"),
        ({"data": 2, "fsdp": 2}, "multiply to 4, which does not fit 8 devices"),
        ({"fsdp": -1}, "mesh.data and mesh.fsdp are both -1"),
        ({"tensor": 0}, "mesh.tensor = 0: must be at least 1"),
        ({"dcn_data": 2}, "which does not fit 1 slices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, message):
    with pytest.raises(MeshError, match=message):
        mesh.mesh_shape(config, 8)


def test_a_mesh_typed_wrong_is_refused():
    with pytest.raises(MeshError, match="'fdsp=2' is not AXIS=SIZE with an axis of data, fsdp"):
        mesh.parse_mesh("fdsp=2")


class Unnamed:
    """A stage of one matrix."""

    def abstract_params(self):
        matrix = jax.ShapeDtypeStruct((4, 4), jnp.float32)
        return {"w": layers.Named(value=matrix, names=(IN, OUT), dtype=jnp.float32)}


def test_a_batch_that_cannot_be_cut_is_refused():
    plan = sharding.Plan(mesh=jax.sharding.AbstractMesh((2, 4, 1, 1), mesh.AXES), parameters={})
    assert plan.batch_shards == 8
    with pytest.raises(MeshError, match=r"sample.batch_size = 12: must divide by 8.*mesh.fsdp 4"):
        plan.check_batch_size("sample.batch_size", 12)


def test_a_batch_lies_where_its_rows_are_asked_for():
    plan = sharding.make_plan(Unnamed(), {"data": 1}, jax.devices()[:1])
    rows = plan.rows(4)
    assert rows == (0, 1, 2, 3)
    batch = {"video": np.arange(8, dtype=np.uint8).reshape(4, 2)}
    placed = plan.put_batch(batch, 4)
    np.testing.assert_array_equal(placed["video"], batch["video"])
    assert placed["video"].sharding.is_equivalent_to(plan.batch, 2)


def test_stacked_blocks_are_gathered_layer_by_layer():
    """A scanned block on eight devices computes what it computes on one."""
    program = Path(__file__).with_name("transformer_on_eight_devices.py")
    done = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        cwd=program.parents[2],
        env=jax_free_environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["loss"] < 1e-6 and report["gradients"] < 1e-5
    assert report["cut"] > 20
    # Two ways of attention whose tokens are spread, with segments: outputs and gradients.
    assert report["ulysses"] < 1e-5 and report["ring"] < 1e-5
