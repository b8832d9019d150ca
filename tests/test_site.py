"""The site of docs/ is built without a warning: every link and every docstring can be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-c", "docs", "."]
    done = subprocess.run(
        [*command, str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    page = (tmp_path / "site" / "docs" / "api" / "vdm_jax.stage.sampler.html").read_text()
    assert "How a stage is sampled" in page
    assert (tmp_path / "site" / "index.html").is_file()
