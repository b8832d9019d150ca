"""Completion, as a shell asks for it; versions; help that lists a configuration's fields."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vdm_jax
from vdm_jax import cli
from vdm_jax import config as config_lib
from vdm_jax.cli import completion, describe, train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def complete(tmp_path):
    def complete(line):
        """The completions of a line, as the functions of register-python-argcomplete get them."""
        answer = tmp_path / "answer"
        environment = {
            **os.environ,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        }
        program = "import sys; from vdm_jax import cli\ncli.main([])"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True
        )
        assert done.returncode == 0 and not done.stdout, done.stderr
        return answer.read_text().split("\n")

    return complete


def test_commands_and_flags_are_completed(complete):
    assert complete("vdm sa") == ["sample"]
    assert {"prepare", "curate"} <= {*complete("vdm data ")}
    assert {"--sampler", "--format"} <= {*complete("vdm sample --prompt='a b' --")}
    assert {"extend", "stylise"} <= {*complete("vdm edit ")}
    assert complete("vdm describe --sha") == ["--sharding"]
    assert complete("vdm sample --device=c") in (["cpu"], ["--device=cpu"])


def test_names_and_fields_are_completed(complete):
    assert "moving_shapes_8step" in "".join(complete("vdm sample --model moving_shapes_8"))
    assert complete("vdm train --config vdm/own_v") == ["vdm/own_videos"]
    fields = complete("vdm train --config=vdm/own_videos --config.train.mom")
    assert fields == ["--config.train.moment_dtype"]


def test_names_are_those_that_can_be_loaded():
    from vdm_jax.pipelines import model

    assert {*model.shipped_names(), *model.shipped_cascades()} <= {*completion.names("model")}
    assert completion.names("config") == config_lib.config_names()


def test_the_command_says_its_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.split()
    assert words[:2] == ["vdm_jax", vdm_jax.__version__] and "(jax" in words
    assert f'version="{vdm_jax.__version__}"' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("main", [train.main, describe.main])
def test_help_lists_the_fields_of_the_configuration(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--config=vdm/own_videos", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for field, value in config_lib.flatten(config_lib.load_config("vdm/own_videos")):
        assert f"--config.{field}={value!r}" in printed
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--config=CONFIG --help lists the fields" in capsys.readouterr().out
