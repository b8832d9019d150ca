"""Processes that measure together have the figures of one; devices and batches change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_many_processes import free_port
from tests.evaluation import measuring
from vdm_jax.cli import evaluate
from vdm_jax.evaluation import clips, comparison, i3d, kinetics, suite

ROOT = Path(__file__).parents[2]
COUNT = 19  # is divided by neither processes nor devices
METRICS = "fvd,consistency,accuracy,psnr"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Two sets of clips, whose captions are classes of Kinetics."""
    folder = tmp_path_factory.mktemp("clips")
    found = clips.from_rendered("moving_shapes", "16x16x8", "held_out", 2 * COUNT)
    for name, chosen in (("ours", slice(COUNT)), ("theirs", slice(COUNT, None))):
        prompts = np.array(kinetics.class_names()[:COUNT])
        np.savez(folder / f"{name}.npz", video=found.videos[chosen], prompts=prompts)
    return folder


def flags(archives, out):
    return [
        f"--samples={archives / 'ours.npz'}",
        f"--reference={archives / 'theirs.npz'}",
        f"--metrics={METRICS}",
        f"--out={out}",
        "--replicates=20",
        "--device=cpu",
    ]


def start(arguments, processes, devices):
    """`measuring` as so many processes, of so many devices each."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    # A cache that several processes write is theirs to quarrel about.
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    port, running = free_port(), []
    for index in range(processes):
        command = [sys.executable, "-m", "tests.evaluation.measuring", *arguments]
        command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
        command += [f"--process_id={index}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    return running


def compare(found, expected):
    """Results as JSON: what the network says up to the rounding of sums, all else exactly."""
    figures = ("value", "low", "high", "standard_error", "extra")
    for one, other in zip(found, expected, strict=True):
        metric = one["protocol"]["metric"]
        tolerance = 1e-4 if metric in ("fvd", "consistency") else 0.0
        for name in figures:
            assert one[name] == pytest.approx(other[name], rel=tolerance), metric
        for name in set(other) - set(figures):
            assert one[name] == other[name]


def test_processes_devices_and_batches(archives, tmp_path, monkeypatch, capsys):
    # Eight devices against one.
    together = start(flags(archives, tmp_path / "together.json"), 2, 4)
    try:
        measuring.replace(monkeypatch.setattr)
        monkeypatch.setattr(evaluate.common, "setup", lambda *_, **__: None)
        assert evaluate.main(flags(archives, tmp_path / "alone.json")) == 0
        outputs = [process.communicate(timeout=120) for process in together]
    finally:
        for process in together:
            process.kill()
            process.wait()
    assert [process.returncode for process in together] == [0, 0], [err for _, err in outputs]
    # The first speaks, and writes.
    assert "Fréchet video distance" in outputs[0][0] and "2 processes" in outputs[0][0]
    assert "Fréchet" not in outputs[1][0]

    alone = json.loads((tmp_path / "alone.json").read_text())
    assert [result["protocol"]["metric"] for result in alone] == METRICS.split(",")
    compare(json.loads((tmp_path / "together.json").read_text()), alone)

    cut = {"num_frames": 8, "size": 16, "stride": 1, "count": None, "seed": 0}
    ours, theirs = (clips.from_path(archives / f"{n}.npz", **cut) for n in ("ours", "theirs"))
    evaluation = comparison.Evaluation(
        samples=ours,
        reference=theirs,
        network=i3d.I3DFeatures(params=measuring.params(), batch_size=7),
        subject={"model": "ours.npz"},
        replicates=20,
    )
    compare([result.to_dict() for result in suite.measure(evaluation, METRICS.split(","))], alone)
