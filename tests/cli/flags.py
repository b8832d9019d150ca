"""The flags of all commands, read from their parsers, as the table of docs/commands.md.

python -m tests.cli.flags    writes the table anew
"""

import argparse
import contextlib
import importlib
import io
from pathlib import Path

from vdm_jax import cli
from vdm_jax.cli import data

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
_HEAD = "| flag | what it sets | commands |\n|---|---|---|\n"


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command. Its main is called with --help alone."""
    modules = {f"vdm {name}": name for name in cli.COMMANDS if name != "data"}
    modules |= {f"vdm data {name}": module for name, module in data.MODULES.items()}
    found: dict[str, argparse.ArgumentParser] = {}

    def keep(parser: argparse.ArgumentParser, *args) -> None:
        found[parser.prog] = parser

    original = argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = keep
    try:
        for module in modules.values():
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(f"vdm_jax.cli.{module}").main(["--help"])
    finally:
        argparse.ArgumentParser.print_help = original
    return {name: found[name] for name in modules}


def flags() -> dict[str, dict[str, argparse.Action]]:
    """Each flag's action by command."""
    found: dict[str, dict[str, argparse.Action]] = {}
    for command, parser in parsers().items():
        for action in parser._actions:
            for name in action.option_strings:
                if name not in ("-h", "--help"):
                    found.setdefault(name, {})[command] = action
    return dict(sorted(found.items()))


def table() -> str:
    """The table in Markdown: a row a flag, with the help of the first command that has it."""
    rows = []
    for name, commands in flags().items():
        action = next(iter(commands.values()))
        kind = action.metavar or " or ".join(map(str, action.choices or ()))
        value = f" {kind}" if kind else ""
        what = (action.help or "").replace("|", "\\|")
        names = ", ".join(command.removeprefix("vdm ") for command in commands)
        rows.append(f"| `{name}{value}` | {what} | {names} |")
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(_HEAD)] + table())
