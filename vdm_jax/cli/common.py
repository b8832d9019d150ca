"""What the subcommands of `vdm` share: flags, the start of JAX, and the files they write.

Heavy imports are inside the functions: `--help` answers at once, and the worker processes of the
data pipeline start without JAX.
"""

import argparse
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vdm_jax.cli import parsing

if TYPE_CHECKING:
    import numpy as np

CACHE = Path("~/.cache/vdm_jax/xla")
# The exit status of a run that was stopped (SIGTERM, a preemption notice) and saved: the same
# command goes on. EX_TEMPFAIL of sysexits.h; launch/supervise.sh starts it again.
PREEMPTED = 75
_MEASURED_JAXLIB = "0.10.2"
_CPU_FLAGS = {
    # YNNPACK for products and sums only: a convolution's gradient by its kernel takes it two to
    # seven times as long as Eigen.
    "xla_cpu_experimental_ynn_fusion_type": ("LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"),
    # Operations in the order that holds least memory: a sixth less, for 4% of the time.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
}


def run(main: Callable[[list[str]], int | None], arguments: list[str]) -> None:
    """Runs `main(arguments)` and ends the process with its exit status.

    A mistake of the user is printed without a traceback; with VDM_JAX_TRACEBACK=1 in the
    environment, with one.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file's name may hold bytes that are no text: printing it must not end the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(arguments)
    except KeyboardInterrupt:
        print("aborted", file=sys.stderr)
        sys.exit(130)
    except expected_errors() as error:
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
    """Ends this process at once where it is one of several.

    An orderly exit waits for the other processes, and they wait for this one's next step. None
    would be started again before all have timed out.
    """
    if (jax := sys.modules.get("jax")) and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def setup(device: str, processes: argparse.Namespace | None = None, quiet: bool = False) -> None:
    """Prepares JAX: processes, the device that was asked for, the compilation cache, quiet logs.

    Args:
      device: "any" (the best that JAX finds), "cpu", "gpu" or "tpu".
      processes: has the flags of `add_process_arguments`.
      quiet: print nothing; else the first process prints one line that names the devices.

    With JAX_PLATFORMS=proxy it connects to Pathways, whose address is JAX_BACKEND_TARGET.

    Raises ConfigError when the accelerator `device` is missing, or where JAX would compute on the
    CPU of a machine with GPUs without being asked to.
    """
    import absl.flags
    import absl.logging
    import jax

    from vdm_jax.config import ConfigError
    from vdm_jax.parallel import distributed, heap

    absl.logging.set_verbosity(absl.logging.ERROR)
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS([sys.argv[0]])  # the data workers read absl flags
    cpu_is_asked_for = device == "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", "")
    if "proxy" in os.environ.get("JAX_PLATFORMS", ""):
        _connect_to_pathways()
    if device == "cpu" or (device == "any" and _only_cpu()):
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    found = None
    if processes is not None:
        names = ("coordinator", "num_processes", "process_id")
        found = distributed.find(*(getattr(processes, name) for name in names))
    # Calls on the CPU run in the calling thread. In a thread of JAX every call would map its
    # temporaries anew, because that thread's heap holds no large buffer. And several CPU devices
    # share the threads of a process: two concurrent updates could each hold threads that the
    # other's collectives wait for.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _set_cpu_flags()
    distributed.initialize(found)
    try:
        devices = jax.devices() if device == "any" else jax.devices(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r} is asked for, but JAX finds none here: {_first_line(error)}\n"
            f'Install its support (pip install -e ".[{device}]"), or go on without it: '
            "--config.device=cpu where a command has --config, else --device=cpu"
        ) from error
    backend = devices[0].platform
    if device != "any" and jax.default_backend() != backend:
        jax.config.update("jax_default_device", devices[0])
    if backend == "cpu" and not cpu_is_asked_for:
        _refuse_idle_gpus()
    kind = "" if backend == "cpu" else f" {devices[0].device_kind}"
    note = " (no accelerator found)" if device == "any" and backend == "cpu" else ""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(_compilation_cache(backend)))
    if backend == "cpu":
        heap.keep_freed()
    if not quiet and jax.process_index() == 0:
        count = jax.process_count()
        hosts = f" in {count} processes" if count > 1 else ""
        print(f"device: {len(devices)} x {backend}{kind}{hosts}{note}", flush=True)


def _connect_to_pathways() -> None:
    """Makes the devices of Pathways JAX's. Raises ConfigError where its client is not installed."""
    from vdm_jax.config import ConfigError

    try:
        import pathwaysutils
    except ImportError as error:
        raise ConfigError(
            "JAX_PLATFORMS=proxy needs the client of Pathways: pip install '.[pathways]'"
        ) from error
    pathwaysutils.initialize()


def _refuse_idle_gpus() -> None:
    """Raises ConfigError where JAX finds no accelerator, though the machine has GPUs."""
    from vdm_jax.config import ConfigError
    from vdm_jax.parallel import gpus

    if count := gpus.visible():
        raise ConfigError(
            f"nvidia-smi lists {count} GPU{'s' * (count > 1)}, but JAX finds none: CUDA 13 "
            "(extra gpu) needs driver 580 or newer, CUDA 12 (extra gpu12) driver 525. "
            "`bash launch/setup_env.sh gpu` installs the one that fits. To compute on the CPU: "
            "--config.device=cpu where a command has --config, else --device=cpu, or the variable "
            "JAX_PLATFORMS=cpu"
        )


def _only_cpu() -> bool:
    """Whether this machine has only a CPU, as far as installed plugins show.

    Where libtpu is installed for `vdm compile` and there is no TPU, JAX would load it, print a
    page, and keep other processes from loading it.
    """
    from vdm_jax.parallel import topology

    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin")
    installed = [name for name in plugins if importlib.util.find_spec(name)]
    return not (os.environ.get("JAX_PLATFORMS") or installed or topology.on_tpu_host())


def _compilation_cache(backend: str) -> Path:
    """Where compiled programs are kept: on the CPU, one directory for each number of cores.

    JAX would otherwise run a program that was compiled for one core, under taskset say, on a
    machine of many.
    """
    folder = CACHE.expanduser()
    if backend != "cpu":
        return folder
    usable = getattr(os, "sched_getaffinity", None)
    return folder / f"cores_{len(usable(0)) if usable else os.cpu_count()}"


def _set_cpu_flags() -> None:
    """Sets `_CPU_FLAGS` of XLA's CPU backend.

    XLA ends the process at an unknown flag, so they are set for the measured version only. The
    user's own XLA_FLAGS go before them. Without effect once JAX has devices.
    """
    import jaxlib

    if jaxlib.__version__ != _MEASURED_JAXLIB:
        return
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"--{name}={value}" for name, value in _CPU_FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()


def add_model_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that choose a trained model and where it runs."""
    arguments.add_argument(
        "--model",
        metavar="MODEL",
        help="a model that ships with the package (vdm describe lists them), a .safetensors file, "
        "or the working directory of vdm train (default: moving_shapes)",
    )
    arguments.add_argument(
        "--offload",
        action="store_true",
        help="keep frozen networks (autoencoder, text encoder, base) in the host's memory, each on "
        "the device only while it is used; config.mesh.offload in training",
    )
    add_device_arguments(arguments)


def add_device_argument(arguments: argparse.ArgumentParser) -> None:
    """--device alone."""
    arguments.add_argument(
        "--device",
        default="any",
        choices=("any", "cpu", "gpu", "tpu"),
        help="where to compute (default: the best that is found)",
    )


def add_device_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that choose where a trained model runs."""
    add_device_argument(arguments)
    arguments.add_argument(
        "--mesh",
        default="",
        metavar="AXES",
        help="sizes of the mesh's axes, for example fsdp=4,tensor=2 (default: samples are spread "
        "over all devices)",
    )
    add_process_arguments(arguments)


_SAMPLER_NUMBERS = ("steps", "num_frames", "height", "width", "batch_size")
SAMPLER_FLAGS = (*_SAMPLER_NUMBERS, "guidance", "negative", "sampler", "grid")
SAMPLER_FLAGS += ("eta", "churn", "corrector", "reuse", "oscillate_after", "threshold")
SAMPLER_FLAGS += ("guidance_start", "guidance_end")


def add_sampler_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that choose how a model is sampled; `sampler_changes` reads them."""
    helps = (
        "denoising steps*",
        "frames of a clip (default: as trained)",
        "of a clip in pixels (default: as trained)",
        "of a clip in pixels (default: as trained)",
        "clips computed at once*",
    )
    for name, text in zip(_SAMPLER_NUMBERS, helps, strict=True):
        arguments.add_argument(f"--{name}", type=parsing.positive, metavar="N", help=text)
    arguments.add_argument("--guidance", type=float, metavar="G", help="guidance scale; 1 = none*")
    arguments.add_argument(
        "--negative", metavar="TEXT", help="a prompt that guidance leads away from"
    )
    arguments.add_argument(
        "--sampler",
        metavar="NAME",
        help="ddim, ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, euler, heun, flow_euler, "
        "flow_midpoint, flow_heun, unipc, plms, distilled or consistency*",
    )
    arguments.add_argument(
        "--grid",
        metavar="GRID",
        help="spacing of the steps: time, logsnr, karras, trailing, leading; or increasing "
        "log-SNRs: --grid=-8,-2,0,2,inf*",
    )
    for name, text in (
        ("eta", "for ddim: 0 deterministic to 1 ancestral*"),
        ("churn", "for euler and heun: noise added, 0 = none*"),
        ("corrector", "step of a Langevin corrector after each step: 0.1 in VDM, 0 = none*"),
        (
            "reuse",
            "video transformers: a step repeats the last prediction until the embedding of the "
            "noise level has changed by X, such as 0.1; 0 = never (default)",
        ),
    ):
        arguments.add_argument(f"--{name}", type=float, metavar="X", help=text)
    arguments.add_argument(
        "--oscillate_after",
        type=int,
        metavar="N",
        help="steps with guidance G, after which 1 and G take turns (Imagen Video); 0 = always G*",
    )
    for name, when, default in (("start", "before", 0), ("end", "from", 1)):
        arguments.add_argument(
            f"--guidance_{name}",
            type=float,
            metavar="X",
            help=f"share of the steps {when} which there is no guidance, and a step takes half the "
            f"time; default {default}",
        )
    arguments.add_argument(
        "--threshold", metavar="NAME", help="of pixels at each step: none, static or dynamic*"
    )
    arguments.epilog = "* default: the model's own (the section `sample` of its configuration)"


def sampler_changes(options: argparse.Namespace) -> dict:
    """The flags of `add_sampler_arguments` as fields of `sampler.Sampler`; None where a flag is
    missing."""
    return {name: getattr(options, name) for name in SAMPLER_FLAGS}


def add_process_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that connect a process with its peers; not needed on TPU pods and under Slurm."""
    group = arguments.add_argument_group(
        "many processes", "not needed on TPU pods and under Slurm; else each process is given them"
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="process 0 (or VDM_JAX_COORDINATOR)"
    )
    group.add_argument(
        "--num_processes",
        type=parsing.positive,
        metavar="N",
        help="in all (or VDM_JAX_NUM_PROCESSES)",
    )
    group.add_argument(
        "--process_id", type=int, metavar="I", help="0 to N - 1 (or VDM_JAX_PROCESS_ID)"
    )


def add_server_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that choose where a page is served."""
    arguments.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where the page is reached (default 127.0.0.1: from this machine only; 0.0.0.0: from "
        "its network)",
    )
    arguments.add_argument(
        "--port",
        type=parsing.positive,
        metavar="N",
        help="default: the first free one from 7860 on",
    )


def seeds(text: str) -> tuple[int, ...]:
    """An argparse type: integers of at least 0, separated by commas."""
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed, or seeds such as 0,1,2")
    return tuple(map(int, parts))


def add_format_argument(arguments: argparse.ArgumentParser) -> None:
    """The flag --format, of the file of each sample."""
    arguments.add_argument(
        "--format",
        type=_formats,
        default=("mp4",),
        metavar="NAMES",
        help="of each sample's file: mp4 (H.264, default), webm (AV1), gif, webp, png (a folder of "
        "frames), or several, separated by commas",
    )


def _formats(text: str) -> tuple[str, ...]:
    """An argparse type: names of `video_formats.FORMATS`, separated by commas."""
    from vdm_jax.data import video_formats

    names = tuple(dict.fromkeys(text.split(",")))
    if odd := [name for name in names if name not in video_formats.FORMATS]:
        raise argparse.ArgumentTypeError(
            f"{odd[0]!r} is none of {', '.join(video_formats.FORMATS)}"
        )
    return names


def refuse_mesh(parser: argparse.ArgumentParser, options: argparse.Namespace, what: str) -> None:
    """Ends with an error where flags of several devices are given to what runs on one."""
    for name in ("mesh", "coordinator", "num_processes", "process_id"):
        if getattr(options, name) not in (None, ""):
            parser.error(f"--{name} has no meaning for {what}, which runs on one device")


def lora(text: str) -> tuple[str, float]:
    """An argparse type: FILE or FILE:SCALE, as the file and its scale."""
    file, colon, scale = text.rpartition(":")
    if not colon or scale.endswith(".safetensors"):
        return text, 1.0
    try:
        return file, float(scale)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FILE or FILE:SCALE with a number as SCALE"
        ) from None


def load_any(options: argparse.Namespace, loras: Mapping[str, float] | None = None):
    """The model or the cascade of the flags of `add_model_arguments`, laid over the devices as
    `--mesh` says, with LoRA files added. Raises what `pipelines.load` raises."""
    from vdm_jax.cli import kept_models
    from vdm_jax.pipelines import model as pretrained

    source = options.model or pretrained.DEFAULT
    return kept_models.load(source, options.mesh, loras or None, options.offload)


def load_model(options: argparse.Namespace):
    """As `load_any`, for commands that need one model.

    Raises ValueError for a cascade, and what `pretrained.load` raises.
    """
    from vdm_jax.pipelines import model as pretrained

    source = options.model or pretrained.DEFAULT
    if pretrained.find_cascade(source) is not None:
        pretrained.read_config(source)  # refuses it, and names its stages
    return load_any(options)


def greyed(videos: "np.ndarray", known: "np.ndarray") -> "np.ndarray":
    """Videos, uint8 `... h w c`, with grey pixels where `known`, bool `... h w`, is False."""
    import numpy as np

    return np.where(known[..., None], videos, np.uint8(96))


def expected_errors() -> tuple[type[Exception], ...]:
    """What a user's mistake, or a file that is not there, raises: shown without a traceback."""
    errors = [FileNotFoundError, ValueError, FloatingPointError]
    # Only where it has been imported can it have been raised.
    if module := sys.modules.get("vdm_jax.training.checkpoints"):
        errors.append(module.CheckpointError)
    if module := sys.modules.get("vdm_jax.weights.fetch"):
        errors.append(module.WeightsUnavailable)
    return tuple(errors)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
