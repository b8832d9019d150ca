"""Describes the network of a configuration: parameters, and a table a level.

    python -m launch.describe --config=configs/vdm/t2v_large.py [--json] [--config.F=V ...]

Shapes only: nothing is allocated or compiled, so a network of billions takes seconds. FLOPs are
of one evaluation of one video.
"""

import dataclasses
import json
import sys

import launch


def main(arguments: list[str]) -> int:
    parser = launch.parser("python -m launch.describe", __doc__)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a configuration, such as configs/vdm/moving_shapes.py",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with key `parameters`")

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    config = config_lib.load_config(options.config, overrides)
    report = describe(config)
    if options.json:
        print(json.dumps({"config": options.config, **report}, indent=2))
        return 0

    from rich.console import Console
    from rich.table import Table

    frames, height, width, _ = report["video_shape"]
    table = Table(title=f"{options.config}: {frames} frames of {height} x {width}")
    columns = ("level", "resolution", "channels", "attention", "parameters", "GFLOPs")
    for column in columns:
        table.add_column(column, justify="left" if column == "level" else "right", no_wrap=True)
    for row in report["levels"]:
        table.add_row(
            str(row["level"]),
            row["resolution"],
            str(row["channels"]),
            row["attention"],
            f"{row['parameters']:,}",
            f"{row['flops'] / 1e9:,.2f}",
        )
    table.add_row("total", "", "", "", f"{report['parameters']:,}", f"{report['flops'] / 1e9:,.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"parameters: {report['parameters']:,}")
    return 0


def describe(config) -> dict:
    """{"parameters", "flops", "video_shape", "levels": the rows of the table} of a configuration.

    `parameters` is counted from the shapes of the stage's real initialisation.
    """
    import jax
    import numpy as np

    from vdm_jax import systems
    from vdm_jax.models import flops
    from vdm_jax.training import state

    jax.config.update("jax_platforms", "cpu")  # evaluating shapes wants no accelerator
    stage = systems.build(config)
    cond = {} if stage.text_encoder is None else dict(stage.encode_prompts([""]))
    if stage.num_labels:
        cond["label"] = np.zeros(1, np.int32)
    levels = flops.level_table(stage.network, stage.video_shape, cond)
    params = jax.eval_shape(stage.init, jax.random.key(0))
    return {
        "parameters": state.count_parameters(params),
        "flops": sum(row.flops for row in levels),
        "video_shape": list(stage.video_shape),
        "levels": [dataclasses.asdict(row) for row in levels],
    }


if __name__ == "__main__":
    launch.run(main)
