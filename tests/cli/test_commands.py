"""The command lines, on a real stage as small as it can be and on real video files."""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from vdm_jax import cli, pipelines
from vdm_jax import config as config_lib
from vdm_jax.cli import common, describe, evaluate, sample, train
from vdm_jax.data import shapes, video_io
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler as sampling
from vdm_jax.training import checkpoints

ROOT = Path(__file__).parents[2]


def command(module, *arguments):
    return [sys.executable, "-m", "vdm_jax", module, *map(str, arguments)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}


def run(environment, module, *arguments):
    return subprocess.run(
        command(module, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def interrupted(config_file, environment, tmp_path_factory):
    """A run that was stopped by a real Ctrl-C: (workdir, exit status, output)."""
    workdir = tmp_path_factory.mktemp("run")
    process = subprocess.Popen(
        command("train", f"--config={config_file}", f"--workdir={workdir}"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines, told = [], False
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 3/") and not told:
            process.send_signal(signal.SIGINT)
            told = True
    return workdir, process.wait(timeout=60), "".join(lines)


def test_ctrl_c_saves_and_exits_cleanly(interrupted):
    workdir, status, output = interrupted
    assert status == 0, output
    step, config = checkpoints.read_config(workdir)
    assert step >= 3
    assert "SIGINT: saving" in output
    assert f"stopped after step {step} (SIGINT" in output
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert output.startswith("device: ") and "1 x cpu" in output.splitlines()[0]
    assert set(config.text.vocabulary) == {"a", "square", "red", "blue", "green"}


@pytest.fixture(scope="module")
def trained(interrupted, config_file, environment):
    """The run above, resumed for two steps more by the same command: (workdir, output)."""
    workdir, _, _ = interrupted
    steps = checkpoints.read_config(workdir)[0] + 2
    done = run(
        environment,
        "train",
        f"--config={config_file}",
        f"--workdir={workdir}",
        f"--config.train.steps={steps}",
    )
    assert done.returncode == 0, done.stderr
    return workdir, steps, done.stdout


def test_the_same_command_resumes(trained):
    workdir, steps, output = trained
    assert f"resuming at step {steps - 2}" in output
    logged = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert logged == list(range(1, steps + 1))
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == steps


def test_a_run_starts_from_a_model(trained, config_file, environment, tmp_path):
    workdir, _, _ = trained
    model = pretrained.load(workdir)
    file = pretrained.save_model(tmp_path / "m.safetensors", model.params, model.config)
    arguments = [f"--config={config_file}", "--config.train.learning_rate=1e-9"]
    done = run(
        environment,
        "train",
        *arguments,
        f"--workdir={tmp_path / 'tuned'}",
        f"--config.train.init_from={file}",
        "--config.train.steps=1",
    )
    assert done.returncode == 0, done.stderr
    tuned = pretrained.load(tmp_path / "tuned")
    assert tuned.config.text.vocabulary == model.config.text.vocabulary
    chex.assert_trees_all_close(tuned.params, model.params, atol=1e-6)

    other = run(
        environment,
        "train",
        *arguments,
        f"--workdir={tmp_path / 'other'}",
        f"--config.train.init_from={file}",
        "--config.model.channels=16",
    )
    assert other.returncode == 1 and "the network wants" in other.stderr


def test_sample_writes_every_output(trained, environment, tmp_path):
    workdir, _, _ = trained
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("a blue square\n\n".encode("utf-16"))
    out = tmp_path / "out"
    done = run(
        environment,
        "sample",
        f"--model={workdir}",
        "--prompt=a red square",
        f"--prompts_file={prompts}",
        "--num_samples=2",
        "--steps=2",
        "--guidance=2",
        "--batch_size=3",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    with np.load(out / "samples.npz", allow_pickle=False) as samples:
        video, texts = samples["video"], list(samples["prompts"])
    assert video.shape == (4, 4, 8, 8, 3) and video.dtype == np.uint8
    assert texts == ["a red square"] * 2 + ["a blue square"] * 2
    clips = sorted(out.glob("*.mp4"))
    assert [clip.name for clip in clips][::3] == ["0000_a_red_square.mp4", "0003_a_blue_square.mp4"]
    assert len(clips) == 4
    decoded, fps = video_io.read_video(clips[3])
    assert decoded.shape == (4, 192, 192, 3) and fps == 8
    assert np.abs(decoded[:, 12::24, 12::24].astype(int) - video[3]).mean() < 16
    for name in ("samples.gif", "contact_sheet.png"):
        Image.open(out / name).verify()
        assert str(out / name) in done.stdout


def test_mistakes_are_told_before_anything_is_compiled(trained, config_file, environment, tmp_path):
    workdir, _, _ = trained
    started = time.monotonic()
    unknown = run(environment, "sample", f"--model={workdir}", "--prompt=a pink square")
    assert unknown.returncode == 1 and "Traceback" not in unknown.stderr
    assert "'pink'" in unknown.stderr and "red" in unknown.stderr
    changed = run(
        environment,
        "train",
        f"--config={config_file}",
        f"--workdir={workdir}",
        "--config.train.beta1=0.5",
    )
    assert changed.returncode == 1
    assert "train.beta1: 0.9 -> 0.5" in changed.stderr
    assert time.monotonic() - started < 120

    arguments = [f"--config={config_file}", f"--workdir={tmp_path}"]
    with pytest.raises(config_lib.ConfigError, match=r"nearest is --config\.train\.batch_size"):
        train.main([*arguments, "--config.train.batchsize=3"])
    with pytest.raises(config_lib.ConfigError, match="'many' is not an integer"):
        train.main([*arguments, "--config.train.steps=many"])
    with pytest.raises(config_lib.ConfigError, match=r"must divide by train\.accumulate = 2"):
        train.main([*arguments, "--config.train.batch_size=3", "--config.train.accumulate=2"])
    with pytest.raises(FileNotFoundError, match="'nowhere' is no directory"):
        sample.main(["--model=nowhere", "--prompt=x", "--device=cpu"])
    with pytest.raises(FileNotFoundError, match="nobody.txt"):
        sample.main([f"--model={workdir}", "--prompts_file=nobody.txt"])


def test_an_accelerator_that_is_not_there_is_an_error_that_says_how_to_go_on(capsys):
    with pytest.raises(config_lib.ConfigError) as error:
        common.setup("tpu")
    message = str(error.value)
    assert "'tpu' is asked for" in message and "--config.device=cpu" in message
    assert 'pip install -e ".[tpu]"' in message


def test_jax_platforms_proxy_connects_to_pathways(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "proxy,cpu")
    monkeypatch.setitem(sys.modules, "pathwaysutils", None)  # not installed
    with pytest.raises(config_lib.ConfigError, match=r"pip install '\.\[pathways\]'"):
        common.setup("any")
    calls = []
    client = types.SimpleNamespace(initialize=lambda: calls.append("initialize"))
    monkeypatch.setitem(sys.modules, "pathwaysutils", client)
    common.setup("any", quiet=True)
    assert calls == ["initialize"]


def test_the_cpu_of_a_machine_with_gpus_is_used_only_if_it_is_asked_for(monkeypatch, capsys):
    from vdm_jax.parallel import gpus

    monkeypatch.setattr(gpus, "listed", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    common.setup("any")  # JAX_PLATFORMS is cpu in tests
    common.setup("cpu")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(config_lib.ConfigError, match="lists 8 GPUs, but JAX finds none") as error:
        common.setup("any")
    assert "gpu12" in str(error.value) and "--config.device=cpu" in str(error.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    common.setup("any")
    assert "no accelerator found" in capsys.readouterr().out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc only")
def test_temporaries_on_the_cpu_are_not_mapped_anew_by_every_call(environment):
    program = """
        import resource
        from vdm_jax.cli import common
        common.setup("cpu")
        import jax, jax.numpy as jnp
        call = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())
        x = jnp.ones((6000, 2))  # of 36 million products, which do not fit an arena
        faults = []
        for _ in range(8):
            call(x).block_until_ready()
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        print(min(after - before for before, after in zip(faults[2:], faults[3:])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    # 144 MB are 35,000 pages.
    assert int(done.stdout.split()[-1]) < 5_000


def test_programs_for_another_number_of_cores_are_not_found(monkeypatch):
    folders = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False)
        folders.append(common._compilation_cache("cpu"))
    assert folders[0] != folders[1]
    assert folders[0].parent == folders[1].parent == common._compilation_cache("gpu")


@pytest.mark.parametrize(
    ("version", "given", "told"),
    [
        ("measured", "", set(common._CPU_FLAGS)),
        ("measured", "--xla_dump_to=there", set(common._CPU_FLAGS)),
        (
            "measured",
            "--xla_cpu_experimental_ynn_fusion_type=",
            set(common._CPU_FLAGS) - {"xla_cpu_experimental_ynn_fusion_type"},
        ),
        ("0.0.1", "", set()),
    ],
)
def test_xla_is_told_only_flags_that_it_knows(monkeypatch, version, given, told):
    """An unknown flag would end the process; what the user says stays."""
    import jaxlib

    known = common._MEASURED_JAXLIB
    monkeypatch.setattr(jaxlib, "__version__", known if version == "measured" else version)
    monkeypatch.setenv("XLA_FLAGS", given)
    common._set_cpu_flags()
    flags = os.environ["XLA_FLAGS"]
    assert flags.startswith(given)
    added = flags.removeprefix(given).split()
    assert {flag.split("=")[0] for flag in added} == {f"--{name}" for name in told}


@pytest.mark.parametrize(
    "name",
    [*cli.COMMANDS, "data prepare", "data show", "data embed"],
    ids=lambda name: name.replace(" ", "_"),
)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: vdm {name} ") and "launch" not in told
    assert len(told.splitlines()) > 5


def test_the_command_lists_its_subcommands_without_jax():
    program = "import sys; from vdm_jax import cli\ntry: cli.main(['--help'])\nfinally: " + (
        "print(sorted({'jax', 'numpy', 'ml_collections'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, imported = done.stdout.splitlines()
    assert imported == "[]"
    for name, text in cli.COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in lines)


def test_sampling_imports_nothing_that_only_training_needs(tmp_path):
    program = textwrap.dedent(f"""
        import sys
        import jax
        import numpy as np
        import vdm_jax
        from vdm_jax.cli import drawn, outputs, sample
        from pathlib import Path

        model = vdm_jax.load("moving_shapes")
        model.sampler().compiled
        out = Path({str(tmp_path)!r})
        kept = drawn.Drawn(out, ["a"])
        outputs.write_samples(out, np.zeros((1, 8, 16, 16, 3), np.uint8), ["a"], 8.0, kept)
        print(*sorted({{name.split(".")[0] for name in sys.modules}}))
    """)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = {*done.stdout.splitlines()[-1].split()}
    heavy = "tensorflow tensorflow_datasets orbax grain optax gradio matplotlib torch transformers"
    assert not imported & {*heavy.split(), "scipy", "pandas", "tensorstore", "tensorboardX"}
    assert "flax" in imported  # the names are those of sys.modules


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    for arguments, nearest in ((["sampel"], "sample"), (["data", "prepar"], "prepare")):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert f"the nearest is {nearest}" in capsys.readouterr().err


def test_launch_train_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: vdm train ")


def test_describe_lists_configurations_and_models(capsys):
    assert describe.main([]) == 0
    told = capsys.readouterr().out.split()
    assert {"vdm/moving_shapes", "moving_shapes", "lumiere_tiny"} <= set(told)
    with pytest.raises(SystemExit):
        describe.main(["--config=lumiere/tiny/cascade"])
    assert "base_32f_16, ssr_32" in capsys.readouterr().err


def test_describe_counts_what_the_stage_initialises(config_file, trained, capsys):
    workdir, _, _ = trained
    describe.main([f"--config={config_file}", "--json"])
    report = json.loads(capsys.readouterr().out)
    model = pretrained.load(workdir)
    assert report["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert report["parameters"] == sum(row["parameters"] for row in report["levels"])
    assert report["flops"] == sum(row["flops"] for row in report["levels"]) > 0
    assert report["video_shape"] == [4, 8, 8, 3]

    describe.main([f"--config={config_file}", "--config.model.channels=16"])
    table = capsys.readouterr().out
    assert "resolution" in table and "down 0" in table


def test_describe_lists_where_parameters_live(config_file, capsys):
    arguments = [f"--config={config_file}", "--sharding", "--devices=8"]
    mesh = ["--config.mesh.fsdp=4", "--config.mesh.min_fsdp_size=1"]
    describe.main([*arguments, *mesh, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    rows = {row["path"]: row for row in report["parameters"]}
    kernel = rows["down_0_block_0/conv_in/kernel"]
    assert kernel["spec"] == [[], [], ["fsdp"], []]
    assert kernel["bytes"] * 4 == 4 * np.prod(kernel["shape"])
    assert report["bytes"] == sum(row["bytes"] for row in report["parameters"])
    assert report["state_bytes"] == 4 * report["bytes"]

    describe.main([*arguments, "--config.mesh.fsdp=4"])
    table = capsys.readouterr().out
    assert "fsdp: fewer than 65536 elements, repeated" in table and "MiB of parameters" in table
    with pytest.raises(ValueError, match=r"mesh.fsdp = 3.* does not fit 8 devices"):
        describe.main([*arguments, "--config.mesh.fsdp=3"])


def test_describe_takes_a_network_of_billions(capsys):
    started = time.monotonic()
    config = ROOT / "configs" / "vdm" / "t2v_large.py"
    describe.main([f"--config={config}", "--config.model.channels=512", "--json"])
    assert json.loads(capsys.readouterr().out)["parameters"] > 4e9
    assert time.monotonic() - started < 90


def drawn(self, params, key, prompts):
    """In the place of `Sampler.stream`: what it is asked for, but the last half moves backwards."""
    assert set(prompts) <= set(shapes.captions("held_out"))
    scenes = [shapes.parse_caption(prompt) for prompt in prompts]
    videos = shapes.render_clips(scenes, size=16, num_frames=8, seed=1)
    half = len(videos) // 2
    yield videos[:half]
    yield videos[half:, ::-1]


def test_evaluate_reports_what_the_judge_reads(monkeypatch, capsys):
    monkeypatch.setattr(sampling.Sampler, "stream", drawn)
    monkeypatch.setattr(common, "setup", lambda device, options, quiet=False: None)
    evaluate.main(["--num_samples=8", "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert (scores["color"], scores["shape"], scores["n"]) == (1.0, 1.0, 8)
    assert scores["direction"] == scores["all"] == 0.5
    # The shipped model's own settings.
    assert (scores["sampler"], scores["steps"], scores["guidance"]) == ("ddim", 64, 2.0)
    evaluate.main(["--num_samples=8"])
    assert "50.0%" in capsys.readouterr().out


class FakeCascade(pipelines.CascadeModel):
    last_config = config_lib.from_dict(
        {
            "data": {"name": "moving_shapes", "config": "16x16x8", "num_frames": 8},
            "stage": {"shape": (8, 16, 16)},
        }
    )

    def sample(self, key, prompts):
        return np.concatenate(list(drawn(None, None, key, prompts)))


def test_evaluate_measures_a_cascade(monkeypatch, capsys):
    monkeypatch.setattr(common, "load_any", lambda options: FakeCascade(steps=()))
    monkeypatch.setattr(common, "setup", lambda device, options, quiet=False: None)
    evaluate.main(["--num_samples=8", "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["shape"] == 1.0 and scores["sampler"] == "cascade"
    with pytest.raises(ValueError, match="--steps: a cascade is sampled as its stages"):
        evaluate.main(["--num_samples=8", "--steps=3"])
