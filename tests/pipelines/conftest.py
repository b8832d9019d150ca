"""The fixtures of `tests/tiny_stage.py`."""

from tests.tiny_stage import *  # noqa: F403
