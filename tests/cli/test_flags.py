"""One name a meaning, over all commands."""

import pytest

from tests.cli import flags
from vdm_jax import cli

# --out is a folder or a file; --data of a picture may name a split too; vdm sample takes several
# seeds at once.
SEVERAL_KINDS = {"--data", "--out", "--seed"}


@pytest.fixture(scope="module")
def found():
    return flags.flags()


def test_every_command_has_a_parser(found):
    commands = {command for actions in found.values() for command in actions}
    assert {f"vdm {name}" for name in cli.COMMANDS if name != "data"} <= commands


def test_a_flag_takes_the_same_kind_of_value_everywhere(found):
    for name, actions in found.items():
        kinds = {(a.metavar, type(a), getattr(a.type, "__name__", "")) for a in actions.values()}
        assert len(kinds) == 1 or name in SEVERAL_KINDS, f"{name}: {kinds}"


def test_every_flag_has_a_help(found):
    for name, actions in found.items():
        for command, action in actions.items():
            assert action.help, f"{command} {name}"


def test_the_table_in_the_docs_is_that_of_the_parsers():
    assert flags.PAGE.read_text().endswith("\n" + flags.table()), (
        "docs/commands.md is out of date: python -m tests.cli.flags writes it anew"
    )
