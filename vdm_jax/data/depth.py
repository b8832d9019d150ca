"""Depth of videos, uint8 `f h w 1`, near bright: from files that a user gives, or by an estimator.

Whole numbers, of pictures and videos, are taken as they are: 0 is far, the largest near. Numbers
with a fraction, of OpenEXR and .npz files, are distances: their inverses are scaled so that the
farthest point of a video is 0 and the nearest 255.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from vdm_jax.data import exr, source, video_io
from vdm_jax.stage.depth import DEPTH_ESTIMATOR, DepthEstimator, near_bright
from vdm_jax.stage.space import from_uint8
from vdm_jax.weights import depth_anything

Depth = UInt8[np.ndarray, "f h w 1"]
PICTURES = (".png", ".tif", ".tiff")
SEQUENCES = (".exr", *PICTURES)
# The channel of an OpenEXR file that is taken of several: the last part of its name.
_CHANNELS = ("Z", "Depth", "V", "Y", "R")


def is_estimator(path: str | Path) -> bool:
    """Whether a folder holds an estimator's published files."""
    return (Path(path).expanduser() / "config.json").is_file()


def read(
    path: str | Path, *, size: tuple[int, int] | None = None, frames: int | None = None
) -> Depth:
    """The depth in a file or in a folder of numbered files.

    Args:
      path: a folder of .exr or .png files, one a frame, in the order of their names; one such file;
        a .npz with the array `depth` [f, h, w]; or a video.
      size: (height, width) that every frame is scaled to cover and cut to, around its middle.
      frames: the first of them; None = all.

    Raises FileNotFoundError; ValueError naming the file and what is wrong with it, also for fewer
    frames.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = _sequence(path, frames)
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    elif path.suffix.lower() in SEQUENCES:
        found = _frame(path)[None]
    elif path.suffix == ".npz":
        found = _archive(path)
    else:
        found = video_io.read_video(path, frames=frames)[0].mean(-1).round().astype(np.uint8)
    if frames is not None and len(found) < frames:
        raise ValueError(f"{path}: has {len(found)} frames of depth, and {frames} are needed")
    depth = _near_bright(found[:frames], path)
    return depth if size is None else source.fit(depth, *size)[..., :1]


def estimate(folder: str | Path, videos: UInt8[np.ndarray, "n f h w 3"]) -> Depth:
    """The depth of videos, uint8 `n f h w 1`, by the estimator in a folder. Raises as
    `weights.depth_anything.read_folder`."""
    network, prepare, params = depth_anything.read_folder(folder)
    estimator = DepthEstimator(network=network, prepare=prepare)

    @jax.jit
    def run(params, video):
        return estimator(from_uint8(video)[None], {DEPTH_ESTIMATOR: params})[0]

    return np.stack([_as_bytes(np.asarray(run(params, video))) for video in videos])


def _sequence(folder: Path, frames: int | None) -> Shaped[np.ndarray, "f h w"]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SEQUENCES)
    if not files:
        raise ValueError(
            f"{folder}: neither holds depth, files of {', '.join(SEQUENCES)}, nor an estimator, "
            "config.json and its weights"
        )
    if len(kinds := sorted({file.suffix.lower() for file in files})) > 1:
        raise ValueError(f"{folder}: holds {', '.join(kinds)}: must be files of one kind")
    found = [_frame(file) for file in files[:frames]]
    for file, frame in zip(files, found, strict=False):
        if frame.shape != found[0].shape or frame.dtype != found[0].dtype:
            raise ValueError(
                f"{file}: is {frame.dtype}{list(frame.shape)}, and {files[0].name} "
                f"{found[0].dtype}{list(found[0].shape)}: must be alike"
            )
    return np.stack(found)


def _frame(path: Path) -> Shaped[np.ndarray, "h w"]:
    """One frame: whole numbers of 8 or 16 bits, or distances."""
    if path.suffix.lower() == ".exr":
        return _channel(exr.read(path), path)
    try:
        with Image.open(path) as image:
            if image.mode in ("F", "I") or image.mode.startswith("I;16"):
                pixels = np.asarray(image)
            else:
                pixels = np.asarray(image.convert("L"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error
    if pixels.dtype == np.int32:
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"{path}: has values beyond 16 bits")
        pixels = pixels.astype(np.uint16)
    return pixels


def _channel(channels: dict[str, Float[np.ndarray, "h w"]], path: Path) -> Float[np.ndarray, "h w"]:
    if len(channels) == 1:
        return next(iter(channels.values()))
    for wanted in _CHANNELS:
        names = [name for name in channels if name.rsplit(".", 1)[-1].lower() == wanted.lower()]
        if len(names) == 1:
            return channels[names[0]]
    raise ValueError(
        f"{path}: has the channels {', '.join(channels)}; the one of depth must be the only one, "
        f"or end in {', '.join(_CHANNELS)}"
    )


def _archive(path: Path) -> Shaped[np.ndarray, "f h w"]:
    with np.load(path, allow_pickle=False) as arrays:
        found = arrays.get("depth")
    if found is not None and found.ndim == 4 and found.shape[-1] == 1:
        found = found[..., 0]
    if found is None or found.ndim != 3 or found.dtype.kind not in "uf":
        raise ValueError(
            f"{path}: holds no array depth of [frames, height, width], of uint8 or uint16, near "
            "bright, or of distances with fractions"
        )
    return found


def _near_bright(found: Shaped[np.ndarray, "f h w"], path: Path) -> Depth:
    if found.dtype.kind == "u":
        shift = 8 * (found.dtype.itemsize - 1)
        return (found >> shift).astype(np.uint8)[..., None]
    distance = found.astype(np.float32)
    if not (distance > 0).all():  # NaN is not above 0 either
        raise ValueError(
            f"{path}: depth with fractions is distance, which must be above 0; the least is "
            f"{distance.min():g}"
        )
    inverse = jnp.asarray(1 / distance)[None, ..., None]
    return _as_bytes(np.asarray(near_bright(inverse)[0]))


def _as_bytes(depth: Float[np.ndarray, "f h w 1"]) -> Depth:
    return np.rint(255 * depth).astype(np.uint8)
