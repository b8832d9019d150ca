"""What README and docs tell a reader to type exists: commands, flags, configurations and fields."""

import importlib
import importlib.util
import re
from pathlib import Path

import jax
import pytest

from tests import documents
from vdm_jax import cli
from vdm_jax import config as config_lib
from vdm_jax.cli import completion, data, parsing

VDM = documents.commands(("vdm",))
SCRIPTS = documents.commands(("bash",))
MODULES = documents.commands(("python -m", ".venv/bin/python -m"))


class Parsed(Exception):
    """A parser took its command line."""


def _parse(words, monkeypatch):
    """The options of a vdm command, from its real parser; nothing is run."""
    original = parsing.Parser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    monkeypatch.setattr(parsing.Parser, "parse_args", parse_args)
    name, rest = words[1], list(words[2:])
    module = name
    if name == "data":
        module, rest = data.MODULES[rest[0]], rest[1:]
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"vdm_jax.cli.{module}").main(rest)
    return parsed.value.args[0]


def test_the_documents_have_commands():
    assert len(VDM) > 80 and len(SCRIPTS) > 8 and len(MODULES) > 5
    named = {command.words[1] for command in VDM}
    assert named >= {*cli.COMMANDS}, "a command that no page shows"


@pytest.mark.parametrize("command", VDM, ids=lambda command: command.where)
def test_a_documented_command_is_one(command, monkeypatch, capsys):
    words = list(command.words)
    if len(words) == 1 or documents.is_place(words[1]) or words[1].startswith("--"):
        assert words[1:] in ([], ["--version"], ["--help"]) or documents.is_place(words[1])
        return
    assert words[1] in cli.COMMANDS
    if words[1] == "data" and (len(words) == 2 or documents.is_place(words[2])):
        return
    if len(words) == 2 or "--help" in words:
        return
    # A reader's number or seed stands where a parser reads one.
    words = [re.sub(r"=(N|X|[A-Z]+_?N)$", "=1", word) for word in words]
    overrides, _ = config_lib.split_overrides(words)
    try:
        options = _parse(words, monkeypatch)
    except SystemExit:
        error = capsys.readouterr().err
        if not command.whole and "the following arguments are required" in error:
            return
        pytest.fail(f"{' '.join(words)}\n{error}")
    _check_config(getattr(options, "config", None), overrides)
    model = getattr(options, "model", None)
    if model and not documents.is_place(model) and not model.endswith(".safetensors"):
        assert model in completion.names("model"), f"no model {model} ships"


def _check_config(named, overrides):
    """The configuration exists, and has the fields, of which placeholders are left out."""
    if not named or documents.is_place(named) or named.endswith("mine.py"):
        return
    fields = {n: value for n, value in overrides.items() if not documents.is_place(value)}
    config_lib.find_config(named)
    config = config_lib.load_config(named)
    if "stages" in config:
        path, _ = config_lib.find_config(named)
        config = config_lib.load_config(path.parent / f"{config.stages[0]}.py")
    for field, text in fields.items():
        config_lib.override(config, field, text)


@pytest.mark.parametrize("command", SCRIPTS, ids=lambda command: command.where)
def test_a_documented_script_has_these_flags(command):
    script = next(word for word in command.words[1:] if not word.startswith("-"))
    if documents.is_place(script) or not script.endswith(".sh"):
        return
    path = documents.ROOT / script
    assert path.is_file()
    text = path.read_text()
    for word in command.words[command.words.index(script) + 1 :]:
        if word == "--":
            break
        if word.startswith(("--config", "--workdir")):
            continue  # passed on to vdm train
        if word.startswith("--"):
            assert word.split("=")[0] in text, f"{script} has no flag {word}"


@pytest.mark.parametrize("command", MODULES, ids=lambda command: command.where)
def test_a_documented_module_is_there(command):
    name = command.words[command.words.index("-m") + 1]
    found = importlib.util.find_spec(name)
    assert found is not None, f"no module {name}"
    if not name.startswith(("benchmarks", "tests", "vdm_jax")):
        return
    folders = found.submodule_search_locations or [str(Path(found.origin).parent)]
    folder = "\n".join(file.read_text() for file in Path(folders[0]).glob("*.py"))
    for word in command.words[command.words.index(name) + 1 :]:
        if word.startswith("--"):
            flag = word.split("=")[0]
            assert f'"{flag}"' in folder or f'"{flag[2:]}"' in folder, f"{name} has no {flag}"


@pytest.mark.parametrize(("where", "program"), documents.python_blocks())
def test_documented_python_imports_what_there_is(where, program):
    compile(program, where, "exec")
    imports = re.findall(r"^(?:import|from) .*(?:\((?:[^)]*)\))?$", program, re.MULTILINE)
    exec("\n".join(imports), {})


@pytest.mark.slow
def test_python_of_the_readme_runs():
    scope: dict = {}
    for where, program in documents.python_blocks():
        if where.startswith(("README.md", "docs/sampling.md")):
            exec(program.replace("64)", "2)").replace("steps=32", "steps=2"), scope)
    assert scope["video"].shape[1:] == (8, 16, 16, 3) and scope["jax"] is jax
