"""Parsers of command lines, and what they raise."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from vdm_jax.cli import completion


class UsageError(SystemExit):
    """Flags that do not fit: ends the process with status 2, as argparse does.

    Attributes:
      text: what is wrong, for callers that go on.
    """

    def __init__(self, text: str):
        super().__init__(2)
        self.text = text


class Parser(argparse.ArgumentParser):
    """A parser that completes a line for a shell, and whose help lists a configuration's fields."""

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        """See `ArgumentParser.parse_args`."""
        if completion.is_wanted():
            completion.complete(self)
        arguments = sys.argv[1:] if args is None else list(args)
        if "--config" in self._option_string_actions and {"-h", "--help"} & {*arguments}:
            self.epilog = "\n\n".join(filter(None, [self.epilog, _fields(arguments)]))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise UsageError(message)


def _fields(arguments: Sequence[str]) -> str:
    """The fields of the configuration that a command line names, with their values."""
    from vdm_jax import config as config_lib

    if (named := config_lib.named_config(arguments)) is None:
        return "--config=CONFIG --help lists the fields of a configuration, with their values."
    try:
        config = config_lib.load_config(named)
    except config_lib.ConfigError as error:
        return str(error)
    lines = [f"  --config.{field}={value!r}" for field, value in config_lib.flatten(config)]
    return "\n".join([f"fields of {named}, with their values:", *lines])


def parser(program: str, doc: str) -> argparse.ArgumentParser:
    """A parser that shows `doc` as it is written, and takes no abbreviated flags.

    program: the text that runs it, for the usage line and for errors. It raises UsageError.
    """
    return Parser(
        prog=program,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)
