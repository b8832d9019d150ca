"""A tiny model, and the page's logic over it."""

import pytest

from tests.cli.conftest import config_file, model_file  # noqa: F401
from vdm_jax.cli import common
from vdm_jax.studio import jobs, studio_page

PROMPT = "a red square"


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    common.setup("cpu", quiet=True)
    return jobs.Runner(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def studio(runner, model_file):  # noqa: F811
    return studio_page.Studio(runner, [str(model_file)], any_model=False, device="cpu")


@pytest.fixture(scope="module")
def values(model_file):  # noqa: F811
    """The fields of the page that every job has."""
    return {"model": str(model_file), "prompt": PROMPT, "seed": 3, "steps": 4}
