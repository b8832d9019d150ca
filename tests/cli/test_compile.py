"""vdm compile, with the compiler of TPUs: what fits, what does not, and what is kept."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdm_jax.cli import compile as compile_
from vdm_jax.cli import compiling, describe

ROOT = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"'
)


@pytest.fixture(scope="module")
def run(config_file, tmp_path_factory):
    """A function (arguments) -> the finished process of vdm compile, with a cache of its own."""
    home = tmp_path_factory.mktemp("home")

    def run_(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "vdm_jax", "compile", f"--config={config_file}", *arguments],
            cwd=ROOT,
            env={**os.environ, "HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run_


@needs_libtpu
def test_what_fits(run, config_file, capsys):
    arguments = ("--topology=v5e:2x2", "--mesh=fsdp=4,data=1", "--batch_size=8", "--json")
    done = run(*arguments, "--config.mesh.min_fsdp_size=64", "--config.text.encoder=none")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = report["estimate"]
    overrides = ["--config.text.encoder=none", "--json"]
    describe.main([f"--config={config_file}", *overrides])
    described = json.loads(capsys.readouterr().out)
    assert report["fits"] and report["parameters"] == described["parameters"]
    assert found["model_flops"] == 3 * 8 * described["flops"]
    assert found["devices"] == 4 and 0 < found["memory"] < found["capacity"] == 15.75 * 2**30
    assert found["step_seconds"] >= max(found["compute_seconds"], found["memory_seconds"])
    # Gathered twice or once, their gradients summed; most of them in float32 here.
    assert 2 * 4 < found["network_bytes"] / report["parameters"] < 6 * 4
    again = run(*arguments, "--config.mesh.min_fsdp_size=64", "--config.text.encoder=none")
    assert json.loads(again.stdout) == report  # how long it took, too: it was kept


@needs_libtpu
def test_what_does_not_fit(run):
    done = run("--topology=v5e:1x1", f"--batch_size={2**22}", "--tries=1")
    assert done.returncode == 2, done.stderr
    assert "GiB over" in done.stdout and "of 15.75 GiB a device" in done.stdout
    # What is advised was compiled, and what was compiled and is not enough is said too.
    assert "--config.model.remat=full" in done.stdout
    assert ("try: " in done.stdout) or ("not enough: " in done.stdout)


@needs_libtpu
def test_the_sampler_is_compiled_a_step(run):
    arguments = ("--topology=v5e:1x1", "--what=sample", "--batch_size=4", "--json")
    done = run(*arguments, "--config.sample.steps=5")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["batch"], report["what"]) == (4, "sample")
    assert report["estimate"]["model_flops"] == report["estimate"]["flops"] > 0


def test_changes_save_memory_and_keep_the_batch_first(config_file):
    overrides = {"train.batch_size": "16", "mesh.data": "-1"}
    request = compiling.Request(config=str(config_file), topology="v5e:2x2", overrides=overrides)
    changes = compiling.memory_changes(request, devices=4)
    assert changes[:4] == [
        {"mesh.fsdp": "-1", "mesh.data": "1"},
        {"model.remat": "full"},
        {"train.accumulate": "2"},
        {"train.accumulate": "4"},
    ]
    assert changes[-1] == {"train.batch_size": "4", "train.accumulate": "1"}


def test_every_device_has_whole_clips_in_each_microbatch(config_file):
    overrides = {"train.batch_size": "48", "mesh.data": "-1", "train.accumulate": "2"}
    request = compiling.Request(config=str(config_file), topology="v5e:2x2", overrides=overrides)
    changes = compiling.memory_changes(request, devices=4)
    parts = [change["train.accumulate"] for change in changes if [*change] == ["train.accumulate"]]
    assert parts == ["4", "6", "12"]


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x3"], "v5e:3x3"),
        (["--topology=v5e:2x2", "--mesh=fsdp=3"], "mesh.fsdp = 3"),
        (["--topology=v5e:2x2", "--mesh=pipeline=3"], "pipeline=3"),
        (["--topology=v5e:2x2", "--batch_size=6"], "must divide by 4"),
    ],
)
def test_mistakes_are_told(config_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        compile_.main([f"--config={config_file}", *arguments])
