"""Trains the stages of a cascade, one after the other or several at once.

    python -m launch.train_cascade --cascade=configs/imagen_video/tiny/cascade.py --workdir=DIR

Each stage is a run of launch.train of its own, with the configuration STAGE.py beside the
cascade's, in DIR/STAGE; what it prints is in DIR/STAGE.log. Data of moving shapes, and embeddings
of captions, are made first where they are missing. --config.FIELD=VALUE sets a field of every
stage. Running the command again goes on where it stopped; stages that are done are left alone.
"""

import subprocess
import sys
import time
from pathlib import Path

import launch


def main(arguments: list[str]) -> int:
    parser = launch.parser("python -m launch.train_cascade", __doc__)
    parser.add_argument("--cascade", required=True, metavar="FILE", help="of the whole")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where all output goes")
    parser.add_argument(
        "--stages", metavar="NAMES", help="some of the stages, separated by commas (default: all)"
    )
    parser.add_argument(
        "--jobs",
        type=launch.positive,
        default=1,
        metavar="N",
        help="stages that train at once, on one machine's devices (default 1)",
    )

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    config = config_lib.load_config(options.cascade)
    if "stages" not in config:
        raise config_lib.ConfigError(
            f"--cascade={options.cascade}: is no cascade (has no field stages)"
        )
    chosen = options.stages.split(",") if options.stages else list(config.stages)
    unknown = [name for name in chosen if name not in config.stages]
    if unknown:
        raise ValueError(f"--stages: {', '.join(unknown)}; there are {', '.join(config.stages)}")
    files = {name: Path(options.cascade).with_name(f"{name}.py") for name in chosen}
    configs = {name: config_lib.load_config(file, overrides) for name, file in files.items()}
    for name, this in configs.items():
        _prepare(this, files[name], overrides)
    return _train(files, Path(options.workdir), overrides, options.jobs)


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


def _train(files: dict[str, Path], workdir: Path, overrides: dict[str, str], jobs: int) -> int:
    """Runs every stage's training, `jobs` at once; the first exit status that is not 0."""
    workdir.mkdir(parents=True, exist_ok=True)
    waiting, running = list(files.items()), {}
    code = 0
    try:
        while running or (waiting and code == 0):
            while waiting and code == 0 and len(running) < jobs:
                name, file = waiting.pop(0)
                log = (workdir / f"{name}.log").open("a")
                command = _command(
                    "train", f"--config={file}", f"--workdir={workdir / name}", *_flags(overrides)
                )
                running[name] = subprocess.Popen(command, stdout=log, stderr=log), time.monotonic()
                print(f"{name}: training, see {log.name}", flush=True)
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
    return [sys.executable, "-m", f"launch.{module}", *arguments]


def _flags(overrides: dict[str, str]) -> list[str]:
    return [f"--config.{field}={value}" for field, value in overrides.items()]


if __name__ == "__main__":
    launch.run(main)
