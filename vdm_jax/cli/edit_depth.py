"""Depth for the jobs of `vdm edit` that follow it: of files, or of an estimator."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser) -> None:
    """The flag that says where depth comes from."""
    group = parser.add_argument_group("restructure, and control with --control=depth")
    group.add_argument(
        "--depth",
        action="append",
        default=[],
        metavar="PATH",
        help="the depth of --input: a video or pictures, near bright, .exr files or a .npz of "
        "distances (docs/gen1.md), one PATH for each input; or the folder of an estimator, such as "
        "Depth Anything V2's, for all",
    )


def read_or_estimate(
    paths: Sequence[str], videos: "np.ndarray", fallback: str = ""
) -> "np.ndarray":
    """The depth of videos uint8 `n f h w 3`, uint8 `n f h w 1`, by --depth.

    fallback: the folder of the estimator that is used without the flag; "" = none. Raises
    FileNotFoundError and ValueError, naming the flag.
    """
    import numpy as np

    from vdm_jax.data import depth

    paths = list(paths) or [fallback] * bool(fallback)
    if not paths:
        raise ValueError(
            "--depth: the job follows depth, and there is none: give a file of it, or the folder "
            "of an estimator (config.json, preprocessor_config.json and model.safetensors of "
            "Depth Anything)"
        )
    estimators = [path for path in paths if depth.is_estimator(path)]
    if estimators and len(paths) > 1:
        raise ValueError(f"--depth={estimators[0]}: is an estimator; give it alone")
    if estimators:
        return depth.estimate(paths[0], videos)
    if len(paths) != len(videos):
        raise ValueError(f"--depth: {len(paths)} files, {len(videos)} videos: must be as many")
    count, size = videos.shape[1], videos.shape[2:4]
    return np.stack([depth.read(path, size=size, frames=count) for path in paths])
