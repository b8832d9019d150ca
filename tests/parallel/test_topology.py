"""Names of machines, and their devices where a compiler for them is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdm_jax.parallel import topology
from vdm_jax.parallel.chips import chip_of_device
from vdm_jax.parallel.topology import TopologyError, parse_topology

ROOT = Path(__file__).parents[2]
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"'
)


def run(code: str, **environment: str) -> str:
    """What `code` prints in a process of its own: JAX in this one has chosen its backend."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("text", "slices", "shape", "num_devices"),
    [
        ("v5e:1x1", 1, (1, 1), 1),
        ("v5e:16x16", 4, (16, 16), 1024),
        ("v6e:2x4", 1, (2, 4), 8),
        ("v4:2x2x1", 1, (2, 2, 1), 4),
        ("v5p:8x8x8", 2, (8, 8, 8), 1024),
        (" V5P:4x4x12 ", 1, (4, 4, 12), 192),
        ("tpu7x:4x4x4", 1, (4, 4, 4), 128),  # two devices a chip
        ("h100:8", 4, (8,), 32),
    ],
)
def test_parse(text, slices, shape, num_devices):
    machine = parse_topology(text, slices=slices)
    assert (machine.shape, machine.slices, machine.num_devices) == (shape, slices, num_devices)
    assert machine.name == text.strip().lower()
    assert machine.chip.name == machine.name.split(":")[0]
    assert str(machine) == (machine.name if slices == 1 else f"{slices} x {machine.name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7:4x4", "'v7'; allowed: v4, v5e, v5p, v6e, tpu7x, h100, h200, a100"),
        ("v5p", "'v5p' is not FAMILY:SHAPE, such as v5e:16x16"),
        ("v5p:4x4xx4", "is not FAMILY:SHAPE"),
        ("v5p:16", "a slice of v5p has 3 axes"),
        ("v5e:2x2x2", "a slice of v5e has 2 axes; allowed of v5e: 1x1, 2x2, 2x4"),
        ("h100:4x8", "a slice of h100 has 1 axis"),
        ("v5e:32x32", "'v5e:32x32': there is no such slice.*16x16; for more, use more slices"),
        ("v5p:4x4x6", "2x4x4, or three multiples of 4 in ascending order, of at most 6144 chips"),
        ("v5p:8x4x4", "ascending order"),
        ("v5p:0x4x4", "there is no such slice"),  # libtpu would end the process
        ("v4:16x16x20", "of at most 4096 chips"),
        ("a100:3", "allowed of a100: 1, 2, 4, 8"),
    ],
)
def test_machines_that_do_not_exist(text, message):
    with pytest.raises(TopologyError, match=message) as error:
        parse_topology(text)
    assert repr(text) in str(error.value)


def test_slices_must_be_positive():
    with pytest.raises(TopologyError, match="slices = 0: must be at least 1"):
        parse_topology("v5e:4x4", slices=0)


def test_missing_compilers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(TopologyError, match=r"v5e:4x4 is compiled by libtpu.*jax\[tpu\]"):
        parse_topology("v5e:4x4").devices()


def test_what_the_compiler_says_is_passed_on(monkeypatch):
    from jax.experimental import topologies

    def fail(error):
        def get_topology_desc(**options):
            raise error

        return get_topology_desc

    machine = parse_topology("h100:8")
    monkeypatch.setattr(topologies, "get_topology_desc", fail(NotImplementedError("cuda")))
    with pytest.raises(TopologyError, match=r"h100:8 is compiled by JAX's CUDA.*jax\[cuda13\]"):
        machine.devices()
    monkeypatch.setattr(topologies, "get_topology_desc", fail(RuntimeError("lockfile held")))
    with pytest.raises(TopologyError, match="another process.*lockfile held"):
        machine.devices()


@pytest.mark.parametrize("family", topology.GPU_FAMILIES)
def test_targets_of_gpus_are_the_chips(family):
    machine = parse_topology(f"{family}:8")
    target = Path(topology.__file__).with_name(f"{family}.txtpb").read_text(encoding="utf-8")
    assert f"device_memory_size: {machine.chip.hbm_bytes}\n" in target
    kind = target.split('device_description_str: "')[1].split('"')[0]
    assert chip_of_device(kind) is machine.chip


def test_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("TPU_", "JAX_PLATFORMS", "ALLOW_MULTIPLE")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ, TPU_LOG_DIR="mine", JAX_PLATFORMS="tpu"))
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "jax")

    monkeypatch.setattr(topology, "on_tpu_host", lambda: True)
    topology.prepare_environment(parse_topology("v5e:4x4"))
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["TPU_LOG_DIR"] == "mine"
    assert "ALLOW_MULTIPLE_LIBTPU_LOAD" not in os.environ

    monkeypatch.setattr(topology, "on_tpu_host", lambda: False)
    topology.prepare_environment(parse_topology("v5e:4x4"))
    assert os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"


def test_importing_it_imports_no_jax():
    code = "import sys, vdm_jax.parallel.topology; print('jax' in sys.modules)"
    assert run(code).strip() == "False"


@NEEDS_LIBTPU
def test_devices_of_tpus():
    code = """
from vdm_jax.parallel.topology import parse_topology, prepare_environment
from vdm_jax.parallel.chips import chip_of_device
machines = [
    parse_topology(text, slices=slices)
    for text, slices in [
        ("v4:2x2x1", 1), ("v5e:1x1", 1), ("v5e:8x16", 1), ("v5e:4x4", 2), ("v6e:16x16", 1),
        ("v5p:2x4x4", 1), ("v5p:4x4x8", 2), ("v5p:16x16x24", 1), ("tpu7x:4x4x4", 1),
    ]
]
prepare_environment(machines[0])
for machine in machines:
    devices = machine.devices()
    assert len(devices) == machine.num_devices, machine
    assert chip_of_device(devices[0].device_kind) is machine.chip, devices[0].device_kind
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    assert slices == set(range(machine.slices)), machine
import jax
print(jax.devices()[0].platform)
"""
    assert run(code).strip() == "cpu"
