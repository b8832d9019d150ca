"""Trains the stages of a cascade, one after the other or several at once.

    python -m launch.train_cascade --cascade=configs/imagen_video/tiny/cascade.py --workdir=DIR

Each stage is a run of launch.train of its own, with the configuration STAGE.py beside the
cascade's, in DIR/STAGE; what it prints is in DIR/STAGE.log. Image models that stages start from are
trained before them. Data of moving shapes, and embeddings of captions, are made first where they
are missing. --config.FIELD=VALUE sets a field of every stage. Running the command again goes on
where it stopped; stages that are done are left alone.

With --distill=FILE every trained stage is then distilled, as get_config(STAGE) of FILE says, by
launch.distill in DIR/distilled/rounds/STAGE; its last student is DIR/distilled/STAGE.safetensors,
so that --workdir=DIR/distilled samples the distilled cascade.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from vdm_jax.cli import common


def main(arguments: list[str]) -> int:
    parser = common.parser("python -m launch.train_cascade", __doc__)
    parser.add_argument("--cascade", required=True, metavar="FILE", help="of the whole")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where all output goes")
    parser.add_argument(
        "--stages", metavar="NAMES", help="some of the stages, separated by commas (default: all)"
    )
    parser.add_argument(
        "--jobs",
        type=common.positive,
        default=1,
        metavar="N",
        help="stages that train at once, on one machine's devices (default 1)",
    )
    parser.add_argument(
        "--distill", metavar="FILE", help="of the stages' distillation, with get_config(STAGE)"
    )

    from vdm_jax import config as config_lib
    from vdm_jax.systems import distillation

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    config = config_lib.load_config(options.cascade)
    if "stages" not in config:
        raise config_lib.ConfigError(
            f"--cascade={options.cascade}: is no cascade (has no field stages)"
        )
    origins = config.init_from.to_dict() if "init_from" in config else {}
    # What a stage starts from comes before it.
    names = [model for name in config.stages for model in (origins.get(name), name) if model]
    chosen = options.stages.split(",") if options.stages else names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"--stages: {', '.join(unknown)}; there are {', '.join(names)}")
    files = {name: Path(options.cascade).with_name(f"{name}.py") for name in chosen}
    configs = {name: config_lib.load_config(file, overrides) for name, file in files.items()}
    workdir = Path(options.workdir)
    distilled = workdir / "distilled"
    of_distillation = {
        name: config_lib.load_config(f"{options.distill}:{name}")
        for name in (config.stages if options.distill else ())
        if name in chosen
    }
    for name, this in configs.items():
        _prepare(this, files[name], overrides)
    training = {}
    for name, file in files.items():
        flags = _flags(overrides)
        if name in origins:
            flags.append(f"--config.train.init_from={workdir / origins[name]}")
        training[name] = _command(
            "train", f"--config={file}", f"--workdir={workdir / name}", *flags
        )
    code = _run_all("training", training, workdir, options.jobs, origins)
    if code or not options.distill:
        return code
    distilling = {
        name: _command(
            "distill",
            f"--config={options.distill}:{name}",
            f"--teacher={workdir / name}",
            f"--workdir={distilled / 'rounds' / name}",
            f"--config.data.data_dir={configs[name].data.data_dir}",
        )
        for name in of_distillation
    }
    code = _run_all("distilling", distilling, distilled, options.jobs)
    for name, config in of_distillation.items():
        last = distillation.rounds(config.distill)[-1].name
        student = distilled / "rounds" / name / f"{last}.safetensors"
        if student.is_file():
            shutil.copy(student, distilled / f"{name}.safetensors")
    return code


def _prepare(config, file: Path, overrides: dict[str, str]) -> None:
    """Makes a stage's data and the embeddings of its captions, where they are missing."""
    data = config.data
    if data.name != "video_folder":
        _run(
            "prepare_data",
            f"--data={data.name}",
            f"--config={data.config}",
            f"--data_dir={data.data_dir}",
        )
    if config.text.encoder not in ("none", "words"):
        _run("embed_text", f"--config={file}", *_flags(overrides))


def _run_all(
    work: str,
    commands: dict[str, list[str]],
    logs: Path,
    jobs: int,
    after: Mapping[str, str] | None = None,
) -> int:
    """Runs a command for each stage, `jobs` at once; the first exit status that is not 0.

    after: the stage that one waits for, if that is among them.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if jobs > 1:  # else the first would take three quarters of a GPU's memory
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    waiting, running = list(commands.items()), {}
    code = 0
    try:
        while running or (waiting and code == 0):
            while code == 0 and len(running) < jobs:
                unfinished = {*running, *(name for name, _ in waiting)}
                ready = [one for one in waiting if (after or {}).get(one[0]) not in unfinished]
                if not ready:
                    break
                name, command = ready[0]
                waiting.remove(ready[0])
                log = (logs / f"{name}.log").open("a")
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                running[name] = process, time.monotonic()
                print(f"{name}: {work}, see {log.name}", flush=True)
            time.sleep(0.2)
            for name, (process, started) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                said = "done" if process.returncode == 0 else f"ended with {process.returncode}"
                print(f"{name}: {said} after {time.monotonic() - started:.0f} s", flush=True)
                code = code or process.returncode
    except KeyboardInterrupt:
        for process, _ in running.values():  # a terminal has told them already
            process.wait()
        raise
    return code


def _run(module: str, *arguments: str) -> None:
    done = subprocess.run(_command(module, *arguments))
    if done.returncode:
        sys.exit(done.returncode)


def _command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vdm_jax", module, *arguments]


def _flags(overrides: dict[str, str]) -> list[str]:
    return [f"--config.{field}={value}" for field, value in overrides.items()]
