"""The shell scripts, with a stand-in for Python that records what is installed: no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "chmod", "cksum", "dirname", "echo", "head", "mkdir", "sed", "sort", "tail")
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-c "*) echo "{version}"; [ "{version}" != 3.10 ] ;;
  "--version ") echo "Python {version}" ;;
  "-m venv") mkdir -p "$4/bin" && cat "$0" >"$4/bin/python" && chmod +x "$4/bin/python" ;;
  "-m pip") echo "${{@: -1}}" >>"{log}" ;;
  "-m "*) echo "$PWD: $*" ;;
esac
"""


@pytest.fixture
def repository(tmp_path):
    """A copy of what the scripts need, and a PATH whose only Python is the stand-in."""
    root = tmp_path / "a clone"
    shutil.copytree(ROOT / "launch", root / "launch", ignore=shutil.ignore_patterns("*.py"))
    shutil.copy(ROOT / "setup.py", root)
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    for tool in (*TOOLS, "tr"):
        (bin_directory / tool).symlink_to(shutil.which(tool))
    return root


def add_python(repository, name="python3", version="3.11"):
    python = repository.parent / "bin" / name
    python.write_text(FAKE_PYTHON.format(version=version, log=repository / "pip.log"))
    python.chmod(0o755)


def run(repository, script, *arguments, **variables):
    return subprocess.run(
        ["bash", repository / "launch" / script, *arguments],
        cwd=repository.parent,
        env={"PATH": str(repository.parent / "bin"), "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
    )


def installs(repository):
    log = repository / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "setup_env.sh"])
def test_without_python_one_line_says_which_is_needed(repository, script):
    add_python(repository, "python3", version="3.10")
    done = run(repository, script)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.11 or newer" in done.stderr


def test_a_newer_python_is_found_beside_an_old_one(repository):
    add_python(repository, "python3", version="3.10")
    add_python(repository, "python3.12", version="3.12")
    done = run(repository, "setup_env.sh", "--find-python")
    assert (done.returncode, done.stdout) == (0, "python3.12\n")


def test_an_unsuitable_python_that_was_asked_for_is_not_replaced_silently(repository):
    add_python(repository)
    done = run(repository, "setup_env.sh", PYTHON="/nonexistent/python")
    assert done.returncode != 0
    assert "PYTHON=/nonexistent/python" in done.stderr


def test_installs_once_and_again_only_when_something_changed(repository):
    add_python(repository)
    assert run(repository, "setup_env.sh").returncode == 0
    assert installs(repository) == [str(repository)]

    again = run(repository, "setup_env.sh")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(installs(repository)) == 1

    run(repository, "setup_env.sh", "test")
    run(repository, "setup_env.sh", "test")
    run(repository, "setup_env.sh")
    assert installs(repository)[1:] == [f"{repository}[test]"]

    with (repository / "setup.py").open("a") as file:
        file.write("# changed\n")
    run(repository, "setup_env.sh", "eval")
    assert installs(repository)[2:] == [f"{repository}[eval,test]"]


def test_another_python_version_makes_the_environment_anew(repository):
    add_python(repository)
    add_python(repository, "python3.12", version="3.12")
    run(repository, "setup_env.sh")
    done = run(repository, "setup_env.sh", PYTHON="python3.12")
    assert "Python 3.12" in done.stdout
    assert len(installs(repository)) == 2


def test_a_failed_installation_is_tried_again(repository):
    add_python(repository)
    python = repository.parent / "bin" / "python3"
    working = python.read_text()
    python.write_text(working.replace('"-m pip") echo', '"-m pip") false; exit 1; echo'))
    assert run(repository, "setup_env.sh").returncode != 0
    shutil.rmtree(repository / ".venv")
    python.write_text(working)
    assert run(repository, "setup_env.sh").returncode == 0
    assert len(installs(repository)) == 1


def test_scripts_start_from_the_repository_and_pass_arguments_on(repository):
    add_python(repository)
    done = run(repository, "test.sh", "tests/some dir", "-x")
    assert f"{repository}: -m pytest tests/some dir -x" in done.stdout
    assert installs(repository) == [f"{repository}[test]"]
    done = run(repository, "quickstart.sh", "--minutes", "3")
    first, last = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    # A wrong flag is refused before anything is installed.
    assert first == f"{repository}: -m launch.quickstart --minutes 3 --check"
    assert last == f"{repository}: -m launch.quickstart --minutes 3"


def test_help_installs_nothing(repository):
    add_python(repository)
    done = run(repository, "quickstart.sh", "--help")
    assert "-m launch.quickstart --help" in done.stdout
    for script in ("test.sh", "setup_env.sh"):
        done = run(repository, script, "--help")
        assert done.returncode == 0
        assert f"bash launch/{script} [" in done.stdout and "set -e" not in done.stdout
    assert installs(repository) == []


def test_continuous_integration_calls_exactly_the_test_script():
    text = (ROOT / ".ci" / "run").read_text()
    assert "launch/test.sh" in text
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


SHELLCHECK = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=str(Path(sys.executable).parent)
)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = [*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"]
    subprocess.run([SHELLCHECK, *scripts], check=True)
