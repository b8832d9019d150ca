"""Command lines: `python -m launch.NAME --help`.

What all of them share is here. Heavy imports are inside the functions: `--help` answers at once,
and the worker processes of the data pipeline, which import the module that was launched, start
without JAX.
"""

import argparse
import importlib.util
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CACHE = Path("~/.cache/vdm_jax/xla")
# A run that was told to stop (SIGTERM, a preemption notice) and saved: the same command goes on.
# EX_TEMPFAIL of sysexits.h; launch/supervise.sh starts it again.
PREEMPTED = 75
# A GIF of more clips than this is not looked at any more; the MP4s and the npz are always complete.
AT_A_GLANCE = 64
_MEASURED_JAXLIB = "0.10.2"
_CPU_FLAGS = {
    # YNNPACK for products and sums only: a convolution's gradient by its kernel takes it two to
    # seven times as long as Eigen.
    "xla_cpu_experimental_ynn_fusion_type": ("LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"),
    # Operations in the order that holds least memory: a sixth less, for 4% of the time.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
}
_LEAST_SIDE = 64  # pixels, of a clip in the GIF


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


def run(main: Callable[[list[str]], int | None], arguments: list[str]) -> None:
    """Runs `main(arguments)` as a process: a mistake of the user is told without a traceback.

    With VDM_JAX_TRACEBACK=1 in the environment it is told with one.
    """
    try:
        code = main(arguments)
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
    from vdm_jax.parallel import distributed, heap

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
    # Calls of the CPU run in the thread that makes them. In one of JAX's they would have their
    # temporaries mapped anew each time: the heap of a thread holds no large buffer. And of several
    # CPU devices, which share the threads of a process, two updates under way at once could each
    # hold threads that the other's collectives wait for.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _set_cpu_flags()
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
        jax.config.update("jax_compilation_cache_dir", str(_compilation_cache(backend)))
    if backend == "cpu":
        heap.keep_freed()
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


def _compilation_cache(backend: str) -> Path:
    """Where compiled programs are kept: on the CPU apart for each number of cores.

    JAX would find a program that was compiled for one core, under taskset say, and run it on one
    of many.
    """
    folder = CACHE.expanduser()
    if backend != "cpu":
        return folder
    usable = getattr(os, "sched_getaffinity", None)
    return folder / f"cores_{len(usable(0)) if usable else os.cpu_count()}"


def _set_cpu_flags() -> None:
    """Sets `_CPU_FLAGS` of XLA's CPU backend.

    XLA ends the process at a flag that it does not know, so only the version that was measured is
    told; what the user's own XLA_FLAGS say of a flag stays. Without effect once JAX has devices.
    """
    import jaxlib

    if jaxlib.__version__ != _MEASURED_JAXLIB:
        return
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"--{name}={value}" for name, value in _CPU_FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()


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


_SAMPLER_NUMBERS = ("steps", "num_frames", "batch_size")
_SAMPLER_FLAGS = (*_SAMPLER_NUMBERS, "guidance", "sampler", "grid", "eta", "churn", "corrector")


def add_sampler_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that choose how a model is sampled; `sampler_changes` reads them."""
    helps = (
        "denoising steps*",
        "of a clip (default: as trained)",
        "clips computed at once*",
    )
    for name, text in zip(_SAMPLER_NUMBERS, helps, strict=True):
        arguments.add_argument(f"--{name}", type=positive, metavar="N", help=text)
    arguments.add_argument("--guidance", type=float, metavar="G", help="guidance scale; 1 = none*")
    arguments.add_argument(
        "--sampler",
        metavar="NAME",
        help="ddim, ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, euler, heun, flow_euler, "
        "flow_midpoint, flow_heun, distilled or consistency*",
    )
    arguments.add_argument(
        "--grid",
        metavar="GRID",
        help="spacing of the steps: time, logsnr, karras, trailing, leading; or increasing "
        "log-SNRs: --grid=-8,-2,0,2,inf*",
    )
    for name, text in (
        ("eta", "of ddim: 0 deterministic to 1 ancestral*"),
        ("churn", "of euler and heun: noise added, 0 = none*"),
        ("corrector", "step of a Langevin corrector after each step: 0.1 in VDM, 0 = none*"),
    ):
        arguments.add_argument(f"--{name}", type=float, metavar="X", help=text)
    arguments.epilog = "* default: what the model's configuration says (its section `sample`)"


def sampler_changes(options: argparse.Namespace) -> dict:
    """What `add_sampler_arguments`'s flags were given, as fields of `sampling.Sampler`; None where
    a flag was not."""
    return {name: getattr(options, name) for name in _SAMPLER_FLAGS}


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
    from vdm_jax.parallel import mesh
    from vdm_jax.pipelines import model as pretrained

    if options.workdir is not None and not Path(options.workdir).is_dir():
        raise FileNotFoundError(f"--workdir={options.workdir}: there is no such directory")
    source = options.workdir or options.model or pretrained.DEFAULT
    return pretrained.load(source, mesh=mesh.parse_mesh(options.mesh))


def cascade_steps(path: str, overrides: dict[str, str], workdir: str) -> list:
    """The stages of the cascade's configuration at `path`, whose models are in `workdir`."""
    from vdm_jax import config as config_lib
    from vdm_jax.pipelines import cascade as cascade_sampling

    config = config_lib.load_config(path, overrides)
    if "stages" not in config:
        raise config_lib.ConfigError(f"--cascade={path}: is no cascade (has no field stages)")
    steps = []
    for name in config.stages:
        folder, file = Path(workdir) / name, Path(workdir) / f"{name}.safetensors"
        if not folder.is_dir() and not file.is_file():
            raise FileNotFoundError(
                f"stage {name}: neither {folder} nor {file} is there; train it first: "
                f"python -m launch.train_cascade --cascade={path} --workdir={workdir}"
            )
        source = folder if folder.is_dir() else file
        changes = config.sample[name].to_dict() if name in config.sample else {}
        steps.append(cascade_sampling.CascadeStep(name=name, source=str(source), changes=changes))
    return steps


def greyed(videos: "np.ndarray", known: "np.ndarray") -> "np.ndarray":
    """Videos, uint8 `... h w c`, to be looked at: grey where `known`, bool `... h w`, is False."""
    import numpy as np

    return np.where(known[..., None], videos, np.uint8(96))


def write_samples(
    out: Path, batches: Iterable["np.ndarray"], prompts: Sequence[str], fps: float
) -> "np.ndarray":
    """Writes videos, uint8 `n f h w c` a batch, as they come, and prints what was written.

    OUT receives an MP4 a sample, samples.gif, contact_sheet.png and samples.npz: `video`, uint8
    b f h w c, and `prompts`, b texts. Returns the videos.
    """
    import numpy as np

    from vdm_jax.data import video_io

    videos = []
    for video in itertools.chain.from_iterable(batches):
        slug = re.sub(r"[^a-z0-9]+", "_", prompts[len(videos)].lower()).strip("_")[:60]
        video_io.write_mp4(out / f"{len(videos):04d}_{slug}.mp4", video, fps=fps)
        videos.append(video)
    videos = np.stack(videos)
    watchable = video_io.enlarge(videos[:AT_A_GLANCE], _LEAST_SIDE)
    gif = video_io.write_gif(out / "samples.gif", video_io.grid(watchable), fps=fps)
    numbered = [f"{index:04d} {prompt}" for index, prompt in enumerate(prompts)]
    sheet = video_io.contact_sheet(out / "contact_sheet.png", videos, numbered)
    np.savez_compressed(out / "samples.npz", video=videos, prompts=np.array(prompts, dtype=str))
    total = len(videos)
    some = f" (the first {AT_A_GLANCE} of {total})" if total > AT_A_GLANCE else ""
    even = f" ({video_io.SHEET_CLIPS} of {total}, evenly chosen)"
    print(f"{gif}{some}\n{sheet}{even if total > video_io.SHEET_CLIPS else ''}")
    print(f"{out / 'samples.npz'}\n{out}/*.mp4: {total} clips")
    return videos


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
    if module := sys.modules.get("vdm_jax.weights.fetch"):
        errors.append(module.WeightsUnavailable)
    return tuple(errors)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
