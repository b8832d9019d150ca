"""The clips that are evaluated and the clips that they are held against, with their description."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vdm_jax.data import pipeline
from vdm_jax.data.source import ClipSource, DataError, fit

FILTER = "bicubic, antialiased, of the centre square"  # what `data.source.fit` does


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """Videos with what they are.

    Attributes:
      videos: uint8 n f h w c.
      captions: n texts, or none where nothing is said of them.
      description: of where they come from and how they were cut, for a protocol.
    """

    videos: UInt8[np.ndarray, "n f h w c"]
    captions: Sequence[str]
    description: dict[str, Any]


def from_source(source: ClipSource, count: int | None, seed: int, name: str, split: str) -> Clips:
    """`count` clips of a source, drawn without replacement by `seed`; all of them in order where it
    has no more, or `count` is None."""
    total = len(source)
    chosen = np.arange(total)
    if count is not None and count < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    examples = [source[int(index)] for index in chosen]
    return Clips(
        videos=np.stack([example["video"] for example in examples]),
        captions=[str(example.get("caption", "")) for example in examples],
        description={"data": name, "split": split, "resize": FILTER},
    )


def from_moving_shapes(config: str, split: str, count: int | None) -> Clips:
    """The first clips of the embedded data set, rendered: it need not be prepared."""
    from vdm_jax.data import moving_shapes, shapes

    known = {c.name: c for c in moving_shapes.MovingShapes.BUILDER_CONFIGS}
    if config not in known:
        raise DataError(f"moving_shapes has no {config!r}: allowed are {', '.join(known)}")
    if split not in shapes.SPLITS:
        raise DataError(f"split {split!r}: allowed are {', '.join(shapes.SPLITS)}")
    scenes, videos = zip(*moving_shapes.clips(known[config], split, count), strict=True)
    return Clips(
        videos=np.stack(videos),
        captions=[shapes.make_caption(scene) for scene in scenes],
        description={"data": f"moving_shapes/{config}", "split": split, "resize": "none"},
    )


def of_data(data: ConfigDict, count: int | None, seed: int) -> Clips:
    """Clips of the data set that a configuration's `data` names: of the embedded one those that are
    held out, rendered; of another `count` of its split, drawn by `seed`. Raises DataError."""
    if data.name == "moving_shapes":
        return from_moving_shapes(data.config, "held_out", count)
    return from_source(pipeline.make_source(data), count, seed, data.name, data.split)


def from_path(
    path: str | Path, *, num_frames: int, size: int, stride: int, count: int | None, seed: int
) -> Clips:
    """Clips of anyone's videos: a directory of video files, or an archive of arrays.

    path: a directory below which video files are, or .npz or .npy with `video`, uint8 n f h w c,
    as vdm sample writes it; in a directory samples.npz goes before the files, which lose in
    compression. num_frames, stride: of a clip; a file gives as many as fit into it. size: pixels,
    of the centre square. Raises DataError.
    """
    path = Path(path).expanduser()
    archive = path / "samples.npz" if path.is_dir() else path
    if archive.suffix in (".npz", ".npy") and archive.is_file():
        videos, captions = _archive(archive)
        span = (num_frames - 1) * stride + 1
        if videos.shape[1] < span:
            raise DataError(
                f"{archive}: videos of {videos.shape[1]} frames; {num_frames} frames at a stride "
                f"of {stride} take {span}"
            )
        cut = videos[:, :span:stride]
        chosen = np.arange(len(cut))
        if count is not None and count < len(cut):
            chosen = np.sort(np.random.default_rng(seed).choice(len(cut), count, replace=False))
        cut, captions = cut[chosen], [captions[i] for i in chosen] if captions else []
        if cut.shape[2:4] != (size, size):
            cut = np.stack([fit(clip, size) for clip in cut])
        description = {"data": archive.name, "split": "", "resize": FILTER}
        return Clips(videos=cut, captions=captions, description=description)
    from vdm_jax.data.video_folder import VideoFolder

    if not path.is_dir():
        raise DataError(f"{path}: no directory, and no archive (.npz, .npy) of videos")
    source = VideoFolder(path, num_frames=num_frames, image_size=size, frame_stride=stride)
    return from_source(source, count, seed, path.name, "")


def size_of(path: str | Path) -> tuple[int, int]:
    """(frames, shorter side in square pixels) of the first video at `path` that can be used; see
    `from_path`. Raises DataError."""
    path = Path(path).expanduser()
    archive = path / "samples.npz" if path.is_dir() else path
    if archive.suffix in (".npz", ".npy") and archive.is_file():
        shape = _archive(archive)[0].shape
        return shape[1], min(shape[2:4])
    from vdm_jax.data import video_folder

    files, skipped = video_folder.find_files(path)
    for file in files:
        found = video_folder.look_at(file)[0]
        if isinstance(found, video_folder.VideoFile):
            return found.frames, min(found.index.geometry.upright_size)
        skipped[str(file)] = str(found)
    if not files:
        raise DataError(f"{path}: no samples.npz and no video file in it or below it")
    name, reason = next(iter(skipped.items()))
    raise DataError(f"{path}: none of {len(files)} video files can be used; {name}: {reason}")


def _archive(path: Path) -> tuple[np.ndarray, list[str]]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        videos, captions = loaded, []
    else:
        with loaded:
            if "video" not in loaded:
                raise DataError(f"{path}: holds {', '.join(loaded)}, but no array `video`")
            videos = loaded["video"]
            captions = [str(text) for text in loaded["prompts"]] if "prompts" in loaded else []
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3:
        raise DataError(f"{path}: {videos.dtype}{list(videos.shape)}, not uint8 n f h w 3")
    return videos, captions
