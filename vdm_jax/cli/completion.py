"""Completion of `vdm` in a shell, by argcomplete: `eval "$(register-python-argcomplete vdm)"`.

The shell then calls `vdm` with the line so far in COMP_LINE. Commands, flags and their choices come
from the parsers, configurations and models from their folders, and the fields of a configuration
from the configuration.
"""

import argparse
import importlib
import os
from collections.abc import Mapping
from pathlib import Path

COMPLETING = "_ARGCOMPLETE"  # the variable that the shell sets: the number of the first word


def is_wanted() -> bool:
    """Whether a shell asks for completions in the place of running the command."""
    return COMPLETING in os.environ


def run(first: Mapping[str, str]) -> None:
    """Writes the completions of the line and ends the process. first: the commands of `vdm`."""
    from argcomplete import lexers

    data = importlib.import_module("vdm_jax.cli.data")
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    _, prefix, _, words, _ = lexers.split_line(line)
    levels = [{**first, "--version": "", "--help": ""}, data.COMMANDS]
    depth, module = 0, ""
    for depth, commands in enumerate(levels, 1):
        if len(words) <= depth:
            _complete_command(commands, depth)
        name = words[depth]
        if name not in commands or name.startswith("--"):
            os._exit(0)
        module = name if depth == 1 else data.MODULES[name]
        if name != "data":
            break
    os.environ[COMPLETING] = str(depth + 1)
    if prefix.startswith("--config."):
        _complete_fields(words, depth)
    importlib.import_module(f"vdm_jax.cli.{module}").main([])  # its parser calls `complete`


def complete(parser: argparse.ArgumentParser) -> None:
    """Writes the completions of a command's flags and ends the process."""
    import argcomplete

    for action in parser._actions:
        if action.dest in ("config", "model"):
            action.completer = _Names(action.dest)
    argcomplete.autocomplete(parser, always_complete_options="long")


class _Names:
    """Names that ship with the package, and files."""

    def __init__(self, kind: str):
        self._kind = kind

    def __call__(self, prefix: str, **_) -> list[str]:
        from argcomplete.completers import FilesCompleter

        return [*names(self._kind), *FilesCompleter()(prefix)]


def names(kind: str) -> list[str]:
    """What --config or --model can name, read from folders: JAX is not imported."""
    from vdm_jax import config

    if kind == "config":
        return config.config_names()
    folder = Path(config.__file__).parent / "checkpoints"
    files = [path.with_suffix("") for path in folder.rglob("*.safetensors")]
    found = [path.relative_to(folder) for path in [*files, *folder.iterdir()]]
    return sorted({path.with_suffix("").as_posix() for path in found})


def _complete_command(commands, depth: int) -> None:
    import argcomplete

    os.environ[COMPLETING] = str(depth)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("command", choices=list(commands))
    argcomplete.autocomplete(parser)
    os._exit(0)


def _complete_fields(words: list[str], depth: int) -> None:
    """The fields of the configuration that the line names."""
    import argcomplete

    from vdm_jax import config

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    if named := config.named_config(words[depth + 1 :]):
        try:
            for field, _ in config.flatten(config.load_config(named)):
                parser.add_argument(f"--config.{field}")
        except config.ConfigError:
            pass
    argcomplete.autocomplete(parser, always_complete_options="long")
    os._exit(0)
