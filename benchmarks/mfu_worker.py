"""One measurement of `benchmarks.mfu` in a process of its own: prints its result as JSON.

What a variant changes is a field of the configuration, a variable of the environment, or one of
`TRIALS`: changes of the code that no configuration has, tried out here before they are built.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY = {
    "model.channels": "16",
    "model.channel_mult": "(1, 2)",
    "model.num_res_blocks": "1",
    "model.attention_levels": "(1,)",
    "model.head_dim": "8",
    "model.norm_groups": "4",
    "model.embedding_dim": "32",
    "data.num_frames": "2",
    "data.image_size": "8",
    "data.image_frames": "0",
}


def cudnn_attention() -> None:
    """jax.nn.dot_product_attention by cuDNN's fused kernels (bfloat16, on a GPU)."""
    import jax

    attend = jax.nn.dot_product_attention
    jax.nn.dot_product_attention = functools.partial(attend, implementation="cudnn")


def norm_in_compute_dtype() -> None:
    """Group normalisation whose output is bfloat16; within it stays float32."""
    import jax.numpy as jnp

    from vdm_jax.models.ops import normalisation

    normalise = normalisation.normalise
    normalisation.normalise = lambda *args: normalise(*args).astype(jnp.bfloat16)


TRIALS = {"cudnn_attention": cudnn_attention, "norm_bf16": norm_in_compute_dtype}


def measure_peak(sizes: tuple[int, ...]) -> dict:
    """FLOP/s of the fastest bfloat16 product of two square matrices of random numbers."""
    import jax
    import jax.numpy as jnp

    multiply = jax.jit(jnp.matmul)
    rates = {}
    for size in sizes:
        keys = jax.random.split(jax.random.key(0))
        a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
        jax.block_until_ready([multiply(a, b) for _ in range(3)])
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            products = [multiply(a, b) for _ in range(10)]
            jax.block_until_ready(products)
            best = min(best, (time.perf_counter() - started) / 10)
        rates[str(size)] = 2 * size**3 / best
    return {"flops_per_s": max(rates.values()), "by_size": rates}


def _timed(make: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and its result."""
    started = time.perf_counter()
    made = make()
    return time.perf_counter() - started, made


def measure_step(config_file: str, overrides: dict[str, str], steps: int, trace: str) -> dict:
    """The project's own training step on random clips that are on the device.

    steps: of them timed; with 0 it is only compiled.
    """
    import jax
    import numpy as np

    from benchmarks.counting import count_by_kind
    from vdm_jax import config as config_lib
    from vdm_jax.parallel import chips, sharding
    from vdm_jax.systems import vdm
    from vdm_jax.training import optimizer, state, step

    config = config_lib.load_config(config_file, overrides)
    stage = vdm.build(config)
    tx = optimizer.make_optimizer(config.train, stage.abstract_params())
    plan = sharding.make_plan(stage, config.mesh)
    size, image_frames = config.train.batch_size, config.data.image_frames
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            name: rng.integers(0, 256, leaf.shape).astype(leaf.dtype)
            for name, leaf in stage.abstract_batch(size, image_frames).items()
        },
        plan.batch,
    )
    train = step.make_train_step(stage, tx, config, plan)
    started = time.perf_counter()
    abstract = (state.abstract_state(stage, tx, plan), batch)
    lowered = train.lower(*abstract)
    lower_s = time.perf_counter() - started
    if steps == 0:
        compile_s, _ = _timed(lowered.compile)
        return {"lower_s": lower_s, "compile_s": compile_s}
    with concurrent.futures.ThreadPoolExecutor(1) as beside:  # minutes, so the state is made beside
        compiling = beside.submit(_timed, lowered.compile)
        init_s, held = _timed(
            lambda: jax.block_until_ready(state.create_state(stage, tx, config.train.seed, plan))
        )
        compile_s, compiled = compiling.result()
    result = {
        "batch": size,
        "image_frames": image_frames,
        "parameters": state.count_parameters(held.params),
        "init_s": init_s,
        "lower_s": lower_s,
        "compile_s": compile_s,
        "flops_per_clip": stage.train_flops(image_frames),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    update = dataclasses.replace(train, compiled=compiled)
    analysis = compiled.memory_analysis()
    result["temporary_bytes"] = getattr(analysis, "temp_size_in_bytes", 0)
    print(f"compiled in {result['compile_s']:.1f} s", file=sys.stderr, flush=True)
    for _ in range(2):
        held, metrics = update(held, batch)
    jax.block_until_ready(held)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        held, metrics = update(held, batch)
        jax.block_until_ready((held, metrics))
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(steps):  # as the loop runs: the host sends the next step while this one runs
        held, metrics = update(held, batch)
    jax.block_until_ready((held, metrics))
    result |= {
        "seconds": (time.perf_counter() - started) / steps,
        "blocking_s": [statistics.median(seconds), min(seconds), max(seconds)],
        "finite": float(metrics["finite"]),
    }
    memory = jax.devices()[0].memory_stats() or {}
    result["peak_bytes"] = memory.get("peak_bytes_in_use", 0)
    known = chips.chip_of_device(result["device"])
    result["published_flops_per_s"] = known.peak_flops_bf16 if known else None
    if trace:
        from benchmarks import trace as trace_lib

        with jax.profiler.trace(trace):
            for _ in range(3):
                held, metrics = update(held, batch)
            jax.block_until_ready((held, metrics))
        flops = count_by_kind(jax.make_jaxpr(train)(*abstract).jaxpr)
        hlo = compiled.as_text()
        Path(trace, "program.txt").write_text(hlo)
        result["executed_flops"] = dict(flops)
        rows = trace_lib.table(Path(trace), hlo, 3, flops)
        result["profile"] = [vars(row) for row in rows]
        result["profile_markdown"] = trace_lib.markdown(rows)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("peak", "compile", "step"), required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--config", default="")
    parser.add_argument("--overrides", type=json.loads, default={})
    parser.add_argument("--trials", nargs="*", default=[], choices=tuple(TRIALS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trace", default="")
    parser.add_argument("--cache", default="")
    options = parser.parse_args()

    answers, sys.stdout = sys.stdout, sys.stderr
    if options.cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = options.cache
    from vdm_jax.cli import common

    common.setup(options.device, quiet=True)
    if options.what == "peak":
        result = measure_peak(tuple(options.sizes))
    else:
        for name in options.trials:
            TRIALS[name]()
        steps = options.steps if options.what == "step" else 0
        result = measure_step(options.config, options.overrides, steps, options.trace)
    print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
