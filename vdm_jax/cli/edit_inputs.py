"""The videos that `vdm edit` is given, in the size and at the frame rate that a job needs."""

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdm_jax.cli import edit_files, parsing

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import Model
    from vdm_jax.stage.sampler import Sampler
    from vdm_jax.stage.stage import Stage

FROM_A_STILL = ("animate", "cinemagraph")  # need no more than the first frame
# Settings of models that take an image as a condition.
STILL_SETTINGS = ("fps", "motion_bucket", "augmentation")
STILL_FLAGS = (*STILL_SETTINGS, "decode_frames")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a job begins with.

    Attributes:
      videos: uint8 `n f h w c`; None = nothing was given, and clips are sampled first.
      prompts: one a video.
      fps: of the result.
      rate: of `videos`, frames a second.
      notes: lines that say what was done to frame rates.
    """

    videos: "np.ndarray | None"
    prompts: list[str]
    fps: float
    rate: float
    notes: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Read:
    """A video that was read: uint8 `f h w c`; its frame rate, 0 = not known; its prompt, if any."""

    video: "np.ndarray"
    fps: float
    prompt: str | None = None


def add_still_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `animate` with a model that takes an image as a condition."""

    group = parser.add_argument_group("animate, with a model that takes an image as a condition")
    for name, text in (
        ("fps", "frames a second, of models that take them (Stable Video Diffusion: 7)"),
        ("motion_bucket", "how much moves, 0 to 255 (127)"),
        ("augmentation", "noise on the picture (0.02)"),
    ):
        group.add_argument(f"--{name}", type=float, metavar="X", help=text)
    group.add_argument(
        "--decode_frames",
        type=parsing.positive,
        metavar="N",
        help="frames that are decoded at once: fewer take less memory (8)",
    )


def takes_still(stage: "Stage") -> bool:
    """Whether a model was trained with the image that a clip begins with as a condition."""
    from vdm_jax.stage.conditions.still import Still

    return stage.find(Still) is not None


def fitted(options: argparse.Namespace, model: "Model") -> "Model":
    """The model in the size of `animate`'s flags, where it takes an image as a condition.

    Raises FileNotFoundError; ValueError for flags that the model does not have, and for a size that
    its layers cannot have.
    """
    from vdm_jax.stage.conditions.scalar import FrameRate

    if options.job != "animate" or not takes_still(model.stage):
        rate = model.stage.find(FrameRate)
        taken = () if rate is None else rate.settings
        for name in STILL_FLAGS:
            if getattr(options, name) is not None and name not in taken:
                has = ", ".join(taken) or "none"
                raise ValueError(f"--{name}: this model has no such setting; it has: {has}")
        return model
    if not options.input:
        raise ValueError("animate needs --input: this model makes clips of an image")
    _, height, width, _ = model.stage.video_shape
    if options.height or options.width:
        height, width = options.height or height, options.width or width
    elif (height - width) * _uprightness(options.input[0]) < 0:
        height, width = width, height
    step = model.stage.space.multiple * model.stage.network.multiple
    if height % step or width % step:
        raise ValueError(f"--height={height}, --width={width}: must be multiples of {step}")
    changes = {"data.image_size": height, "data.image_width": width}
    if options.decode_frames:
        changes["model.decode_frames"] = options.decode_frames
    if options.fps:
        changes["data.fps"] = options.fps
    return model.changed(changes)


def _uprightness(name: str) -> int:
    """Height less width of a picture. Raises FileNotFoundError, ValueError."""
    from vdm_jax.data import video_io

    path = _existing("input", name)
    if path.suffix == ".npz":
        return 0
    _, height, width, _ = video_io.read_video(path, frames=1)[0].shape
    return height - width


def read(options: argparse.Namespace, model: "Model", sampler: "Sampler") -> Inputs:
    """The inputs of a job. Raises FileNotFoundError and ValueError, naming the flag."""
    if options.job == "refine":
        return _to_refine(options, model)
    return _to_edit(options, sampler, options.fps or model.fps)


def _to_edit(options: argparse.Namespace, sampler: "Sampler", fps: float) -> Inputs:
    import numpy as np

    from vdm_jax.data import source

    factor = (options.factor or 2) if options.job == "interpolate" else 1
    if not options.input:
        prompts = list(options.prompt)
        return Inputs(videos=None, prompts=prompts, fps=fps, rate=fps / factor, notes=[])
    size = sampler.video_shape[1:3]
    if options.job == "super_resolve":
        size = low_size(options, sampler)
    frames = 1 if options.job in FROM_A_STILL else None
    found = _files("input", options.input, size, frames)
    videos, rates = [one.video for one in found], [one.fps for one in found]
    if options.job == "interpolate":
        fps, notes = _rate_between(rates, factor, fps)
    else:
        videos, notes = _retimed(videos, rates, fps)
    if options.job in edit_files.ONE_CLIP:
        videos, more = edit_files.one_clip(videos, sampler.video_shape[0], fps)
        notes += more
    _check_lengths(videos, fps)
    notes += edit_files.cover_notes("input", options.input, size)
    prompts = list(options.prompt)
    without = options.job == "animate" and takes_still(sampler.stage)
    if options.job == "invert" or (without and sampler.stage.text_encoder is None):
        prompts = prompts or [""]
    cut = np.stack([source.fit(video, *size) for video in videos])
    return Inputs(
        videos=still(options, cut, sampler),
        prompts=_one_each(prompts, found),
        fps=fps,
        rate=fps / factor,
        notes=notes,
    )


def _to_refine(options: argparse.Namespace, model: "Model") -> Inputs:
    """The videos in the size and at the frame rate that a super-resolution stage refines."""
    import numpy as np

    from vdm_jax.data import frame_rate, source

    frames, height, width, _ = coarse_shape(model.stage)
    view = model.stage.view
    wanted = view.fps * frames / view.shape[0]
    found, videos, notes = _files("input", options.input, (height, width)), [], []
    for number, one in enumerate(found, 1):
        video = one.video
        if wanted and one.fps and not frame_rate.equal(len(video), one.fps, wanted):
            video = video[frame_rate.resampled(len(video), one.fps, wanted)]
            notes.append(
                f"--input: video {number}: {len(one.video)} frames at {one.fps:.4g} fps become "
                f"{len(video)} at the {wanted:g} that the stage refines"
            )
        if len(video) < frames:
            rate = f" at {wanted:g} frames a second" if wanted and one.fps else ""
            raise ValueError(
                f"--input: video {number} has {len(video)} frames{rate}, and the stage refines "
                f"{frames} at once: give a longer video"
            )
        videos.append(source.fit(video, height, width))
    _check_lengths(videos, wanted)
    notes += edit_files.cover_notes("input", options.input, (height, width))
    without = all(one.prompt is None for one in found)
    ratio = view.shape[0] / frames
    fps = view.fps or max(one.fps for one in found) * ratio or model.fps
    return Inputs(
        videos=np.stack(videos),
        prompts=_one_each(options.prompt or [""] * without, found),
        fps=fps,
        rate=fps / ratio,
        notes=notes,
    )


def low_res(options: argparse.Namespace, sampler: "Sampler", frames: int) -> "np.ndarray | None":
    """The videos of --low_res in the size that the model follows, uint8 `n f h w c`; None without.

    A stage that refines videos has a size of its own; else the file's must divide the model's.
    """
    import numpy as np

    from vdm_jax.data import source
    from vdm_jax.stage.conditions.video import LowResVideo

    if not options.low_res:
        return None
    videos = np.stack([one.video for one in _files("low_res", [options.low_res])])
    condition = sampler.stage.find(LowResVideo)
    if condition is not None:
        videos = np.stack([source.fit(video, *condition.low_res_shape[1:3]) for video in videos])
    if videos.shape[1] < frames and options.job == "extend":
        raise ValueError(
            f"--low_res={options.low_res}: has {videos.shape[1]} frames, the result {frames} "
            "(--frames)"
        )
    return videos[:, :frames]


def file_digest(flag: str, name: str | None) -> str | None:
    """What names the content of a flag's file; None without. Raises FileNotFoundError."""
    if not name:
        return None
    return hashlib.sha256(_existing(flag, name).read_bytes()).hexdigest()


def mask(options: argparse.Namespace, height: int, width: int) -> "np.ndarray":
    """The pixels that the picture of --mask chooses, bool `h w`: those of more white than black.

    Raises FileNotFoundError; ValueError for a file that is no picture, and for a picture that
    chooses no pixel or all.
    """
    import numpy as np
    from PIL import Image

    path = _existing("mask", options.mask)
    try:
        with Image.open(path) as picture:
            grey = picture.convert("L").resize((width, height), Image.Resampling.BOX)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"--mask={path}: is no picture: {error}") from error
    chosen = np.asarray(grey) >= 128
    if chosen.all() or not chosen.any():
        raise ValueError(
            f"--mask={path}: {'all' if chosen.all() else 'no'} pixels of {height} x {width} are "
            "white; paint the part that is meant white, and leave the rest black"
        )
    return chosen


def coarse_shape(stage: "Stage") -> tuple[int, ...]:
    """(f, h, w, c) of what a stage refines. Raises ValueError for one that refines nothing."""
    from vdm_jax.stage.conditions.video import LowResVideo

    condition = stage.find(LowResVideo)
    if condition is None:
        raise ValueError(
            "refine: this model refines no video; choose a super-resolution stage with --model, "
            "such as imagen_video_tiny/ssr_16"
        )
    return tuple(condition.low_res_shape)


def low_size(options: argparse.Namespace, sampler: "Sampler") -> tuple[int, int]:
    """(height, width) of what super_resolve enlarges by --factor. Raises ValueError."""
    factor, (height, width) = options.factor or 2, sampler.video_shape[1:3]
    if factor < 2 or height % factor or width % factor:
        raise ValueError(
            f"--factor={factor}: must be at least 2 and divide the model's {height} x {width}"
        )
    return height // factor, width // factor


def still(options: argparse.Namespace, videos: "np.ndarray", sampler: "Sampler") -> "np.ndarray":
    """The first frame repeated over the clip, for jobs that know only that."""
    if options.job not in FROM_A_STILL:
        return videos
    return videos[:, :1].repeat(sampler.video_shape[0], axis=1)


def first_frames(
    flag: str, names: Sequence[str], size: tuple[int, int], frames: int | None
) -> tuple["list[np.ndarray]", float]:
    """The first frames, or all, of the videos of a flag, uint8 `f h w c` of a size, and their frame
    rate, 0 = not known. Raises FileNotFoundError; ValueError for videos of several lengths or
    rates."""
    from vdm_jax.data import source

    found = _files(flag, names, size, frames)
    for note in edit_files.cover_notes(flag, names, size):
        print(note)
    videos = [source.fit(one.video[:frames], *size) for one in found]
    return _alike(flag, videos, found)


def whole(names: Sequence[str], flag: str = "input") -> tuple["list[np.ndarray]", float]:
    """The videos of a flag as they are, and their frame rate. Raises as `first_frames`."""
    found = _files(flag, names)
    return _alike(flag, [one.video for one in found], found)


def _alike(
    flag: str, videos: "list[np.ndarray]", found: Sequence[_Read]
) -> tuple["list[np.ndarray]", float]:
    shapes = sorted({video.shape[:3] for video in videos})
    rates = sorted({round(one.fps, 2) for one in found})
    if len(shapes) > 1 or len(rates) > 1:
        raise ValueError(
            f"--{flag}: videos of {', '.join(map(str, shapes))} (frames, height, width) at "
            f"{', '.join(f'{rate:g}' for rate in rates)} fps; must be alike"
        )
    return videos, found[0].fps


def one_each(prompts: Sequence[str], count: int) -> list[str]:
    """A prompt for each video. Raises ValueError."""
    prompts = list(prompts) * (count if len(prompts) == 1 else 1)
    if len(prompts) != count:
        raise ValueError(f"{len(prompts)} prompts, {count} videos: must be one, or as many")
    return prompts


def _existing(flag: str, name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"--{flag}={path}: there is no such file")
    return path


def _files(
    flag: str,
    names: Sequence[str],
    size: tuple[int, int] | None = None,
    frames: int | None = None,
) -> list[_Read]:
    """The videos of files and archives. Files are cut to `size` and end after `frames`."""
    import numpy as np

    from vdm_jax.data import video_io

    found = []
    for name in names:
        path = _existing(flag, name)
        if path.suffix != ".npz":
            video, fps = video_io.read_video(path, size=size, frames=frames)
            found.append(_Read(video=video, fps=fps))
            continue
        with np.load(path, allow_pickle=False) as arrays:
            if "video" not in arrays or arrays["video"].ndim != 5:
                raise ValueError(f"--{flag}={path}: holds no array video, uint8 n f h w c")
            videos, fps = list(arrays["video"]), float(arrays.get("fps", 0.0))
            texts = [str(text) for text in arrays.get("prompts", ())] or [None] * len(videos)
        found += [
            _Read(video=video, fps=fps, prompt=text)
            for video, text in zip(videos, texts, strict=True)
        ]
    return found


def _one_each(prompts: Sequence[str], found: Sequence[_Read]) -> list[str]:
    """A prompt for each video that was read. Raises ValueError."""
    texts = list(prompts) or [one.prompt for one in found if one.prompt is not None]
    return one_each(texts, len(found))


def _check_lengths(videos: Sequence["np.ndarray"], fps: float) -> None:
    lengths = sorted({len(video) for video in videos})
    if len(lengths) > 1:
        raise ValueError(
            f"--input: videos of {lengths} frames at {fps:g} fps; must be as many in all of them"
        )


def _retimed(videos, rates: list[float], fps: float):
    """Videos `f h w c` of `rates` frames a second at `fps`, and lines that say how."""
    from vdm_jax.data import frame_rate

    kept, notes = [], []
    for number, (video, rate) in enumerate(zip(videos, rates, strict=True), 1):
        count = len(video)
        if rate and not frame_rate.equal(count, rate, fps):
            video = video[frame_rate.resampled(count, rate, fps)]
            how = "repeated" if rate < fps else "left out"
            notes.append(
                f"--input: video {number}: {count} frames at {rate:.4g} fps become {len(video)} at "
                f"the model's {fps:g}; frames are {how}"
            )
        elif not rate and count > 1:
            notes.append(
                f"--input: video {number} has no frame rate; it is taken as the model's {fps:g} fps"
            )
        kept.append(video)
    return kept, notes


def _rate_between(rates: list[float], factor: int, fps: float) -> tuple[float, list[str]]:
    """The frame rate of videos of `rates` with `factor` times the frames, which last as long as
    before, and lines that say where the model learned another. Raises ValueError."""
    known = sorted({round(rate * factor, 2) for rate in rates if rate})
    if not known:
        return fps, [f"--input: has no frame rate; the result is taken as the model's {fps:g} fps"]
    if known[-1] > 1.01 * known[0]:
        raise ValueError(
            f"--input: videos of {known[0] / factor:g} to {known[-1] / factor:g} fps; must have "
            "one frame rate"
        )
    if abs(known[0] - fps) < 0.01 * fps:
        return fps, []
    return known[0], [
        f"--input: at {known[0] / factor:.4g} fps the result has {known[0]:.4g}; the model learned "
        f"motion at {fps:g} fps, which takes an input of {fps / factor:.4g}"
    ]
