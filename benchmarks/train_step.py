"""Times one training step and one denoising step, alone or against video-diffusion-pytorch.

    python benchmarks/train_step.py [--peer] [--json FILE] [--rounds 5] [--cores N]

Both sides do the same work: the peer's `Unet3D(dim=32, dim_mults=(1, 2, 4))` and a UNet3D of the
same widths, blocks and attention, a batch of 4 clips of 8 frames of 32 x 32, float32, each
network's parameters and multiply-adds counted from what it runs and printed. They may use the same
cores, and take turns: each round is some steps of one, then of the other, so that a slow spell of
the machine hits both. Warm-up steps (compilation, caches) are not counted.

A training step is forward, loss, backward and the update of the weights, on a batch that is on
the device. Ours also casts from uint8, clips the gradient, checks that it is finite and averages
the weights, as `launch.train` does; the peer runs its own loss and plain Adam. A denoising step is
the network and one step of a sampler (ours DDIM, the peer's p_sample), without guidance.

--peer makes the peer's own environment in benchmarks/.peer (once) and runs it twice: as it
comes, which is what the speed-up is measured against, and with glibc told to keep freed memory,
which PyTorch's large buffers on the CPU gain from.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER_ENVIRONMENT = ROOT / "benchmarks" / ".peer"
PEER_PACKAGES = (
    ("torch==2.13.0", "numpy", "pillow", "tqdm"),
    # Without what they declare: torchvision would bring a CUDA build of torch.
    (
        "--no-deps",
        "video-diffusion-pytorch==0.7.0",
        "einops==0.8.2",
        "einops-exts==0.0.4",
        "rotary-embedding-torch==0.9.1",
    ),
)
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
DIM, DIM_MULTS = 32, (1, 2, 4)
SIZE, FRAMES = 32, 8
WORKS = ("train", "denoise")


class Ours:
    """This package's side: a stage like the peer's network, its train step, its sampler."""

    name = "vdm_jax"

    def __init__(self, batch: int):
        import jax
        import numpy as np

        from vdm_jax.diffusion import samplers
        from vdm_jax.parallel import sharding
        from vdm_jax.training import optimizer, state, step

        self._jax = jax
        config = make_config(batch)
        stage = make_stage(config)
        tx = optimizer.make_optimizer(config.train)
        plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
        self._state = state.create_state(stage, tx, 0, plan)
        self._train_step = step.make_train_step(stage, tx, config, plan)
        clips = np.random.default_rng(0).integers(
            0, 256, (batch, FRAMES, SIZE, SIZE, 3), dtype=np.uint8
        )
        self._batch = {"video": jax.device_put(clips)}

        schedule = stage.process.schedule
        self._logsnrs = samplers.logsnr_grid(schedule, 64)[32:34]
        self._noise = jax.random.normal(jax.random.key(0), clips.shape)
        cond = stage.conditioning(self._batch)
        # A copy: the training step reuses the memory of its own parameters.
        self._params = jax.tree.map(lambda leaf: leaf.copy(), self._state.params)
        rule = samplers.make_rule("ddim")

        @jax.jit
        def denoise(params, key, z):
            denoiser = stage.denoiser(params)
            return samplers.sample(key, denoiser, rule, self._logsnrs, z, cond)

        self._denoise = denoise

        one = self._noise[:1]
        one_cond = jax.tree.map(lambda leaf: leaf[:1], cond)
        forward = jax.make_jaxpr(
            lambda params, z: stage.network.apply(
                {"params": params}, z, self._logsnrs[:1], one_cond
            )
        )(self._params, one)
        self.description = {
            "parameters": state.count_parameters(self._params),
            "flops": count_flops(forward.jaxpr),
            "threads": len(os.sched_getaffinity(0)),
            "device": jax.devices()[0].device_kind,
            "versions": {name: _version(name) for name in ("jax", "jaxlib", "flax", "vdm_jax")},
            "python": platform.python_version(),
        }

    def timed(self, work: str, steps: int) -> list[float]:
        """Seconds of each of `steps` steps."""
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            if work == "train":
                self._state, metrics = self._train_step(self._state, self._batch)
                self._jax.block_until_ready((self._state, metrics))
            else:
                key = self._jax.random.key(0)
                self._jax.block_until_ready(self._denoise(self._params, key, self._noise))
            seconds.append(time.perf_counter() - started)
        return seconds


class Peer:
    """The peer's side: a process of its own environment, asked over pipes."""

    def __init__(self, name: str, python: Path, device: str, batch: int, variables=None):
        self.name = name
        arguments = {"device": device, "dim": DIM, "size": SIZE, "frames": FRAMES, "batch": batch}
        command = [str(python), str(ROOT / "benchmarks" / "peer_worker.py")]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        command += ["--dim_mults", *map(str, DIM_MULTS)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(variables or {})},
        )
        self.description = self._ask("describe")

    def timed(self, work: str, steps: int) -> list[float]:
        """Seconds of each of `steps` steps."""
        return self._ask(work, steps=steps)

    def _ask(self, operation: str, **values) -> Any:
        self._process.stdin.write(json.dumps({"op": operation, **values}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} ended with status {self._process.wait()}: see above")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def make_config(batch: int):
    """The peer's training: Adam at 1e-4. Clipping and averaging are as in the configurations."""
    import ml_collections

    return ml_collections.ConfigDict(
        {
            "train": {
                "steps": 1_000_000,
                "batch_size": batch,
                "seed": 0,
                "learning_rate": 1e-4,
                "warmup_steps": 0,
                "schedule": "constant",
                "beta1": 0.9,
                "beta2": 0.999,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "accumulate": 1,
                "ema_decay": 0.999,
                "cond_dropout": 0.0,
            }
        }
    )


def make_stage(config):
    """A stage whose network has the peer's widths, blocks and attention."""
    from vdm_jax.diffusion import process
    from vdm_jax.models.unet3d import UNet3D
    from vdm_jax.stage import Stage

    network = UNet3D(
        channels=DIM,
        channel_mult=DIM_MULTS,
        num_res_blocks=2,
        attention_levels=tuple(range(len(DIM_MULTS))),
        heads=8,
        head_dim=32,
        spatial_attention="linear",
        skips="level",
        initial_kernel=7,
        initial_temporal=True,
        norm_groups=8,
    )
    return Stage(
        network=network,
        process=process.make_process(
            {"schedule": "cosine", "prediction": "eps", "loss": "eps_mse"}
        ),
        video_shape=(FRAMES, SIZE, SIZE, 3),
        text_encoder=None,
    )


def count_flops(jaxpr) -> int:
    """Floating point operations of the matrix products and convolutions of a traced function.

    Two a multiply-add, the taps in the padding included: as torch's FlopCounterMode counts.
    """
    from math import prod

    total = 0
    for equation in jaxpr.eqns:
        out = prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            taps = prod(kernel) // kernel[features]
            total += 2 * out * taps // prod(equation.params["lhs_dilation"])
        inner = sum(count_flops(sub) for sub in _sub_jaxprs(equation.params))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def _sub_jaxprs(params: dict) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def install_peer() -> Path:
    """The Python of the peer's environment, made on the first call."""
    python = PEER_ENVIRONMENT / "bin" / "python"
    stamp = PEER_ENVIRONMENT / "installed.json"
    if stamp.exists() and stamp.read_text() == json.dumps(PEER_PACKAGES):
        return python
    print(f"installing the peer into {PEER_ENVIRONMENT} (once)")
    subprocess.run([sys.executable, "-m", "venv", "--clear", PEER_ENVIRONMENT], check=True)
    for packages in PEER_PACKAGES:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    stamp.write_text(json.dumps(PEER_PACKAGES))
    return python


def measure(sides: list, rounds: int, steps: dict[str, int], warmup: dict[str, int]) -> dict:
    """{work: {side: seconds of each step, a list a round}}, the sides taking turns."""
    results: dict[str, dict[str, list[list[float]]]] = {}
    for work in WORKS:
        for side in sides:
            side.timed(work, warmup[work])
        results[work] = {side.name: [] for side in sides}
        for number in range(rounds):
            # Every other round backwards: no side always comes after the same one.
            for side in sides if number % 2 == 0 else sides[::-1]:
                results[work][side.name].append(side.timed(work, steps[work]))
            medians = {name: statistics.median(each[-1]) for name, each in results[work].items()}
            shown = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in medians.items())
            print(f"{work} round {number + 1}/{rounds}: {shown}", flush=True)
    return results


def summarise(results: dict, batch: int, ours: str) -> dict:
    """Median, least and greatest seconds, clips/s, and our speed-up, round by round."""
    summary: dict[str, dict[str, Any]] = {}
    for work, sides in results.items():
        own = [statistics.median(each) for each in sides[ours]]
        summary[work] = {}
        for name, per_round in sides.items():
            flat = [seconds for each in per_round for seconds in each]
            medians = [statistics.median(each) for each in per_round]
            ratios = [theirs / mine for theirs, mine in zip(medians, own, strict=True)]
            summary[work][name] = {
                "median_s": statistics.median(flat),
                "min_s": min(flat),
                "max_s": max(flat),
                "clips_per_s": batch / statistics.median(flat),
                "speedup": statistics.median(ratios),
                "speedup_min": min(ratios),
                "speedup_max": max(ratios),
            }
    return summary


def markdown(report: dict) -> str:
    """The report as Markdown: what was compared, where, and a table of the figures."""
    machine, work = report["machine"], report["work"]
    peer = len(report["sides"]) > 1
    lines = [
        f"Training and denoising step, batch {work['batch']}, {work['frames']} frames of "
        f"{work['size']} x {work['size']}, float32, {machine['cores']} cores "
        f"({machine['processor']}), {report['rounds']} rounds by turns, commit "
        f"{report['commit']}, {report['date']}.",
        "",
        "| | parameters | GFLOP a clip, forward | threads | device | versions |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name, side in report["sides"].items():
        versions = ", ".join(f"{package} {found}" for package, found in side["versions"].items())
        lines.append(
            f"| {name} | {side['parameters']:,} | {side['flops'] / 1e9:.2f} | {side['threads']} "
            f"| {side['device']} | Python {side['python']}, {versions} |"
        )
    ratio = " vdm_jax is faster by (range) |" if peer else ""
    lines += [
        "",
        f"| step | side | median s | least to most s | clips/s |{ratio}",
        "|---|---|---:|---:|---:|" + ("---:|" if peer else ""),
    ]
    for step, sides in report["summary"].items():
        for name, row in sides.items():
            line = (
                f"| {step} | {name} | {row['median_s']:.3f} | {row['min_s']:.3f} to "
                f"{row['max_s']:.3f} | {row['clips_per_s']:.2f} |"
            )
            if peer and name == Ours.name:
                line += " |"
            elif peer:
                line += (
                    f" {row['speedup']:.2f} x ({row['speedup_min']:.2f} to "
                    f"{row['speedup_max']:.2f}) |"
                )
            lines.append(line)
    return "\n".join(lines) + "\n"


def refuse_if_busy(limit: float) -> float:
    """The load of the machine; ends the program where it is above `limit`."""
    load = os.getloadavg()[0]
    if load > limit:
        sys.exit(
            f"the machine is busy (load {load:.2f}, more than {limit:g}): figures would mean "
            "nothing; wait, or raise --max_load to try the program out"
        )
    return load


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="store_true", help="also run video-diffusion-pytorch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write FILE and FILE.md")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--batch", type=int, default=4, help="clips, default 4")
    parser.add_argument("--cores", type=int, help="use the first N cores only (default: all)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default cpu")
    parser.add_argument("--peer_python", type=Path, help="a Python that has the peer already")
    parser.add_argument("--max_load", type=float, default=0.5, help="default 0.5")
    options = parser.parse_args()

    load = refuse_if_busy(options.max_load)
    cores = sorted(os.sched_getaffinity(0))
    if options.cores:
        cores = cores[: options.cores]
        os.sched_setaffinity(0, cores)  # inherited by the peer's process
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]

    import launch

    launch.setup(options.device)  # as every command of ours is run
    with contextlib.ExitStack() as stack:
        sides = [Ours(options.batch)]
        if options.peer:
            python = options.peer_python or install_peer()
            kinds: list[tuple[str, dict]] = [("peer", {})]
            if options.device == "cpu":
                kinds.append(("peer, memory kept", KEEP_MEMORY))
            for name, variables in kinds:
                peer = Peer(name, python, options.device, options.batch, variables)
                stack.callback(peer.close)
                sides.append(peer)
        for side in sides:
            described = side.description
            print(
                f"{side.name}: {described['parameters']:,} parameters, "
                f"{described['flops'] / 1e9:.3f} GFLOP a clip forward, "
                f"{described['threads']} threads on {described['device']}"
            )
        results = measure(
            sides,
            options.rounds,
            steps={"train": 2, "denoise": 4},
            warmup={"train": 3, "denoise": 3},
        )

    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": len(cores),
            "platform": platform.platform(),
            "load_before": load,
        },
        "work": {
            "batch": options.batch,
            "frames": FRAMES,
            "size": SIZE,
            "dim": DIM,
            "dim_mults": DIM_MULTS,
            "dtype": "float32",
        },
        "rounds": options.rounds,
        "sides": {side.name: side.description for side in sides},
        "seconds": results,
        "summary": summarise(results, options.batch, Ours.name),
    }
    text = markdown(report)
    print("\n" + text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        options.json.with_suffix(".md").write_text(text)
        print(f"{options.json}\n{options.json.with_suffix('.md')}")


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        import vdm_jax

        return vdm_jax.__version__ if package == "vdm_jax" else "unknown"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + ("-modified" if git("status", "--porcelain", "vdm_jax", "benchmarks") else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
