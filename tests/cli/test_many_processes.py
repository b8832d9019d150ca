"""Real processes that train and sample one model together: two of four devices each, against one
of eight; another number of processes and devices after resuming; a notice of preemption."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.training import checkpoints

ROOT = Path(__file__).parents[2]
# Clips and parameters are both cut up, and enough of them: the smallest kernel has 4 channels.
ARGUMENTS = (
    "--config.train.batch_size=8",
    "--config.mesh.data=2",
    "--config.mesh.fsdp=-1",
    "--config.mesh.min_fsdp_size=16",
    "--config.checkpoint.every=3",
    "--config.train.learning_rate=1e-3",
    "--config.data.image_frames=1",
)
STEPS = 6


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@contextlib.contextmanager
def start(module, processes, devices, *arguments):
    """`processes` running `vdm {module}` together, with `devices` devices each."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    # A cache that several processes write is theirs to quarrel about.
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
    port = free_port()
    running = []
    for index in range(processes):
        command = [sys.executable, "-m", "vdm_jax", module, *map(str, arguments)]
        if processes > 1:
            command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
            command += [f"--process_id={index}"]
        running.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(module, processes, devices, *arguments):
    """Their exit status and output."""
    with start(module, processes, devices, *arguments) as running:
        results = [(p.communicate(timeout=300), p) for p in running]
        return [(p.returncode, out, err) for (out, err), p in results]


def train(config_file, workdir, processes, devices, *arguments):
    return run(
        "train",
        processes,
        devices,
        f"--config={config_file}",
        f"--workdir={workdir}",
        f"--config.train.steps={STEPS}",
        *ARGUMENTS,
        *arguments,
    )


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # each once
    return np.array([[line["loss"], line["grad_norm"]] for line in lines])


def said(out):
    """What a process says itself, by words that every command says: its communication library
    prints too, from many threads into each other's lines."""
    words = ("device:", "data:", "starting", "step ", "stopped", "samples", "sample it", ".mp4")
    return [word for word in words if word in out]


@pytest.fixture(scope="module")
def alone(config_file, tmp_path_factory):
    """What one process with eight devices does: (workdir, output)."""
    workdir = tmp_path_factory.mktemp("alone")
    [(status, out, err)] = train(config_file, workdir, 1, 8)
    assert status == 0, err
    return workdir, out


@pytest.fixture(scope="module")
def together(config_file, tmp_path_factory):
    """The same with two processes of four devices each: (workdir, outputs)."""
    workdir = tmp_path_factory.mktemp("together")
    results = train(config_file, workdir, 2, 4)
    assert [status for status, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    return workdir, [out for _, out, _ in results]


def test_two_processes_train_as_one(alone, together):
    # The same clips and the same noise at every step: float32 sums in another order only.
    np.testing.assert_allclose(losses(together[0]), losses(alone[0]), rtol=2e-4)
    assert "device: 8 x cpu in 2 processes" in together[1][0]
    assert "on 8 devices" in together[1][0] and "on 8 devices" in alone[1]


def test_only_the_first_process_speaks_and_writes(together):
    workdir, (first, second) = together
    assert "stopped after step 6" in first and "step " in said(first)
    assert said(second) == []
    assert (workdir / "config.json").is_file()
    assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_a_run_goes_on_with_other_processes_and_devices(alone, config_file, tmp_path):
    """Two processes of four devices, then one of four: the data go on where they were."""
    results = train(config_file, tmp_path, 2, 4, "--config.train.steps=3")
    assert [status for status, _, _ in results] == [0, 0], results[1][2]
    [(status, out, err)] = train(config_file, tmp_path, 1, 4)
    assert status == 0, err
    assert "resuming at step 3" in out and "on 4 devices" in out
    np.testing.assert_allclose(losses(tmp_path), losses(alone[0]), rtol=2e-4)


def test_a_notice_of_preemption_stops_all_at_the_same_step(config_file, tmp_path):
    arguments = (f"--config={config_file}", f"--workdir={tmp_path}", *ARGUMENTS)
    with start("train", 2, 4, *arguments, "--config.checkpoint.every=100000") as running:
        for line in running[0].stdout:
            if line.startswith("step 3/"):
                break
        running[1].send_signal(signal.SIGTERM)  # the one that does not speak
        out = running[0].stdout.read()
        statuses = [process.wait(timeout=120) for process in running]
    assert statuses == [75, 75], running[0].stderr.read()
    step, _ = checkpoints.read_config(tmp_path)
    assert step >= 3 and f"stopped after step {step} (SIGTERM" in out


def test_processes_sample_together(together, tmp_path):
    workdir, _ = together
    arguments = (f"--model={workdir}", "--prompt=a red square", "--num_samples=3", "--device=cpu")
    [(status, _, err)] = run("sample", 1, 1, *arguments, f"--out={tmp_path / 'one'}")
    assert status == 0, err
    results = run("sample", 2, 2, *arguments, "--mesh=fsdp=2", f"--out={tmp_path / 'two'}")
    assert [status for status, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert said(results[1][1]) == [] and ".mp4" in said(results[0][1])
    videos = []
    for name in ("one", "two"):
        assert len(list((tmp_path / name).glob("*.mp4"))) == 3
        with np.load(tmp_path / name / "samples.npz") as samples:
            videos.append(samples["video"].astype(int))
    assert np.abs(videos[0] - videos[1]).max() <= 1  # rounding to uint8 may fall either way
