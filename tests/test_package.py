"""The metadata of a built package."""

import os
import re
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("url", ["", "https://example.org/vdm_jax"])
def test_metadata_of_a_wheel(url, tmp_path):
    """The description has no relative link, which an index would show as a dead one."""
    environment = {**os.environ, "VDM_JAX_URL": url}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = Parser().parsestr((tmp_path / "vdm_jax.egg-info" / "PKG-INFO").read_text())
    assert found["Author"] and "Apache-2.0" in (found["License-Expression"], found["License"])
    assert found["Requires-Python"] == ">=3.11"
    links = re.findall(r"\]\(([^)]+)\)", found.get_payload())
    assert all(link.startswith(("https://", "#")) for link in links)
    names = ("Home-page", "Project-URL")
    named = [value for name, value in found.items() if name in names and value]
    if url:
        assert url in named and f"{url}/blob/HEAD/docs/sampling.md" in "\n".join(links)
        assert f"{url}/raw/HEAD/docs/media/moving_shapes.gif" in links
    else:
        assert not named
