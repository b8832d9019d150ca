"""The site of docs/ is built without a warning: every link and every docstring can be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    # "dummy" reads everything and writes no page, which takes a third of the time.
    command = [sys.executable, "-m", "sphinx", "-b", "dummy", "-q", "-W", "--keep-going", "-E"]
    command += ["-c", "docs", "."]
    done = subprocess.run(
        [*command, str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
