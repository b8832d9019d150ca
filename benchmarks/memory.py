"""The memory that `vdm describe --memory` estimates of an update, against that of the real one.

    python -m benchmarks.memory --config=vdm/moving_shapes --config=latent_image/scenes

Prints a table. "compiled" is what the CPU's compiler lays out. "held" is measured: the most
resident memory while this process runs two updates, above what it held before their arguments were
made (Linux). The two updates have made-up numbers, so no data and no weights are needed.
"""

import argparse
import time
from typing import Any

from vdm_jax.cli import common, describe_memory


def main() -> None:
    from vdm_jax import config as config_lib

    overrides, rest = config_lib.split_overrides(_arguments())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", required=True, metavar="CONFIG")
    options = parser.parse_args(rest)
    common.setup("cpu", quiet=True)
    print("| configuration | estimate, MiB | compiled, MiB | held, MiB | estimate off by |")
    print("|---|---:|---:|---:|---:|")
    for named in options.config:
        print(row(named, overrides), flush=True)


def row(named: str, overrides: dict[str, str]) -> str:
    """A row of the table: sizes, and by how much the estimate is off what was held."""
    from vdm_jax import config as config_lib

    found = describe_memory.need(named, overrides, "train")
    update, arguments = describe_memory.training(config_lib.load_config(named, overrides))
    started = time.monotonic()
    # Buffers are laid out before code is made of the program, which takes most of the time.
    quick = {"xla_backend_optimization_level": "0"}
    compiled = update.lower(*arguments).compile(compiler_options=quick)
    seconds = time.monotonic() - started
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs
    held = held_bytes(compiled, (*arguments, update.frozen))
    sizes = " | ".join(f"{size / 2**20:,.1f}" for size in (found.total, total, held))
    off = f"{found.total / held - 1:+.0%}"
    return f"| {named} | {sizes} | {off} | <!-- compiled in {seconds:.0f} s -->"


def held_bytes(compiled: Any, shapes: tuple[Any, Any, Any]) -> int:
    """The most memory that two updates hold, their arguments included.

    shapes: of the state, the batch and the frozen parameters.
    """
    from benchmarks import serving
    from vdm_jax.parallel import heap

    # Once before: threads, the program's code and the like are read at the first call, and stay.
    _run(compiled, _arrays(shapes))
    heap.trim()
    before = serving.resident()
    arguments = _arrays(shapes)
    heap.trim()  # what making them left would be filled first, and not be seen
    serving.reset_peak()
    _run(compiled, arguments)
    return serving.peak_resident() - before


def _run(compiled: Any, arguments: list[Any]) -> None:
    """Two updates. `arguments` is emptied: the state's memory is the first update's."""
    import jax

    state, batch, frozen = arguments
    arguments.clear()
    for _ in range(2):
        state, metrics = compiled(state, batch, frozen)
        jax.block_until_ready((state, metrics))


def _arrays(shapes: Any) -> list[Any]:
    import jax

    return list(jax.tree.map(_array, shapes))


def _array(shaped: Any) -> Any:
    """An array of a shape. Its pages are written: memory that is only asked for is not held."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    if jax.dtypes.issubdtype(shaped.dtype, jax.dtypes.extended):
        made = jnp.broadcast_to(jax.random.key(0), shaped.shape)
    else:
        made = jnp.array(np.ones(shaped.shape, shaped.dtype))  # a copy, which can be donated
    return jax.device_put(made, shaped.sharding)


def _arguments() -> list[str]:
    import sys

    return sys.argv[1:]


if __name__ == "__main__":
    main()
