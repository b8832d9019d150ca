"""`vdm data` and its commands."""

import importlib

from vdm_jax import cli

# The module of each subcommand.
MODULES = {
    "prepare": "prepare_data",
    "show": "show_data",
    "embed": "embed_text",
    "shard": "shard_data",
    "curate": "curate",
    "report": "report_data",
    "elo": "elo",
}
COMMANDS = {
    "prepare": "render, or download, a data set",
    "show": "write a picture of a data set's clips and captions",
    "embed": "embed the captions of a data set by a frozen text encoder",
    "shard": "write a folder of videos as few large files",
    "curate": "make a training set of a folder of films",
    "report": "write the report of a curation, with other ranges of scores",
    "elo": "find a threshold of a score, by votes on samples of small models",
}
_HEAD = """usage: vdm data COMMAND [FLAGS]

Data sets on disk.

commands (vdm data COMMAND --help says more):
"""


def main(arguments: list[str]) -> int:
    name, rest = cli.choose("vdm data", arguments, COMMANDS, _HEAD)
    return importlib.import_module(f"vdm_jax.cli.{MODULES[name]}").main(rest)
