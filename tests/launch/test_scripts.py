"""The shell scripts, with a stand-in for Python that records what is installed: no network."""

import ast
import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    *("bash", "cat", "chmod", "cksum", "cmp", "cp", "dirname", "echo", "head", "mkdir", "mktemp"),
    *("rm", "sed", "sort", "tail", "touch", "tr"),
)
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-c "*) echo "{version}"; [ "{version}" != 3.10 ] ;;
  "--version ") echo "Python {version}" ;;
  "-m venv") mkdir -p "$4/bin" && cat "$0" >"$4/bin/python" && chmod +x "$4/bin/python" ;;
  "-m pip") echo "${{@: -1}}" >>"{log}"; echo "$*" >>"{log}.all" ;;
  "-m uv") for file in "$@"; do [ "$before" = --output-file ] && break; before="$file"; done
    echo "pins: $(cat "$file")"; printf "new==1\\n" >>"$file" ;;
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
    for tool in TOOLS:
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


# A driver's tool as its versions print: `-L` lists, and a query answers with a line a GPU.
NVIDIA_SMI = """#!/usr/bin/env bash
case "$1" in
  -L) for i in 0 1; do echo "GPU $i: NVIDIA H100 80GB HBM3 (UUID: GPU-$i)"; done ;;
  --query-gpu=driver_version) for i in 0 1; do echo "{driver}"; done ;;
esac
"""


def add_nvidia_smi(repository, driver):
    file = repository.parent / "bin" / "nvidia-smi"
    file.write_text(NVIDIA_SMI.format(driver=driver))
    file.chmod(0o755)


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
    sleep = repository.parent / "bin" / "sleep"
    sleep.write_text(f"#!/usr/bin/env bash\necho $1 >>'{repository}/pauses.log'\n")
    sleep.chmod(0o755)
    python.write_text(working.replace('"-m pip") echo', '"-m pip") false; exit 1; echo'))
    done = run(repository, "setup_env.sh")
    assert done.returncode == 75  # what schedulers read as: start it again
    assert "3 tries failed" in done.stderr
    assert (repository / "pauses.log").read_text().split() == ["10", "20"]
    # The network is back at the second try.
    (repository / ".venv" / "bin" / "python").write_text(
        working.replace(
            '"-m pip") echo', f'"-m pip") [ -s "{repository}/pauses.log" ] || exit 1; echo'
        )
    )
    (repository / "pauses.log").unlink()
    assert run(repository, "setup_env.sh").returncode == 0
    assert (repository / "pauses.log").read_text().split() == ["10"]
    assert len(installs(repository)) == 1


def test_every_installation_has_the_versions_of_the_constraints(repository):
    add_python(repository)
    constraints = repository / "launch" / "constraints.txt"
    run(repository, "setup_env.sh", "test")
    calls = repository / "pip.log.all"
    assert f"--constraint {constraints} -e" in calls.read_text()
    constraints.write_text("jax==0.10.3\n")  # updated: installed again
    run(repository, "setup_env.sh")
    assert installs(repository) == [f"{repository}[test]"] * 2
    run(repository, "setup_env.sh", VDM_JAX_CONSTRAINTS="")
    assert "--constraint" not in calls.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    "driver, extra",
    [("580.65.06", "gpu"), ("595.10", "gpu"), ("570.172.08", "gpu12"), ("535.247.01", "gpu12")],
)
def test_the_driver_decides_which_cuda_is_installed(repository, driver, extra):
    add_python(repository)
    add_nvidia_smi(repository, driver)
    assert run(repository, "setup_env.sh", "--find-gpu").stdout == f"{extra}\n"
    run(repository, "setup_env.sh")
    assert installs(repository) == [f"{repository}[{extra}]"]
    # An extra gpu means the one that fits, and nothing is new.
    assert run(repository, "setup_env.sh", "gpu").returncode == 0
    assert len(installs(repository)) == 1


def test_a_driver_that_no_cuda_fits_is_an_error_where_a_gpu_is_asked_for(repository):
    add_python(repository)
    add_nvidia_smi(repository, "470.256.02")
    done = run(repository, "setup_env.sh", "gpu")
    assert done.returncode != 0 and "driver 525 or newer; this machine has 470" in done.stderr
    assert installs(repository) == []
    done = run(repository, "setup_env.sh")
    assert done.returncode == 0 and "this machine has 470" in done.stderr
    assert installs(repository) == [str(repository)]


def test_one_cuda_takes_the_place_of_the_other(repository):
    add_python(repository)
    add_nvidia_smi(repository, "570.172.08")
    run(repository, "setup_env.sh")
    add_nvidia_smi(repository, "580.65.06")  # a newer driver
    run(repository, "setup_env.sh", "gpu")
    calls = (repository / "pip.log.all").read_text()
    assert "uninstall --quiet --yes jax-cuda12-plugin jax-cuda12-pjrt" in calls
    assert installs(repository)[-1] == f"{repository}[gpu]"


def test_one_command_updates_the_constraints(repository):
    add_python(repository)
    constraints = repository / "launch" / "constraints.txt"
    pins = [line for line in constraints.read_text().splitlines() if not line.startswith("#")]
    done = run(repository, "update_constraints.sh", "--check")
    assert done.returncode == 1 and "is not what setup.py leads to" in done.stderr
    assert "new==1" not in constraints.read_text()
    done = run(repository, "update_constraints.sh")
    assert done.returncode == 0, done.stderr
    # The resolver was given the old pins, and what it wrote is in the file.
    assert done.stdout.startswith(f"pins: {pins[0]}\n{pins[1]}\n")
    lines = constraints.read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [*pins, "new==1"]


def pinned():
    """{name: version} of launch/constraints.txt."""
    lines = (ROOT / "launch" / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(len(each.specifier) == 1 for each in found)
    return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in found}


def test_the_constraints_pin_what_setup_asks_for_in_every_extra():
    calls = []
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = {"install_requires", "extras_require"}
    scope = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):  # JAX, TPU_COMPILER
            exec(compile(ast.Module([node], []), "setup.py", "exec"), scope)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in names:
            calls.append(eval(compile(ast.Expression(node.value), "setup.py", "eval"), scope))
    required, extras = calls
    for older in ("beam", "studio"):  # they ask for older versions of what everything else uses
        del extras[older]
    everything = [Requirement(text) for text in [*required, *sum(extras.values(), [])]]
    assert len(everything) > 30 and "gpu12" in extras
    pins = pinned()
    for each in everything:
        version = pins.get(canonicalize_name(each.name))
        assert version, f"launch/constraints.txt lacks {each.name}"
        assert each.specifier.contains(version), f"{each.name}=={version} is not {each}"


def test_the_environment_has_the_pinned_versions():
    """That of setup_env.sh: what the tests passed with is what users get."""
    stamp = Path(sys.prefix) / "vdm_jax.stamp"
    if not stamp.exists() or os.environ.get("VDM_JAX_CONSTRAINTS") == "":
        pytest.skip("made by hand, or with the newest versions")
    current = (ROOT / "setup.py").read_bytes() + (ROOT / "launch" / "constraints.txt").read_bytes()
    cksum = subprocess.run(["cksum"], input=current, capture_output=True).stdout.decode().strip()
    if not stamp.read_text().splitlines()[0].endswith(f" {cksum}"):
        pytest.skip("made before the constraints were updated: bash launch/setup_env.sh")
    wrong = []
    for name, version in pinned().items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if (installed := importlib.metadata.version(name)) != version:
                wrong.append(f"{name} {installed}, pinned is {version}")
    assert not wrong


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
    for script in ("test.sh", "setup_env.sh", "update_constraints.sh"):
        done = run(repository, script, "--help")
        assert done.returncode == 0
        assert f"bash launch/{script} [" in done.stdout and "set -e" not in done.stdout
    assert installs(repository) == []


def test_an_image_holds_nothing_that_git_ignores():
    """Above all no .venv of this machine, and still vdm_jax/data."""

    def patterns(name):
        lines = (ROOT / name).read_text().splitlines()
        return {line for line in lines if line and not line.startswith("#")}

    # A slash at the start: only there. In .dockerignore that is the rule, and **/ the exception.
    expected = {
        line.strip("/") if line.startswith("/") else f"**/{line.rstrip('/')}"
        for line in patterns(".gitignore")
    }
    assert patterns(".dockerignore") == expected | {".git"}


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
