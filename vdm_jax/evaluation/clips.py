"""The clips that are evaluated and the clips that they are compared with, with their description.

A directory or an archive is first listed (`open_path`): names, frame rates and what cannot be used.
Clips are then drawn at random (`from_path`) or paired by name (`paired`), and only those are read.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vdm_jax.data import pipeline
from vdm_jax.data.source import ClipSource, DataError, fit
from vdm_jax.data.video_folder import VideoFolder

FILTER = "bicubic, antialiased, of the centre square"  # what `data.source.fit` does
UNCHANGED = "none"  # pixels as they are stored
_MOST_NAMED = 10  # names in a message
_SAME_RATE = 0.01  # relative difference below which two frame rates are one

Videos = UInt8[np.ndarray, "n f h w c"]
Size = int | tuple[int, int]  # pixels: of a square, or height and width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """Videos with what they are.

    Attributes:
      videos: uint8 n f h w c.
      captions: n texts, or none where the source has no captions.
      description: of where they come from and how they were cut, for a protocol: data, split,
        resize.
      names: n names, by which clips of two sets are paired; none where the order pairs them.
      labels: n numbers of classes, or none.
      fps: the lowest and the highest frame rate of the source, before the stride; None = unknown.
      left_out: files that were not used, with the reason.
    """

    videos: Videos
    captions: Sequence[str]
    description: dict[str, Any]
    names: Sequence[str] = ()
    labels: Sequence[int] = ()
    fps: tuple[float, float] | None = None
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The clips at a path, not read yet.

    Attributes:
      names: of each clip the name of its file (relative path without suffix; of an archive the
        number of the clip) and its place among the clips of that file.
      captions: one a clip, or none.
      rates: frames a second of each clip's source, 0 = unknown.
      lengths: frames of each clip's source.
      left_out: files that give no clip, with the reason.
      description: as of `Clips`.
      numbered: whether names are the numbers of an archive's clips.
      read: the video of one clip, uint8 f h w c. Raises DataError.
    """

    names: Sequence[tuple[str, int]]
    captions: Sequence[str]
    rates: Sequence[float]
    lengths: Sequence[int]
    left_out: Mapping[str, str]
    description: dict[str, Any]
    numbered: bool
    read: Callable[[int], UInt8[np.ndarray, "f h w c"]]

    def clips(self, chosen: Sequence[int], strict: bool = False) -> Clips:
        """The chosen clips. Files that turn out to be damaged are left out, or, with `strict`, are
        an error. Raises DataError."""
        videos, kept, left_out = [], [], dict(self.left_out)
        for index in map(int, chosen):
            try:
                videos.append(self.read(index))
                kept.append(index)
            except DataError as error:
                if strict:
                    raise
                left_out[self.names[index][0]] = str(error)
        if not kept:
            raise DataError(f"{self.description['data']}: no clip can be read. {told(left_out)}")
        rates = [self.rates[index] for index in kept]
        return Clips(
            videos=np.stack(videos),
            captions=[self.captions[index] for index in kept] if self.captions else [],
            description=self.description,
            names=[f"{name}, clip {place + 1}" for name, place in (self.names[i] for i in kept)],
            fps=(min(rates), max(rates)) if rates and min(rates) > 0 else None,
            left_out=left_out,
        )


def told(left_out: Mapping[str, str]) -> str:
    """What was left out and why, in one line; "" for nothing."""
    return _shortened([f"{name} ({why})" for name, why in left_out.items()])


def height_width(size: Size) -> tuple[int, int]:
    """Height and width of a size."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def crop_of(height: int, width: int) -> str:
    """How frames of another shape are cut to this one, for a protocol."""
    return "centre square" if height == width else f"centre, {height} x {width}"


def filter_of(height: int, width: int) -> str:
    """The filter that `data.source.fit` resizes to this shape with, for a protocol."""
    return FILTER if height == width else f"bicubic, antialiased, of the centre {height} x {width}"


def from_source(source: ClipSource, count: int | None, seed: int, name: str, split: str) -> Clips:
    """`count` clips of a source, drawn without replacement by `seed`; all of them in order where it
    has no more, or `count` is None."""
    if isinstance(source, VideoFolder):  # a damaged file is left out, not replaced
        return _drawn(_folder(source, name, split), count, seed)
    examples = [source[index] for index in _chosen(len(source), count, seed)]
    height, width = source.video_shape[1:3]
    return Clips(
        videos=np.stack([example["video"] for example in examples]),
        captions=[str(example.get("caption", "")) for example in examples],
        description={"data": name, "split": split, "resize": filter_of(height, width)},
        labels=[int(example["label"]) for example in examples if "label" in example],
    )


def from_rendered(
    name: str, config: str, split: str, count: int | None, *, frames: bool = False
) -> Clips:
    """The first clips of an embedded data set, rendered: it need not be prepared.

    frames: of each clip one frame, with its own caption; only of data sets that have those.
    Raises DataError.
    """
    from vdm_jax.data import shapes, tfds_source

    builder = tfds_source.make_builder(name, config)
    if split not in shapes.SPLITS:
        raise DataError(f"split {split!r}: allowed are {', '.join(shapes.SPLITS)}")
    render = builder.rendered_frames if frames else builder.rendered
    videos, captions = zip(*render(split, count), strict=True)
    config = builder.builder_config.name
    return Clips(
        videos=np.stack(videos),
        captions=list(captions),
        description={"data": f"{name}/{config}", "split": split, "resize": UNCHANGED},
    )


def from_data(data: ConfigDict, count: int | None, seed: int) -> Clips:
    """Clips of the data set that a configuration's `data` names: of an embedded one those that are
    held out, rendered; of another `count` of its split, drawn by `seed`. Raises DataError."""
    from vdm_jax.data import tfds_source

    if tfds_source.is_rendered(data.name):
        frames = tfds_source.single_frames(data.name, data.num_frames)
        return from_rendered(data.name, data.config, "held_out", count, frames=frames)
    return from_source(pipeline.make_source(data), count, seed, data.name, data.split)


def from_path(
    path: str | Path,
    *,
    num_frames: int,
    size: Size,
    stride: int,
    count: int | None,
    seed: int,
    fps: float = 0.0,
) -> Clips:
    """`count` clips of anyone's videos, drawn by `seed`; all of them where `count` is None.

    The arguments and errors are those of `open_path`.
    """
    listing = open_path(path, num_frames=num_frames, size=size, stride=stride, fps=fps)
    return _drawn(listing, count, seed)


def open_path(
    path: str | Path, *, num_frames: int, size: Size, stride: int, fps: float = 0.0
) -> Listing:
    """Lists the clips of a directory of video files, or of an archive of arrays.

    path: a directory below which video files are, or .npz or .npy with `video`, uint8 n f h w c,
    as vdm sample writes it; in a directory samples.npz goes before the files, which lose in
    compression. num_frames, stride: of a clip; a file gives as many as fit into it. size: pixels,
    of the centre. fps: the rate that files, and archives with `fps`, are brought to before the
    stride; 0 = their own. Raises DataError.
    """
    path = Path(path).expanduser()
    height, width = height_width(size)
    archive = path / "samples.npz" if path.is_dir() else path
    if archive.suffix in (".npz", ".npy") and archive.is_file():
        return _archive_listing(archive, num_frames, (height, width), stride, fps)
    if not path.is_dir():
        raise DataError(f"{path}: no directory, and no archive (.npz, .npy) of videos")
    source = VideoFolder(
        path,
        num_frames=num_frames,
        image_size=height,
        image_width=width,
        frame_stride=stride,
        fps=fps,
    )
    return _folder(source, path.name, "")


def paired(
    ours: Listing, theirs: Listing, count: int | None, seed: int
) -> tuple[Clips, Clips, list[str]]:
    """Clips of two listings that show the same, `count` pairs drawn by `seed`, and remarks.

    Files pair by relative path without suffix, and an archive's clips by number and caption. An
    archive pairs with files whose names begin with the numbers, as vdm sample names them. Of two
    files of different length the clips that both have are paired, and a remark says so.

    Raises DataError, with the names, for what has no counterpart, for captions or frame rates that
    differ, and for names that are there twice.
    """
    places = []
    for one, other, side in ((ours, theirs, "samples"), (theirs, ours, "references")):
        places.append(_by_name(one, one.numbered or other.numbered, side))
    only = [sorted({name for name, _ in a} - {name for name, _ in b}) for a, b in _both(places)]
    if only[0] or only[1]:
        parts = []
        for names, side, other in zip(only, ("samples", "references"), (theirs, ours), strict=True):
            # The other side has the file, but no clip of it.
            why = {_stem(name): reason for name, reason in other.left_out.items()}
            shown = [f"{name} ({why[name]})" if name in why else name for name in names]
            parts += [f"only in the {side}: {_shortened(shown)}"] if names else []
        raise DataError(
            f"samples and references do not pair by name; {'; '.join(parts)}. Remove or replace "
            "these, or choose fewer frames a clip (--num_frames)"
        )
    common = sorted(set(places[0]) & set(places[1]), key=lambda name: places[0][name])
    lengths = {
        name: (ours.lengths[places[0][name, place]], theirs.lengths[places[1][name, place]])
        for name, place in common
    }
    odd = [f"{name} ({a} and {b})" for name, (a, b) in lengths.items() if a != b]
    remarks = []
    if odd:
        remarks.append(
            "files of different length, in samples and references, of which only the clips that "
            f"both have are compared: {_shortened(odd)} frames"
        )
    chosen = [common[index] for index in _chosen(len(common), count, seed)]
    first, second = ([mine[name] for name in chosen] for mine in places)
    _check_pairs(ours, theirs, chosen, first, second)
    a, b = ours.clips(first, strict=True), theirs.clips(second, strict=True)
    return a, dataclasses.replace(b, names=a.names), remarks


def check_rates(ours: Clips, theirs: Clips) -> None:
    """Raises DataError where the frame rates of two sets are known and have nothing in common."""
    if ours.fps is None or theirs.fps is None:
        return
    for slow, fast in ((ours.fps, theirs.fps), (theirs.fps, ours.fps)):
        if slow[1] * (1 + _SAME_RATE) < fast[0]:
            raise DataError(
                f"samples have {rate_text(ours.fps)} frames a second, references "
                f"{rate_text(theirs.fps)}: the same motion would differ; --fps=N brings the files "
                "of both to one rate"
            )


def rate_text(fps: tuple[float, float]) -> str:
    """A frame rate, or the lowest and the highest of several."""
    low, high = fps
    return f"{low:.5g}" if high <= low * (1 + _SAME_RATE) else f"{low:.5g} to {high:.5g}"


def size_of(path: str | Path, stride: int = 1, fps: float = 0.0) -> tuple[int, int, int]:
    """(frames, height, width) of a clip of the videos at `path`; see `open_path`.

    frames: as many as half of the videos or more have, at this stride and rate; height and width:
    of the first video. Raises DataError.
    """
    path = Path(path).expanduser()
    archive = path / "samples.npz" if path.is_dir() else path
    if archive.suffix in (".npz", ".npy") and archive.is_file():
        videos, _, rate = _archive(archive)
        _, frames, height, width, _ = videos.shape
        frames = int((frames - 1) * (fps / rate if fps and rate else 1.0) + 1e-6) + 1
        return (frames - 1) // stride + 1, height, width
    if not path.is_dir():
        raise DataError(f"{path}: no directory, and no archive (.npz, .npy) of videos")
    files = VideoFolder(path, num_frames=1, image_size=8).files
    lengths = [
        int((file.frames - 1) * (fps / file.fps if fps else 1.0) + 1e-6) + 1 for file in files
    ]
    frames = sorted(lengths)[(len(lengths) - 1) // 2]  # one odd file does not decide for all
    return (frames - 1) // stride + 1, *files[0].index.geometry.upright_size


def _chosen(total: int, count: int | None, seed: int) -> Sequence[int]:
    if count is None or count >= total:
        return range(total)
    found = np.random.default_rng(seed).choice(total, count, replace=False)
    return [int(index) for index in np.sort(found)]


def _drawn(listing: Listing, count: int | None, seed: int) -> Clips:
    return listing.clips(_chosen(len(listing.names), count, seed))


def _folder(source: VideoFolder, name: str, split: str) -> Listing:
    root, files = Path(source.directory), [source.file_of(index) for index in range(len(source))]
    places: collections.Counter = collections.Counter()
    names = []
    for file in files:
        stem = _stem(_below(file.path, root))
        names.append((stem, places[file.path]))
        places[file.path] += 1
    height, width = source.video_shape[1:3]
    return Listing(
        names=names,
        captions=[str(source.captions_of(index)[0]) for index in range(len(source))],
        rates=[source.fps or file.fps for file in files],
        lengths=[file.frames for file in files],
        left_out={_below(path, root): why for path, why in source.skipped.items()},
        description={"data": name, "split": split, "resize": filter_of(height, width)},
        numbered=False,
        # Another clip in the place of a damaged one would be another figure, and a wrong pair.
        read=lambda index: source.read_undamaged(index)["video"],
    )


def _archive_listing(
    path: Path, num_frames: int, size: tuple[int, int], stride: int, fps: float
) -> Listing:
    videos, captions, rate = _archive(path)
    step = stride * (rate / fps if rate and fps else 1.0)
    places = np.floor(np.arange(num_frames) * step + 1e-6).astype(int)
    if videos.shape[1] <= places[-1]:
        raise DataError(
            f"{path}: videos of {videos.shape[1]} frames; {num_frames} frames at a stride "
            f"of {step:.4g} take {places[-1] + 1}"
        )
    same = videos.shape[2:4] == size
    return Listing(
        names=[(str(index), 0) for index in range(len(videos))],
        captions=captions,
        rates=[(fps or rate) if rate else 0.0] * len(videos),
        lengths=[videos.shape[1]] * len(videos),
        left_out={},
        description={
            "data": path.name,
            "split": "",
            "resize": UNCHANGED if same else filter_of(*size),
        },
        numbered=True,
        read=lambda index: videos[index, places] if same else fit(videos[index, places], *size),
    )


def _archive(path: Path) -> tuple[np.ndarray, list[str], float]:
    """The videos of an archive, their captions (or none) and frame rate (0 = unknown)."""
    loaded = np.load(path, allow_pickle=False)
    captions, rate = [], 0.0
    if isinstance(loaded, np.ndarray):
        videos = loaded
    else:
        with loaded:
            if "video" not in loaded:
                raise DataError(f"{path}: holds {', '.join(loaded)}, but no array `video`")
            videos = loaded["video"]
            captions = [str(text) for text in loaded["prompts"]] if "prompts" in loaded else []
            rate = float(loaded["fps"]) if "fps" in loaded else 0.0
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3:
        raise DataError(f"{path}: {videos.dtype}{list(videos.shape)}, not uint8 n f h w 3")
    if captions and len(captions) != len(videos):
        raise DataError(f"{path}: {len(captions)} prompts, {len(videos)} videos: must be as many")
    if not 0 <= rate < np.inf:
        raise DataError(f"{path}: fps = {rate}: must be 0 (unknown) or more")
    return videos, captions, rate


def _by_name(listing: Listing, numbers: bool, side: str) -> dict[tuple[str, int], int]:
    """The place of each (file, clip of it) in the listing; with `numbers` files by the number that
    their name begins with."""
    found: dict[tuple[str, int], int] = {}
    for index, (name, place) in enumerate(listing.names):
        if numbers:
            match = re.match(r"\d+", Path(name).name)
            if match is None:
                raise DataError(
                    f"{side}: {name} does not begin with a number, so it pairs with no clip of an "
                    "archive"
                )
            name = str(int(match.group()))
        if (name, place) in found:
            raise DataError(f"{side}: two files are called {name}, so neither can be paired")
        found[name, place] = index
    return found


def _both(places: list[dict]) -> tuple[tuple[dict, dict], tuple[dict, dict]]:
    return (places[0], places[1]), (places[1], places[0])


def _check_pairs(ours: Listing, theirs: Listing, names, first, second) -> None:
    """Raises DataError where a pair differs in caption (of archives) or in frame rate."""
    pairs = list(zip(names, first, second, strict=True))
    captions = ours.numbered and theirs.numbered and ours.captions and theirs.captions
    other = [n for (n, _), i, j in pairs if captions and ours.captions[i] != theirs.captions[j]]
    if other:
        raise DataError(
            f"samples and references do not pair: captions differ of clips {_shortened(other)}"
        )
    rates = [(n, ours.rates[i], theirs.rates[j]) for (n, _), i, j in pairs]
    other = [
        f"{name} ({a:.5g} and {b:.5g})"
        for name, a, b in rates
        if min(a, b) > 0 and max(a, b) > min(a, b) * (1 + _SAME_RATE)
    ]
    if other:
        raise DataError(
            f"samples and references have other frame rates: {_shortened(other)}; --fps=N brings "
            "the files of both to one rate"
        )


def _below(path: str, root: Path) -> str:
    """The path as it is named below a folder."""
    found = Path(path)
    return (found.relative_to(root) if found.is_relative_to(root) else found).as_posix()


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
