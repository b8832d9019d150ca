"""The memory that `vdm describe --memory` estimates of an update, against that of the compiled one.

    python -m benchmarks.memory --config=vdm/moving_shapes --config=latent_image/scenes

Prints a table. Figures of the CPU's compiler, which has no device of its own to fit.
"""

import argparse
import time

from vdm_jax.cli import common, describe_memory


def main() -> None:
    from vdm_jax import config as config_lib

    overrides, rest = config_lib.split_overrides(_arguments())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", required=True, metavar="CONFIG")
    options = parser.parse_args(rest)
    common.setup("cpu", quiet=True)
    print("| configuration | estimate, MiB | compiled, MiB | activations | in all |")
    print("|---|---:|---:|---:|---:|")
    for named in options.config:
        print(row(named, overrides), flush=True)


def row(named: str, overrides: dict[str, str]) -> str:
    """A row of the table: sizes, and by how much the estimate is off."""
    from vdm_jax import config as config_lib

    found = describe_memory.need(named, overrides, "train")
    update, arguments = describe_memory.training(config_lib.load_config(named, overrides))
    started = time.monotonic()
    # Buffers are laid out before code is made of the program, which takes most of the time.
    quick = {"xla_backend_optimization_level": "0"}
    memory = update.lower(*arguments).compile(compiler_options=quick).memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    activations = memory.temp_size_in_bytes + outputs
    total = memory.argument_size_in_bytes + activations
    return (
        f"| {named} | {found.total / 2**20:,.1f} | {total / 2**20:,.1f} "
        f"| {found.activations / activations - 1:+.0%} | {found.total / total - 1:+.0%} |"
        f" <!-- compiled in {time.monotonic() - started:.0f} s -->"
    )


def _arguments() -> list[str]:
    import sys

    return sys.argv[1:]


if __name__ == "__main__":
    main()
