"""Checkpoints that survive: other devices, damage, kills, full disks, several processes.

Run as a script with a name of `ROLES`, this file is the other process of some of these tests.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vdm_jax.training import (
    array_store,
    checkpoints,
    integrity,
    lock,
    shared_folder,
    step_folders,
)
from vdm_jax.training.checkpoints import CheckpointError, Checkpoints, DamagedError

ROOT = Path(__file__).parents[2]
CONFIG = ml_collections.ConfigDict(
    {"train": {"learning_rate": 0.1, "steps": 9}, "checkpoint": {"keep": 1}}
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    step: Any
    skipped: Any
    params: Any
    ema: Any
    opt_state: Any


def make_state(step, size=8, seed=0):
    """Random numbers of every kind that a state has; `size` numbers in the largest array."""
    rng = np.random.default_rng([seed, step])

    def numbers(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "block": {"kernel": numbers(8, 4), "bias": numbers(4)},
        "scale": numbers(size),
        "half": numbers(3).astype(jnp.bfloat16),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, mu_dtype=jnp.bfloat16))
    _, opt_state = tx.update(params, tx.init(params), params)
    return State(
        step=jnp.asarray(step, jnp.int32),
        skipped=jnp.asarray(3, jnp.int32),
        params=params,
        ema=jax.tree.map(lambda leaf: leaf * 2, params),
        opt_state=opt_state,
    )


def abstract(state, place=lambda leaf: None):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), state
    )


def mesh_of(*shape):
    count = int(np.prod(shape))
    return Mesh(np.array(jax.devices()[:count]).reshape(shape), ("x", "y")[: len(shape)])


def over(mesh):
    """Where a leaf is to live: its first axis cut up if that divides."""

    def place(leaf):
        cut = leaf.ndim and leaf.shape[0] % mesh.shape["x"] == 0
        return NamedSharding(mesh, PartitionSpec("x") if cut else PartitionSpec())

    return place


def equal(one, other):
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)), one, other
    )
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(same)


def entries(workdir):
    return sorted(path.name for path in (Path(workdir) / "checkpoints").iterdir())


def files_of(step):
    paths = (path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file())
    return sorted(name for name in paths if name != integrity.FILES)


@pytest.fixture
def reports():
    return []


@pytest.fixture
def opened(tmp_path, reports):
    """A function (keep, workdir) -> Checkpoints that report to `reports`, closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_(keep=1, workdir=tmp_path):
            saves = Checkpoints(workdir, keep=keep, report=reports.append)
            stack.callback(saves.close)
            return saves

        yield open_


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(workdir, state): one good checkpoint of step 4. To be copied, not changed."""
    workdir = tmp_path_factory.mktemp("saved")
    saves = Checkpoints(workdir)
    saves.save(make_state(4), {"batches": 4}, CONFIG)
    saves.close()
    return workdir, make_state(4)


# --- what is there ------------------------------------------------------------------------------


def test_a_step_holds_everything(saved, opened):
    workdir, state = saved
    restored, position = opened(workdir=workdir).restore(abstract(state), CONFIG)
    assert equal(restored, state) and position == {"batches": 4}
    assert entries(workdir) == ["4"]
    step = workdir / "checkpoints" / "4"
    assert {path.name for path in step.iterdir()} == {
        "state", "data", "config", "meta", "fingerprint", "files.json"
    }  # fmt: skip
    meta = json.loads((step / "meta" / "metadata").read_text())
    assert meta["format"] == 1 and meta["processes"] == 1 and meta["jax"] == jax.__version__
    assert meta["time"].endswith("+00:00") and meta["vdm_jax"] and meta["optax"] and meta["orbax"]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    assert meta["commit"] == head
    listed = json.loads((step / "files.json").read_text())["files"]
    assert sorted(listed) == files_of(step)
    assert all((step / name).stat().st_size == entry["size"] for name, entry in listed.items())


def test_a_state_is_saved_as_it_was_when_the_next_update_overwrites_it(opened):
    """Files are written while training goes on in the same, donated memory."""
    overwrite = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0 - 1, s), donate_argnums=0)
    expected = make_state(1, size=4_000_000)
    current = make_state(1, size=4_000_000)
    saves = opened()
    saves.save(current, {}, CONFIG)
    for _ in range(20):
        current = overwrite(current)
    saves.wait()
    restored, _ = saves.restore(abstract(expected), CONFIG)
    assert equal(restored, expected)


def test_orbax_reads_it_too(saved):
    """The extra file disturbs no reader, and nothing of the layout is private."""
    workdir, state = saved
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    with ocp.CheckpointManager(workdir / "checkpoints", options=options) as manager:
        assert manager.latest_step() == 4
        read = manager.restore(
            4,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(), data=ocp.args.JsonRestore()),
        )
    assert read.data == {"batches": 4}
    np.testing.assert_array_equal(read.state["ema"]["scale"], state.ema["scale"])


def test_parameters_are_read_alone_and_must_be_those_of_the_network(saved):
    workdir, state = saved
    wanted = abstract(state.params)
    assert equal(checkpoints.read_ema(workdir, wanted), state.ema)
    assert equal(checkpoints.read_params(workdir, wanted), state.ema)
    assert equal(checkpoints.read_params(workdir, wanted, "params"), state.params)
    placed = abstract(state.params, over(mesh_of(1)))
    read = checkpoints.read_params(workdir, placed)
    assert read["block"]["kernel"].sharding == placed["block"]["kernel"].sharding

    wanted["block"] = {"kernel": jax.ShapeDtypeStruct((8, 5), jnp.float32)}
    wanted["head"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(CheckpointError) as error:
        checkpoints.read_ema(workdir, wanted)
    assert str(error.value).splitlines()[1:] == [
        "  block/bias is float32[4], the network has no such array",
        "  block/kernel is float32[8,4], the network wants float32[8,5]",
        "  head is missing, the network wants float32[2]",
    ]
    assert not isinstance(error.value, DamagedError)


def test_what_is_not_there_is_told(tmp_path, opened):
    with pytest.raises(CheckpointError, match="nothing has been trained there"):
        checkpoints.read_config(tmp_path)
    assert not checkpoints.has_checkpoint(tmp_path)
    saves = opened()
    assert saves.latest() is None and saves.failed_step is None
    for name in ("damaged_3", "4", "5"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "5" / "UNFINISHED").touch()
    assert not checkpoints.has_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        saves.restore(abstract(make_state(1)), CONFIG)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        checkpoints.read_ema(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/checkpoints cannot be made: Not a directory"):
        Checkpoints(tmp_path / "file")


# --- other devices, other types, other states ---------------------------------------------------


def test_restoring_onto_other_devices(saved, tmp_path, opened):
    """One device to 8, 2 x 4 and 4; then what 2 x 4 saved, to one."""
    workdir, state = saved
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    output = finish(start("reshard", tmp_path, devices=8))
    assert output.splitlines()[-1] == "resharded"
    restored, position = opened().restore(abstract(state), CONFIG)
    assert int(restored.step) == 5 and position == {"batches": 5}
    assert equal(dataclasses.replace(restored, step=state.step), state)
    assert len(restored.params["scale"].devices()) == 1


def reshard(workdir):
    state = make_state(4)
    saves = Checkpoints(workdir)
    for mesh in (mesh_of(8), mesh_of(2, 4), mesh_of(4)):
        place = over(mesh)
        restored, _ = saves.restore(abstract(state, place), CONFIG)
        assert equal(restored, state)
        kernel = restored.params["block"]["kernel"]
        assert kernel.sharding == place(kernel) and len(kernel.devices()) == mesh.size
        assert kernel.addressable_shards[0].data.shape == (8 // mesh.shape["x"], 4)
        # A checksum does not depend on where the array is.
        assert integrity.fingerprint(restored) == integrity.fingerprint(state)
    state = dataclasses.replace(state, step=jnp.asarray(5, jnp.int32))
    sharded = jax.tree.map(lambda leaf: jax.device_put(leaf, over(mesh_of(2, 4))(leaf)), state)
    saves.save(sharded, {"batches": 5}, CONFIG)
    saves.wait()
    # In other types, onto devices: converted where it is.
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            jnp.float32 if leaf.dtype == jnp.bfloat16 else leaf.dtype,
            sharding=over(mesh_of(8))(leaf),
        ),
        state,
    )
    restored, _ = saves.restore(wanted, CONFIG)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, wanted))
    saves.close()
    print("resharded")


def test_other_floating_point_types_are_converted_and_reported(saved, opened, reports):
    workdir, state = saved

    def swap(leaf):
        other = {jnp.dtype("bfloat16"): jnp.float32, jnp.dtype("float32"): jnp.bfloat16}
        return jax.ShapeDtypeStruct(leaf.shape, other.get(leaf.dtype, leaf.dtype))

    wanted = dataclasses.replace(abstract(state), opt_state=jax.tree.map(swap, state.opt_state))
    restored, _ = opened(workdir=workdir).restore(wanted, CONFIG)
    expected = jax.tree.map(
        lambda leaf, want: leaf.astype(want.dtype), state.opt_state, wanted.opt_state
    )
    assert equal(restored.opt_state, expected) and equal(restored.params, state.params)
    (line,) = reports
    assert "saved as bfloat16 and converted to float32: opt_state/1/0/mu/block/bias, " in line
    assert "saved as float32 and converted to bfloat16: opt_state/1/0/nu/" in line
    assert "\n" not in line


def test_another_state_is_refused_naming_the_arrays(saved, opened):
    workdir, state = saved
    wanted = dataclasses.replace(
        abstract(state),
        step=jax.ShapeDtypeStruct((), jnp.float32),
        params={**abstract(state.params), "scale": jax.ShapeDtypeStruct((9,), jnp.float32)},
        ema={**abstract(state.ema), "more": jax.ShapeDtypeStruct((), jnp.bool_)},
        opt_state=abstract(optax.sgd(1e-3).init(state.params)),
    )
    saves = opened(workdir=workdir)
    with pytest.raises(CheckpointError) as error:
        saves.restore(wanted, CONFIG, fallback=True)
    message = str(error.value)
    assert f"the arrays of {workdir}/checkpoints/4 are not those of this run" in message
    assert "ema/more is missing, this run wants bool[]" in message
    assert "opt_state/1/0/count is int32[], this run has no such array" in message
    assert "and 2 more" in message
    assert entries(workdir) == ["4"]  # it is not damaged, and stays


def test_another_configuration_is_refused_first(saved, tmp_path, opened):
    workdir, state = saved
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "state")
    other = ml_collections.ConfigDict(CONFIG.to_dict())
    other.train.learning_rate = 0.5
    other.train.steps = 100
    with pytest.raises(CheckpointError) as error:
        opened().restore(abstract(state), other, fallback=True)
    assert "train.learning_rate: 0.1 -> 0.5" in str(error.value)
    assert "train.steps" not in str(error.value)
    assert entries(tmp_path) == ["4"]


def test_the_writer_is_told_if_it_was_another(saved, tmp_path, opened, reports):
    workdir, state = saved
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    step = tmp_path / "checkpoints" / "4"
    (step / "files.json").unlink()
    meta = json.loads((step / "meta" / "metadata").read_text())

    def rewrite(**changes):
        (step / "meta" / "metadata").write_text(json.dumps({**meta, **changes}))

    rewrite(commit="0123456789abcdef", vdm_jax="0.0.9")
    opened().restore(abstract(state), CONFIG)
    (line,) = reports
    assert "4 was written by vdm_jax 0.0.9 (commit 0123456789), this is vdm_jax " in line
    rewrite(commit="")  # not known: nothing to say
    opened().restore(abstract(state), CONFIG)
    assert len(reports) == 1
    rewrite(format=2, vdm_jax="9.0")
    with pytest.raises(CheckpointError, match="is of format 2, this code reads 1: .*vdm_jax 9.0"):
        opened().restore(abstract(state), CONFIG, fallback=True)
    shutil.rmtree(step / "meta")
    shutil.rmtree(step / "data")
    with pytest.raises(CheckpointError, match="earlier format"):
        opened().restore(abstract(state), CONFIG, fallback=True)
    assert entries(tmp_path) == ["4"]
    assert equal(checkpoints.read_ema(tmp_path, abstract(state.params)), state.ema)


# --- damage -------------------------------------------------------------------------------------


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("small", [2**20, -1], ids=["small", "large"])
def test_damage_to_any_file_is_seen_and_named(damage, small, saved, tmp_path, opened, monkeypatch):
    """Large files are read only when something is wrong, small ones before anything is restored."""
    monkeypatch.setattr(integrity, "SMALL", small)
    workdir, state = saved
    original = workdir / "checkpoints" / "4"
    step = tmp_path / "checkpoints" / "4"
    unnoticed = []
    for name in files_of(original):
        shutil.rmtree(step, ignore_errors=True)
        shutil.copytree(original, step)
        damage(step / name)
        try:
            restored, _ = opened().restore(abstract(state), CONFIG)
        except DamagedError as error:
            first, second = str(error).splitlines()
            assert first.startswith(f"{step} is damaged: {name} "), first
            assert "no older one" in second
        else:
            assert equal(restored, state), name
            unnoticed.append(name)
    # A flipped bit that nothing reads hurts nobody.
    assert not unnoticed or (damage is flip and small == -1)
    assert not {"config/metadata", "data/metadata", "state/manifest.ocdbt"} & set(unnoticed)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_without_a_list_of_files_the_arrays_are_named(damage, tmp_path, opened):
    state = make_state(1, size=50_000)
    saves = opened()
    saves.save(state, {}, CONFIG)
    saves.wait()
    step = tmp_path / "checkpoints" / "1"
    (step / "files.json").unlink()
    # The one file that holds numbers rather than what Orbax knows of them.
    flat = max((step / name for name in files_of(step)), key=lambda path: path.stat().st_size)
    damage(flat)
    with pytest.raises(DamagedError) as error:
        saves.restore(abstract(state), CONFIG)
    assert f"{step} is damaged: " in str(error.value) and "/scale" in str(error.value)
    (step / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"arrays cannot be read \(state/manifest.ocdbt: "):
        saves.restore(abstract(state), CONFIG)
    (step / "data" / "metadata").write_text('{"batches": ')
    with pytest.raises(DamagedError, match="data/metadata cannot be read"):
        saves.restore(abstract(state), CONFIG)


def test_damage_is_told_in_a_line_and_not_in_tracebacks(saved, tmp_path):
    """Orbax leaves the failures of all arrays but the first to whoever prints them."""
    workdir, _ = saved
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    step = tmp_path / "checkpoints" / "4"
    (step / "files.json").unlink()
    (index,) = step.glob("state/d/*")
    index.write_bytes(b"")
    output, errors = finish(start("read_damaged", tmp_path), with_errors=True)
    assert output.startswith(
        f"{step} is damaged: its arrays cannot be read (state/d/{index.name}: "
    )
    assert "Traceback" not in errors and "Task exception" not in errors, errors


def read_damaged(workdir):
    saves = Checkpoints(workdir)
    try:
        saves.restore(abstract(make_state(4)), CONFIG)
    except DamagedError as error:
        print(error)
    time.sleep(0.5)  # for what comes late


def test_a_damaged_list_of_files_blames_none(saved, tmp_path, opened):
    workdir, state = saved
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    listing = tmp_path / "checkpoints" / "4" / "files.json"
    listing.write_text(listing.read_text().replace('"size": ', '"size": 1', 1))
    assert equal(opened().restore(abstract(state), CONFIG)[0], state)
    truncate(listing)
    assert equal(opened().restore(abstract(state), CONFIG)[0], state)


def test_what_cannot_be_read_though_the_files_are_good_is_not_called_damaged(
    saved, opened, monkeypatch
):
    workdir, state = saved

    def fail(*_, **__):
        raise ValueError("NOT_FOUND: Error opening: the driver is not there [spec='{}']")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    with pytest.raises(CheckpointError) as error:
        opened(workdir=workdir).restore(abstract(state), CONFIG, fallback=True)
    assert not isinstance(error.value, DamagedError)
    assert str(error.value).endswith("every file is as it was written: the driver is not there")
    assert entries(workdir) == ["4"]


def test_fallback_goes_back_to_the_last_good_one_and_deletes_nothing(tmp_path, opened, reports):
    saves = opened(keep=3)
    for step in (1, 2, 3):
        saves.save(make_state(step), {"batches": step}, CONFIG)
    saves.close()
    for name in ("2", "3"):
        step = tmp_path / "checkpoints" / name
        flip(max((step / file for file in files_of(step)), key=lambda path: path.stat().st_size))
    flip(tmp_path / "checkpoints" / "3" / "config" / "metadata")

    saves = opened(keep=3)
    with pytest.raises(DamagedError, match="3 is damaged: config/metadata .*") as error:
        saves.restore(abstract(make_state(1)), CONFIG)
    assert "--config.checkpoint.fallback=true goes back to the last good one" in str(error.value)
    assert "there are 2, 1." in str(error.value)
    assert entries(tmp_path) == ["1", "2", "3"]  # asked first
    with pytest.raises(DamagedError, match="Move that directory elsewhere"):
        checkpoints.read_config(tmp_path)
    assert checkpoints.read_config(tmp_path, fallback=True)[0] == 2

    restored, position = saves.restore(abstract(make_state(1)), CONFIG, fallback=True)
    assert equal(restored, make_state(1)) and position == {"batches": 1}
    assert entries(tmp_path) == ["1", "damaged_2", "damaged_3"]
    assert [line.split(" is damaged: ")[0][-1] for line in reports] == ["3", "2"]
    assert reports[0].endswith("; it is kept as damaged_3") and "\n" not in "".join(reports)
    assert checkpoints.read_config(tmp_path)[0] == saves.latest() == 1

    # The run goes on, and may come to damage at the same step again.
    saves.save(make_state(2), {"batches": 2}, CONFIG)
    saves.wait()
    (tmp_path / "checkpoints" / "2" / "data" / "metadata").unlink()
    (tmp_path / "checkpoints" / "1" / "data" / "metadata").unlink()
    with pytest.raises(CheckpointError) as error:
        saves.restore(abstract(make_state(1)), CONFIG, fallback=True)
    assert "holds no good checkpoint, only damaged_2_2, damaged_1" in str(error.value)
    assert entries(tmp_path) == ["damaged_1", "damaged_2", "damaged_2_2", "damaged_3"]
    assert not checkpoints.has_checkpoint(tmp_path) and saves.latest() is None
    assert opened().latest() is None


# --- failed saves -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_training_survives_a_full_disk(small_disk, opened, reports):
    def free():
        return shutil.disk_usage(small_disk).free

    saves = opened(workdir=small_disk)
    saves.save(make_state(1, size=100_000), {}, CONFIG)
    saves.wait()
    filler = small_disk / "filler"
    filler.write_bytes(b"-" * (free() - 400_000))
    before = free()
    for step in (2, 3):  # training goes on
        saves.save(make_state(step, size=100_000), {}, CONFIG)
    deadline = time.monotonic() + 30
    while saves.failed_step != 3 and time.monotonic() < deadline:
        saves.poll()
        time.sleep(0.01)
    assert reports == [
        f"checkpoint of step {step} could not be written: No space left on device; training goes "
        "on, the last good checkpoint is step 1"
        for step in (2, 3)
    ]
    assert entries(small_disk) == ["1"] and free() == before  # nothing is left behind
    with pytest.raises(CheckpointError, match="step 3 could not be written: No space left on dev"):
        saves.wait()

    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:  # not even a directory can be made, or next to nothing
            file.write(b"-" * 4096)
    saves.save(make_state(4, size=100_000), {}, CONFIG)
    with pytest.raises(CheckpointError, match="step 4 could not be written: No space left on dev"):
        saves.wait()
    assert entries(small_disk) == ["1"] and len(reports) == 2

    filler.unlink()
    saves.save(make_state(5, size=100_000), {"batches": 5}, CONFIG)
    saves.wait()
    assert saves.failed_step is None and entries(small_disk) == ["5"]
    restored, _ = saves.restore(abstract(make_state(5, size=100_000)), CONFIG)
    assert equal(restored, make_state(5, size=100_000))


@pytest.mark.parametrize(
    "where",
    [
        (array_store, "make"),  # while training waits
        (array_store.ArrayStore, "start_writing"),
        (array_store.ArrayStore, "complete"),  # in the background
        (step_folders, "complete"),
    ],
    ids=lambda where: where[1],
)
def test_a_save_that_fails_is_told_and_tried_again(where, opened, reports, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "some/path")

    saves = opened()
    with monkeypatch.context() as patch:
        patch.setattr(*where, refuse)
        saves.save(make_state(1), {}, CONFIG)
        saves.close()
    assert reports == [
        "checkpoint of step 1 could not be written: Permission denied; training goes on, "
        "there is no good checkpoint yet"
    ]
    assert saves.failed_step == 1 and saves.latest() is None and entries(tmp_path) == []
    with pytest.raises(CheckpointError, match="step 1 could not be written: Permission denied"):
        saves.wait()
    saves.save(make_state(1), {}, CONFIG)  # the same step
    saves.wait()
    assert saves.failed_step is None and saves.latest() == 1


def test_a_position_that_is_no_json_is_a_mistake_of_the_caller(opened, tmp_path):
    saves = opened()
    with pytest.raises(TypeError):
        saves.save(make_state(1), {"iterator": object()}, CONFIG)
    assert entries(tmp_path) == []


def test_old_steps_are_deleted_whole(tmp_path, opened, reports):
    saves = opened(keep=2)
    for step in (1, 2, 3, 4):
        saves.save(make_state(step), {"batches": step}, CONFIG)
        saves.save(make_state(step), {"batches": -1}, CONFIG)  # there already: nothing to do
    saves.wait()
    assert entries(tmp_path) == ["3", "4"]
    assert all((tmp_path / "checkpoints" / step / "files.json").exists() for step in "34")
    assert saves.restore(abstract(make_state(4)), CONFIG)[1] == {"batches": 4}
    # One killed while deleting leaves something that is no checkpoint, and is no news.
    shutil.copytree(tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / "9")
    (tmp_path / "checkpoints" / "9" / "DELETED").touch()
    assert checkpoints.read_config(tmp_path)[0] == 4
    opened(keep=1)
    assert entries(tmp_path) == ["3", "4"] and reports == []


def test_a_list_of_files_that_cannot_be_written_is_no_failure(tmp_path, opened, reports):
    def refuse(step):
        raise OSError(errno.ENOSPC, "No space left on device")

    saves = opened()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrity, "write_files", refuse)
        saves.save(make_state(1), {}, CONFIG)
        saves.wait()
    assert saves.latest() == 1 and "files.json could not be written: No space" in reports[0]
    assert equal(saves.restore(abstract(make_state(1)), CONFIG)[0], make_state(1))


# --- a mounted bucket ---------------------------------------------------------------------------

# gcsfuse with rename-dir-limit=0, in front of every program that the C library serves: a directory
# that holds something cannot be renamed, and a file has one name.
BUCKET = """
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int refused(int at, const char *path) {
  int count = 0, fd = openat(at, path, O_RDONLY | O_DIRECTORY);
  DIR *directory = fd < 0 ? NULL : fdopendir(fd);
  if (!directory) return 0;
  while (readdir(directory)) count++;
  closedir(directory);
  if (count > 2) errno = EMFILE; /* . and .. */
  return count > 2;
}
int renameat(int from_at, const char *from, int to_at, const char *to) {
  if (refused(from_at, from)) return -1;
  int (*real)(int, const char *, int, const char *) = dlsym(RTLD_NEXT, "renameat");
  return real(from_at, from, to_at, to);
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int link(const char *from, const char *to) { errno = ENOSYS; return -1; }
int linkat(int a, const char *from, int b, const char *to, int f) { errno = ENOSYS; return -1; }
"""


def test_checkpoints_on_a_bucket_that_renames_no_directories(tmp_path, opened):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler here")
    (tmp_path / "bucket.c").write_text(BUCKET)
    library = tmp_path / "bucket.so"
    command = [compiler, "-shared", "-fPIC", "-o", library, tmp_path / "bucket.c", "-ldl"]
    subprocess.run(command, check=True)
    output = finish(start("on_a_bucket", tmp_path, LD_PRELOAD=str(library)))
    assert output.splitlines()[-1] == "saved, deleted, put aside and resumed"
    # What was written there is read here, where renaming works.
    assert entries(tmp_path) == ["6", "damaged_4"]
    assert equal(opened().restore(abstract(make_state(6)), CONFIG)[0], make_state(6))


def on_a_bucket(workdir):
    workdir = Path(workdir)
    (workdir / "some" / "folder").mkdir(parents=True)
    for refused in (os.rename, os.replace):
        with pytest.raises(OSError, match="Too many open files"):
            refused(workdir / "some", workdir / "other")
    with lock.held(workdir):
        saves = Checkpoints(workdir, keep=2)
        for step in (2, 3, 4):
            saves.save(make_state(step), {"batches": step}, CONFIG)
        saves.close()
        assert entries(workdir) == ["3", "4"]
        (workdir / "checkpoints" / "4" / "data" / "metadata").unlink()
        saves = Checkpoints(workdir, keep=1)
        restored, position = saves.restore(abstract(make_state(1)), CONFIG, fallback=True)
        assert equal(restored, make_state(3)) and position == {"batches": 3}
        assert entries(workdir) == ["3", "damaged_4"]
        saves.save(make_state(6), {"batches": 6}, CONFIG)
        saves.close()
    assert not (workdir / "run.lock").exists()
    print("saved, deleted, put aside and resumed")


# --- killed processes ---------------------------------------------------------------------------

BIG = 20_000_000  # 80 MB thrice, which takes a while to write


@pytest.mark.parametrize("earlier", [True, False], ids=["a later save", "the first save"])
def test_a_process_killed_while_saving(earlier, tmp_path, opened, reports):
    process = start("save_and_die", tmp_path, str(int(earlier)))
    half_written = tmp_path / "checkpoints" / "2"
    deadline = time.monotonic() + 60
    while not any(half_written.glob("state/ocdbt*/d/*")) and time.monotonic() < deadline:
        time.sleep(0.001)  # until the first numbers are on their way to the disk
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert entries(tmp_path) == ["1"] * earlier + ["2"]
    assert checkpoints.has_checkpoint(tmp_path) == earlier  # also while it lies there

    saves = opened()
    assert reports == [f"ignored: {half_written}, a save of step 2 that did not finish"]
    assert entries(tmp_path) == ["1"] * earlier
    if earlier:
        restored, position = saves.restore(abstract(make_state(1)), CONFIG)
        assert equal(restored, make_state(1)) and position == {"batches": 1}
    else:
        assert saves.latest() is None
    saves.save(make_state(2), {}, CONFIG)
    saves.wait()
    assert saves.latest() == 2 and entries(tmp_path) == ["2"]


def save_and_die(workdir, earlier):
    saves = Checkpoints(workdir)
    if int(earlier):
        saves.save(make_state(1), {"batches": 1}, CONFIG)
        saves.wait()
    big = dataclasses.replace(make_state(2), ema={}, opt_state=(), params=make_big())
    saves.save(big, {"batches": 2}, CONFIG)
    saves.wait()
    raise AssertionError("this process should have been killed")


def make_big():
    numbers = np.random.default_rng(0).integers(0, 2**32, BIG, np.uint32)
    return {name: jnp.asarray(numbers).view(jnp.float32) for name in "abc"}


# --- several processes --------------------------------------------------------------------------


def test_two_processes_save_together_and_one_restores(tmp_path, opened):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    pair = [start("together", tmp_path, port, str(index), devices=2) for index in (0, 1)]
    outputs = [finish(process) for process in pair]
    told = [json.loads(output.splitlines()[-1]) for output in outputs]
    # What one of them cannot write has failed for both, for the same reason, and at once.
    assert told[0].pop("reports") == [
        "checkpoint of step 2 could not be written: No space left on device (process 1); training "
        "goes on, the last good checkpoint is step 1",
        "checkpoint of step 3 could not be written: Read-only file system; training goes on, the "
        "last good checkpoint is step 1",
        f"{tmp_path}/checkpoints/4 is damaged: data/metadata is missing; it is kept as damaged_4",
    ]
    assert told[1].pop("reports") == []
    assert max(each.pop("seconds") for each in told) < 20
    assert told[0] == told[1]
    assert told[0]["failed"] == [2, 3, None] and told[0]["restored"] == 1
    assert told[0]["error"].endswith(
        "could not be written: Read-only file system; the last good checkpoint is step 1"
    )

    assert entries(tmp_path) == ["5", "damaged_4"]
    meta = json.loads((tmp_path / "checkpoints" / "5" / "meta" / "metadata").read_text())
    assert (meta["processes"], meta["devices"]) == (2, 4)
    restored, position = opened().restore(abstract(make_state(5)), CONFIG)
    assert equal(restored, make_state(5)) and position == {"batches": 5}
    assert equal(checkpoints.read_ema(tmp_path, abstract(restored.params)), restored.ema)


def together(workdir, port, index):
    index, reports = int(index), []
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    place = over(mesh_of(4))

    def share(state):
        return jax.tree.map(
            lambda leaf: jax.make_array_from_callback(
                leaf.shape, place(leaf), lambda part: np.asarray(leaf)[part]
            ),
            state,
        )

    def refuse(code):
        def fail(*_):
            raise OSError(code, os.strerror(code))

        return fail

    saves = Checkpoints(workdir, keep=2, report=reports.append)
    saves.save(share(make_state(1)), {"batches": 1}, CONFIG)
    saves.wait()
    started, failed = time.monotonic(), []
    for step, broken in ((2, 1), (3, 0), (4, None)):
        with pytest.MonkeyPatch.context() as patch:
            if index == broken == 1:
                patch.setattr(saves._store, "start_writing", refuse(errno.ENOSPC))
            if index == broken == 0:
                patch.setattr(array_store, "make", refuse(errno.EROFS))
            saves.save(share(make_state(step)), {"batches": step}, CONFIG)
            while step not in (saves.failed_step, saves.latest()):
                saves.poll()
                time.sleep(0.01)
            try:
                saves.wait()
            except CheckpointError as caught:
                error = str(caught)
        failed.append(saves.failed_step)
    seconds = time.monotonic() - started
    if index == 0:
        (Path(workdir) / "checkpoints" / "4" / "data" / "metadata").unlink()
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    state, position = saves.restore(abstract(make_state(1), place), CONFIG, fallback=True)
    expected = share(make_state(1))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert a.sharding == b.sharding and a.dtype == b.dtype
        for one, other in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert np.array_equal(np.asarray(one.data), np.asarray(other.data))
    assert position == {"batches": 1}
    restored = int(state.step)
    Checkpoints(workdir, keep=1).close()
    saves = Checkpoints(workdir, keep=1, report=reports.append)
    saves.save(share(make_state(5)), {"batches": 5}, CONFIG)
    saves.close()
    assert saves.latest() == 5
    shared_folder.LAG = shared_folder.LAG_OF_CHANGES = 0.3
    with pytest.raises(CheckpointError, match="process 1 does not see what process 0 writes in"):
        Checkpoints(Path(workdir) / f"disk_of_process_{index}")
    if index == 1:  # its mount keeps what it has read
        Path.read_text = functools.cache(Path.read_text)
    with pytest.raises(CheckpointError, match="process 1 does not see that process 0 has changed"):
        Checkpoints(workdir)
    print(
        json.dumps(
            {
                "reports": reports,
                "failed": failed,
                "error": error,
                "restored": restored,
                "seconds": round(seconds),
            }
        )
    )


# --- the other processes ------------------------------------------------------------------------

ROLES = {
    role.__name__: role for role in (reshard, read_damaged, save_and_die, together, on_a_bucket)
}


def start(role, *arguments, devices=1, **variables):
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, __file__, role, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, with_errors=False):
    try:
        output, errors = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
    assert process.returncode == 0, f"{output}\n{errors}"
    return (output, errors) if with_errors else output


if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
