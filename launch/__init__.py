"""Command lines: `python -m launch.NAME --help`.

What all of them share is here. Heavy imports are inside the functions: `--help` answers at once,
and the worker processes of the data pipeline, which import the module that was launched, start
without JAX.
"""

import argparse
import importlib.util
import os
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

CACHE = Path("~/.cache/vdm_jax/xla")
# A run that was told to stop (SIGTERM, a preemption notice) and saved: the same command goes on.
# EX_TEMPFAIL of sysexits.h; launch/supervise.sh starts it again.
PREEMPTED = 75


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
        _leave_others()
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        _leave_others()
        sys.exit(1)
    sys.exit(code or 0)


def _leave_others() -> None:
    """Ends a process of several at once.

    Leaving in order waits for the others, and they wait for what this one does no more: nobody
    would be started again before all have timed out.
    """
    if (jax := sys.modules.get("jax")) and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def setup(device: str, processes: argparse.Namespace | None = None, quiet: bool = False) -> None:
    """Prepares JAX: processes, the device that was asked for, the compilation cache, quiet logs.

    device: "any" (what JAX finds), "cpu", "gpu" or "tpu". processes: with the flags of
    `add_process_arguments`. Raises ConfigError when an accelerator is asked for and there is none.
    The first process prints one line that names the devices, unless `quiet`.
    """
    import absl.flags
    import absl.logging
    import jax

    from vdm_jax.config import ConfigError
    from vdm_jax.parallel import distributed

    absl.logging.set_verbosity(absl.logging.ERROR)
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS([sys.argv[0]])  # the data workers read absl flags
    if device == "cpu" or (device == "any" and _only_cpu()):
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    found = None
    if processes is not None:
        names = ("coordinator", "num_processes", "process_id")
        found = distributed.find(*(getattr(processes, name) for name in names))
    if found is not None or "xla_force_host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    ):
        # Several CPU devices share the threads of a process: two updates under way at once can
        # each hold threads that the other's collectives wait for.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    distributed.initialize(found)
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
    if not quiet and jax.process_index() == 0:
        count = jax.process_count()
        hosts = f" in {count} processes" if count > 1 else ""
        print(f"device: {len(devices)} x {backend}{kind}{hosts}{note}", flush=True)


def _only_cpu() -> bool:
    """Whether JAX would find nothing but the CPU here, and say so at length.

    Where libtpu is installed for launch.compile and there is no TPU, JAX loads it, prints a page,
    and keeps other processes from loading it.
    """
    from vdm_jax.parallel import topology

    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin")
    installed = [name for name in plugins if importlib.util.find_spec(name)]
    return not (os.environ.get("JAX_PLATFORMS") or installed or topology.on_tpu_host())


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
    arguments.add_argument(
        "--mesh",
        default="",
        metavar="AXES",
        help="sizes of the mesh's axes, for example fsdp=4,tensor=2 (default: samples are spread "
        "over all devices)",
    )
    add_process_arguments(arguments)


def add_process_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that tell a process of its peers; needed on no TPU pod and under no Slurm."""
    group = arguments.add_argument_group(
        "many processes", "found by themselves on TPU pods and under Slurm; else for each process"
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of process 0 (or VDM_JAX_COORDINATOR)"
    )
    group.add_argument(
        "--num_processes", type=positive, metavar="N", help="(or VDM_JAX_NUM_PROCESSES)"
    )
    group.add_argument(
        "--process_id", type=int, metavar="I", help="0 to N - 1 (or VDM_JAX_PROCESS_ID)"
    )


def load_model(options: argparse.Namespace):
    """The model that `add_model_arguments`'s flags name, without any the shipped default, laid over
    the devices as `--mesh` says."""
    from vdm_jax import pretrained
    from vdm_jax.parallel import mesh

    if options.workdir is not None and not Path(options.workdir).is_dir():
        raise FileNotFoundError(f"--workdir={options.workdir}: there is no such directory")
    source = options.workdir or options.model or pretrained.DEFAULT
    return pretrained.load(source, mesh=mesh.parse_mesh(options.mesh))


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
