"""The command `vdm`: one file a subcommand. Nothing is imported before a subcommand is chosen."""

import difflib
import importlib
import sys
from collections.abc import Mapping

# The name of a subcommand, which is also its module here, and what it does.
COMMANDS = {
    "train": "train a model, or all stages of a cascade",
    "sample": "sample videos from prompts",
    "edit": "extend, interpolate, inpaint, animate, restyle ... videos with a trained model",
    "distill": "distil a guided model into one that needs few steps and no guidance",
    "evaluate": "measure a model, or videos",
    "tune": "tune an image model on one video, and edit the video by prompts",
    "data": "prepare data sets, and embed their captions",
    "compile": "compile for TPUs or GPUs that are not here: does it fit, how fast can it be",
    "describe": "list configurations and models, or show the network of one configuration",
    "export": "write a trained model as one file",
    "convert": "write a model as a folder that diffusers loads",
    "studio": "a page in the browser that makes and edits videos",
    "watch": "a page in the browser that shows training runs while they go on",
    "gallery": "make a page of what the shipped models can do",
}
_HEAD = """usage: vdm COMMAND [FLAGS]

Video diffusion models in JAX: text in, video out.

commands (vdm COMMAND --help says more, vdm --version which version this is):
"""
_TAIL = """
examples:
  vdm sample --prompt="a red circle moving left"
  vdm sample --model=lumiere_tiny --prompt="a red circle moving left" --out=samples
  vdm train --config=vdm/moving_shapes --workdir=runs/first

--model is always the model that is read (a name, a file, a working directory), --config a
configuration (a name or a file), --workdir where training writes, --out where results go."""


def main(arguments: list[str] | None = None) -> None:
    """Runs `vdm ARGUMENTS` (default: those of this process) and ends the process.

    Where a shell asks for completions (`completion`), it writes these instead.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    from vdm_jax.cli import completion

    if completion.is_wanted():
        completion.run(COMMANDS)
    if arguments and arguments[0] == "--version":
        print(_versions())
        sys.exit(0)
    name, rest = choose("vdm", arguments, COMMANDS, _HEAD, _TAIL)

    from vdm_jax.cli import common

    common.run(importlib.import_module(f"vdm_jax.cli.{name}").main, rest)


def _versions() -> str:
    """One line: the versions of the package and of what it computes with."""
    import platform
    from importlib import metadata

    from vdm_jax import __version__

    others = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax")]
    return f"vdm_jax {__version__} ({', '.join(others)}, Python {platform.python_version()})"


def choose(
    program: str, arguments: list[str], commands: Mapping[str, str], head: str, tail: str = ""
) -> tuple[str, list[str]]:
    """The subcommand that `arguments` begin with, and the arguments that follow.

    commands: names with a line each, for the help. Ends the process after showing help, or with
    status 2 where there is no such subcommand.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, commands)) + 2
        lines = [f"  {name:{width}}{text}" for name, text in commands.items()]
        print("\n".join([head.rstrip("\n"), *lines, *([tail] if tail else [])]))
        sys.exit(0 if arguments else 2)
    if arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], commands, n=1, cutoff=0.0)[0]
        print(
            f"{program}: error: no such command: {arguments[0]}; the nearest is {near} "
            f"({program} --help lists all)",
            file=sys.stderr,
        )
        sys.exit(2)
    return arguments[0], arguments[1:]
