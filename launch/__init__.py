"""Command lines: `python -m launch.NAME --help`.

What all of them share is here. Heavy imports are inside the functions: `--help` answers at once,
and the worker processes of the data pipeline, which import the module that was launched, start
without JAX.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path("~/.cache/vdm_jax/xla")


def parser(program: str, doc: str) -> argparse.ArgumentParser:
    """A parser that shows `doc` as it is written, and takes no abbreviated flags.

    program: what is typed to run it, as the usage line and the mistakes show it.
    """
    return argparse.ArgumentParser(
        prog=program,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main(arguments)` as a process: a mistake of the user is told without a traceback.

    With VDM_JAX_TRACEBACK=1 in the environment it is told with one.
    """
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("aborted", file=sys.stderr)
        sys.exit(130)
    except _expected_errors() as error:
        if os.environ.get("VDM_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)


def setup(device: str, quiet: bool = False) -> None:
    """Prepares JAX: the device that was asked for, the compilation cache, quiet logs.

    device: "any" (what JAX finds), "cpu", "gpu" or "tpu". Raises ConfigError when an accelerator
    is asked for and there is none. Prints one line that names the devices, unless `quiet`.
    """
    import absl.flags
    import absl.logging
    import jax

    from vdm_jax.config import ConfigError

    absl.logging.set_verbosity(absl.logging.ERROR)
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS([sys.argv[0]])  # the data workers read absl flags
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        devices = jax.devices() if device == "any" else jax.devices(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r} is asked for, but JAX finds none here: {_first_line(error)}\n"
            f'Install its support (pip install -e ".[{device}]"), or go on without it: '
            "--config.device=cpu (launch.sample and launch.evaluate: --device=cpu)"
        ) from error
    backend = devices[0].platform
    if device != "any" and jax.default_backend() != backend:
        jax.config.update("jax_default_device", devices[0])
    kind = "" if backend == "cpu" else f" {devices[0].device_kind}"
    note = " (no accelerator found)" if device == "any" and backend == "cpu" else ""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(CACHE.expanduser()))
    if backend == "cpu":
        _keep_freed_memory()
    if not quiet:
        print(f"device: {len(devices)} x {backend}{kind}{note}", flush=True)


def _keep_freed_memory() -> None:
    """Tells glibc to keep large freed buffers instead of handing them back to the kernel.

    On the CPU every compiled call allocates its temporaries anew. Mapped, zeroed and unmapped
    each time, they cost a tenth of a training step. Another C library is left as it is.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and platform.libc_ver()[0] == "glibc":
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
        mallopt(mmap_threshold, 2**31 - 1)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)


def add_model_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that choose a trained model and where it runs."""
    source = arguments.add_mutually_exclusive_group()
    source.add_argument(
        "--workdir", metavar="DIR", help="working directory of launch.train: its last checkpoint"
    )
    source.add_argument(
        "--model",
        metavar="NAME",
        help="a model that ships with the package, or a .safetensors file (default: moving_shapes)",
    )
    arguments.add_argument(
        "--device",
        default="any",
        choices=("any", "cpu", "gpu", "tpu"),
        help="where to compute (default: what is found)",
    )


def load_model(options: argparse.Namespace):
    """The model that `add_model_arguments`'s flags name; without any, the shipped default."""
    from vdm_jax import pretrained

    if options.workdir is not None and not Path(options.workdir).is_dir():
        raise FileNotFoundError(f"--workdir={options.workdir}: there is no such directory")
    return pretrained.load(options.workdir or options.model or pretrained.DEFAULT)


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _expected_errors() -> tuple[type[Exception], ...]:
    errors = [FileNotFoundError, ValueError, FloatingPointError]
    # Only where it has been imported can it have been raised.
    if module := sys.modules.get("vdm_jax.training.checkpoints"):
        errors.append(module.CheckpointError)
    return tuple(errors)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
