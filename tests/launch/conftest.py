"""The configuration that the command lines are tested with."""

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    return tiny.write_config(tmp_path_factory.mktemp("data"))
