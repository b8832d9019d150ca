"""The ladder of distillation as one command, on a teacher as small as it can be."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.evaluation import measuring
from vdm_jax import config as config_lib
from vdm_jax.cli import distill
from vdm_jax.data import video_io
from vdm_jax.evaluation import protocol
from vdm_jax.pipelines import model as pretrained
from vdm_jax.training import checkpoints

ROOT = Path(__file__).parents[2]
CONFIG = "vdm/moving_shapes_distill"


def arguments(teacher, workdir, **changes):
    config = pretrained.read_config(teacher)
    values = {
        "device": "cpu",
        "data.data_dir": config.data.data_dir,
        "train.batch_size": 2,
        "train.log_every": 1,
        "train.warmup_steps": 1,
        "checkpoint.every": 100,
        "distill.teacher_steps": 4,
        "distill.end_steps": 2,
        "distill.guidance_updates": 3,
        "distill.updates": 2,
        "distill.last_updates": 2,
        "distill.consistency_updates": 2,
        "distill.consistency_steps": 4,
        "distill.distribution_updates": 2,
        "distill.distribution_steps": 2,
        "distill.samples": 2,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return [f"--config={CONFIG}", f"--model={teacher}", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def preempted(model_file, tmp_path_factory):
    """A ladder that was told to stop in its first round: (workdir, exit status, output)."""
    workdir = tmp_path_factory.mktemp("ladder")
    flags = arguments(model_file, workdir, distill__guidance_updates=100_000)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "vdm_jax", "distill", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
    return workdir, process.wait(), "".join(lines)


def test_a_ladder_goes_on_within_a_round_and_after_it(preempted, model_file, capsys, monkeypatch):
    workdir, status, output = preempted
    assert status == 75, output
    assert "the same command goes on from there" in output
    done = checkpoints.read_config(workdir / "guidance")[0]
    assert done >= 3

    flags = arguments(model_file, workdir, distill__guidance_updates=done + 1)
    assert distill.main(flags) == 0
    output = capsys.readouterr().out
    assert f"step {done + 1}/{done + 1}" in output
    assert f"step {done}/" not in output
    names = ["guidance", "progressive_2", "consistency", "distribution"]
    assert [checkpoints.read_config(workdir / name)[0] for name in names] == [done + 1, 2, 2, 2]

    # A longer ladder trains what is new, and a report is made again.
    flags = arguments(model_file, workdir, distill__guidance_updates=done + 1, distill__end_steps=1)
    measuring.replace(monkeypatch.setattr)
    assert distill.main([*flags, "--metrics=judge,fvd"]) == 0
    output = capsys.readouterr().out
    assert output.count("done before") == 4
    assert "round 3 of 5: progressive_1, 2 updates" in output

    rows = json.loads((workdir / "report.json").read_text())
    told = [(row["name"], row["steps"], row["evaluations"]) for row in rows]
    assert told == [
        ("teacher", 4, 8),
        ("guidance", 4, 4),
        ("progressive_2", 2, 2),
        ("progressive_1", 1, 1),
        ("consistency", 2, 2),
        ("consistency", 1, 1),
        ("distribution", 2, 2),
        ("teacher", 2, 4),
        ("teacher", 1, 2),
    ]
    assert rows[0]["distance"] == 0 < min(row["distance"] for row in rows[1:])
    assert all(row["seconds"] > 0 and row["scores"] == {} for row in rows)
    table = (workdir / "report.md").read_text()
    assert table in output
    header, _, *lines, empty, told = table.splitlines()
    assert len(lines) == len(rows) and "| evaluations | fvd | r.m.s." in header and empty == ""
    assert told.startswith("- fvd: dataset video_folder, split train, samples 2, references 2,")
    figures = [row["figures"][0] for row in rows]
    assert len({figure["value"] for figure in figures}) == len(rows)
    assert [figure["subject"]["steps"] for figure in figures] == [row["steps"] for row in rows]
    assert all(
        f"{figure['value']:.4g}" in line for figure, line in zip(figures, lines, strict=True)
    )
    # Kept as vdm evaluate keeps them, and by one protocol.
    assert len({str(protocol.Result.from_dict(figure).protocol) for figure in figures}) == 1
    assert video_io.read_video(workdir / "ladder.gif")[0].shape[0] == 4
    assert {"curve.png", "ladder.png"} <= {path.name for path in workdir.iterdir()}

    # A student is a model as any other, and needs nothing to be said about its sampling.
    student = pretrained.load(workdir / "progressive_1.safetensors")
    sampler = student.sampler()
    assert (sampler.rule_name, sampler.steps, sampler.guidance_scale) == ("ddim", 1, 2.0)
    weak, strong = (
        student.sample(jax.random.key(0), "a red square", guidance=scale) for scale in (1.0, 4.0)
    )
    assert weak.shape == (1, 4, 8, 8, 3)
    assert (weak != strong).any()

    with pytest.raises(config_lib.ConfigError, match="has been distilled already"):
        distill.main(arguments(workdir / "progressive_1.safetensors", workdir / "again"))


def test_metrics_that_cannot_be_are_refused(model_file, tmp_path):
    flags = arguments(model_file, tmp_path)
    with pytest.raises(config_lib.ConfigError, match="--metrics=psnr: samples have no reference"):
        distill.main([*flags, "--metrics=fvd,psnr"])
    with pytest.raises(ValueError, match="metrics fid: allowed are"):
        distill.main([*flags, "--metrics=fid"])


def test_a_configuration_of_training_is_refused(model_file, config_file, tmp_path):
    flags = [f"--config={config_file}", f"--model={model_file}", f"--workdir={tmp_path}"]
    with pytest.raises(config_lib.ConfigError, match="has no section distill"):
        distill.main(flags)


def test_the_shipped_student_needs_eight_evaluations():
    student = pretrained.load("moving_shapes_8step")
    sampler = student.sampler()
    assert student.stage.takes_guidance
    assert (sampler.rule_name, sampler.steps) == ("ddim", 8)
