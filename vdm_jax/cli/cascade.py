"""Training of a cascade: a process of `vdm train` for each stage, some at once.

`vdm train` calls this where its configuration is a cascade.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path


def train(config, options, overrides: dict[str, str]) -> int:
    """Trains the stages of a cascade's configuration, and distils them with `options.distill`.

    options: the flags of `vdm train`. overrides: of every stage's configuration. Returns the first
    exit status that is not 0. Raises ConfigError, ValueError, and CheckpointError where another run
    is in the workdir, before anything is trained.
    """
    from vdm_jax import config as config_lib
    from vdm_jax.pipelines import cascade as cascade_lib
    from vdm_jax.systems import distillation
    from vdm_jax.training import lock

    origins = config.init_from.to_dict() if "init_from" in config else {}
    # The model that a stage starts from comes before it.
    names = [model for name in config.stages for model in (origins.get(name), name) if model]
    chosen = names
    if options.stages is not None:
        chosen = [name for name in options.stages.split(",") if name]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"--stages: {', '.join(unknown)}; there are {', '.join(names)}")
    own_file, _ = config_lib.find_config(options.config)
    files = {name: own_file.with_name(f"{name}.py") for name in chosen}
    configs = {name: _checked(name, file, overrides) for name, file in files.items()}
    workdir = Path(options.workdir)
    distilled = workdir / "distilled"
    jobs = options.jobs or 1
    distill_configs = {
        name: config_lib.load_config(f"{options.distill}:{name}")
        for name in (config.stages if options.distill else ())
        if name in chosen
    }
    # A lock a stage is not enough: two calls would write the same logs and students.
    with lock.Lock(workdir):
        for name, this in configs.items():
            _prepare(this, files[name], overrides)
        cascade_lib.save(workdir, config)
        training = {}
        for name, file in files.items():
            flags = _flags(overrides)
            if name in origins:
                flags.append(f"--config.train.init_from={workdir / origins[name]}")
            training[name] = _command(
                "train", f"--config={file}", f"--workdir={workdir / name}", *flags
            )
        code = _run_all("training", training, workdir, jobs, origins)
        if code or not options.distill:
            return code
        distilling = {
            name: _command(
                "distill",
                f"--config={options.distill}:{name}",
                f"--model={workdir / name}",
                f"--workdir={distilled / 'rounds' / name}",
                f"--config.data.data_dir={configs[name].data.data_dir}",
            )
            for name in distill_configs
        }
        cascade_lib.save(distilled, config)
        code = _run_all("distilling", distilling, distilled, jobs)
        for name, this in distill_configs.items():
            last = distillation.rounds(this.distill)[-1].name
            student = distilled / "rounds" / name / f"{last}.safetensors"
            if student.is_file():
                shutil.copy(student, distilled / f"{name}.safetensors")
        return code


def _prepare(config, file: Path, overrides: dict[str, str]) -> None:
    """Prepares a stage's data and the embeddings of its captions, where they are missing."""
    data = config.data
    if data.name not in ("video_folder", "video_shards"):
        _run("data", "prepare", f"--config={file}", *_flags(overrides))
    if config.text.encoder not in ("none", "words"):
        _run("data", "embed", f"--config={file}", *_flags(overrides))


def _checked(name: str, file: Path, overrides: dict[str, str]):
    """The configuration of a stage, of which its network can be made.

    Raises ConfigError, naming the stage.
    """
    from vdm_jax import config as config_lib
    from vdm_jax import systems

    try:
        config = config_lib.load_config(file, overrides)
        filled = config.copy_and_resolve_references()
        if config.text.encoder == "words" and not config.text.vocabulary:
            with filled.unlocked():
                filled.text.vocabulary = ("a",)  # the data's words may not be there yet
        systems.build(filled).abstract_params()
    except ValueError as error:
        raise config_lib.ConfigError(f"{name}: {error}") from None
    return config


def _last_lines(log: Path, count: int = 5) -> str:
    """The last lines of a stage's output, each set in; "" where there is none."""
    lines = log.read_text(errors="backslashreplace").splitlines()[-count:]
    return "".join(f"\n    {line}" for line in lines)


def _run_all(
    work: str,
    commands: dict[str, list[str]],
    logs: Path,
    jobs: int,
    after: Mapping[str, str] | None = None,
) -> int:
    """Runs a command for each stage, `jobs` at once; returns the first exit status that is not 0.

    logs: a directory that receives STAGE.log. after: stage to the stage that it waits for.
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
                end = "done" if process.returncode == 0 else f"ended with {process.returncode}"
                tail = _last_lines(logs / f"{name}.log") if process.returncode else ""
                seconds = time.monotonic() - started
                print(f"{name}: {end} after {seconds:.0f} s{tail}", flush=True)
                code = code or process.returncode
    except KeyboardInterrupt:
        for process, _ in running.values():  # the terminal has interrupted them too
            process.wait()
        raise
    return code


def _run(*arguments: str) -> None:
    done = subprocess.run(_command(*arguments))
    if done.returncode:
        sys.exit(done.returncode)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vdm_jax", *arguments]


def _flags(overrides: dict[str, str]) -> list[str]:
    return [f"--config.{field}={value}" for field, value in overrides.items()]
