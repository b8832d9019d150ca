"""docs/pods.md: what the paper-scale configurations take on TPU pods, compiled for each of them.

python -m launch.compile --pages
"""

import functools
from pathlib import Path

from launch import compile as compile_

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pods.md"
TOPOLOGIES = ("v5e:8x8", "v5p:4x4x4", "v6e:8x8")
# Networks of the paper, and one beyond it. kinetics600 has the network of ucf101.
CONFIGS = ("bair", "t2v_small", "ucf101", "t2v_large", "t2v_5b")
KEEP_ALL = {"model.remat": "none"}
SPREAD_CLIPS_ONLY = {"mesh.data": "-1", "mesh.fsdp": "1"}
SMALL_BATCH = {"train.batch_size": "8"}


def requests(effort: str) -> list[compile_.Request]:
    """The rows of the page, in order."""
    make = functools.partial(compile_.Request, effort=effort)
    rows = [
        make(config=f"configs/vdm/{name}.py", topology=topology)
        for name in CONFIGS
        for topology in TOPOLOGIES
    ]
    large = "configs/vdm/t2v_large.py"
    return [
        *rows,
        make(config=large, topology="v5p:4x4x4", overrides=KEEP_ALL),
        make(config=large, topology="v5e:8x8", overrides=SPREAD_CLIPS_ONLY),
        make(config="configs/vdm/t2v_5b.py", topology="v5e:2x4", overrides=SMALL_BATCH),
        make(config=large, topology="v5e:2x4", what="sample"),
    ]
