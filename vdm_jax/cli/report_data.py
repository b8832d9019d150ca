"""Writes the report of a curation: every score's histogram, with clips from its least value to its
greatest.

    vdm data report --out=DIR
    vdm data report --out=DIR --config.keep.motion=0.3: --config.keep.sharpness=200:

DIR is the folder of vdm data curate, which writes the report too. With ranges (config.keep) the
report shows what they would keep. The table and the shards stay as they are until vdm data curate
runs with the same ranges.
"""

from vdm_jax.cli import parsing
from vdm_jax.cli.curate import check_installed


def main(arguments: list[str]) -> int:
    from vdm_jax import config as config_lib

    parser = parsing.parser("vdm data report", __doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="of vdm data curate")
    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    check_installed()

    from vdm_jax.data.curation import curate

    changes = {}
    for field, text in overrides.items():
        section, _, name = field.partition(".")
        if section != "keep" or not name:
            raise config_lib.ConfigError(
                f"--config.{field}: the report takes config.keep.SCORE only; what is measured is "
                "set with vdm data curate"
            )
        changes[name] = text
    path, kept, total = curate.write_report(options.out, changes)
    print(f"{path}: {kept} of {total} clips are kept")
    return 0
