"""What can be done with a video and one joint model of whole clips: make it longer, slower, larger,
whole, endless, or after another prompt.

Each but the last is sampling with something known (`sampling.Known`), by the method that the
sampler names; what is given comes back bit for bit. Videos are uint8 `n f h w c`, one prompt for
each.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Key, PyTree, UInt8

from vdm_jax.diffusion import grids
from vdm_jax.diffusion.measurements import Downsample, Mask
from vdm_jax.stage.sampler import Known, Sampler
from vdm_jax.stage.space import from_uint8

Videos = UInt8[np.ndarray, "n f h w c"]
# progress(done, total), of clips that are sampled.
Progress = Callable[[int, int], None]


def extend(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str | Sequence[str]],
    *,
    frames: int,
    context: int,
    progress: Progress | None = None,
) -> Videos:
    """Continues videos until they have `frames` frames, a clip of the model's length at a time.

    The last `context` frames of what there is are the first of the next clip (VDM, Ho et al. 2022,
    §3.1). A video's prompt is one text, or one for each round in turn, from the first again when
    they end. Raises ValueError for a context that leaves nothing to be made, or that is longer
    than a video.
    """
    _check_videos(sampler, videos, prompts)
    clip = sampler.video_shape[0]
    if not 1 <= context < clip:
        raise ValueError(f"context = {context}: must be from 1 to {clip - 1}, below a clip's")
    if videos.shape[1] < context:
        raise ValueError(f"context = {context}: the video has only {videos.shape[1]} frames")
    rounds = -(-(frames - videos.shape[1]) // (clip - context))
    if rounds < 1:
        raise ValueError(f"frames = {frames}: the video has {videos.shape[1]} already")
    in_turn = [[texts] if isinstance(texts, str) else list(texts) for texts in prompts]
    known = np.arange(clip) < context
    for this in range(rounds):
        given = np.zeros((len(videos), clip, *videos.shape[2:]), np.uint8)
        given[:, :context] = videos[:, -context:]
        texts = [turns[this % len(turns)] for turns in in_turn]
        report = _part(progress, this, rounds, len(videos))
        new = _fill(sampler, params, jax.random.fold_in(key, this), given, known, texts, report)
        videos = np.concatenate([videos, new[:, context:]], axis=1)
    return videos[:, :frames]


def interpolate(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    factor: int,
    progress: Progress | None = None,
) -> Videos:
    """Makes `factor` − 1 frames between each two: m frames become (m − 1) factor + 1.

    The result plays at the frame rate that the model learned if the videos have 1/factor of it. A
    clip of the model holds as many known frames as fit; clips meet in known frames and are sampled
    all at once. Raises ValueError if not even two fit.
    """
    _check_videos(sampler, videos, prompts)
    clip, (count, length) = sampler.video_shape[0], videos.shape[:2]
    if not 2 <= factor < clip:
        raise ValueError(f"factor = {factor}: must be from 2 to {clip - 1}, below a clip's frames")
    if length < 2:
        raise ValueError("the video has one frame: there is nothing between frames")
    gaps = min((clip - 1) // factor, length - 1)
    # The last clip begins earlier rather than hold fewer frames.
    starts = [min(start, length - 1 - gaps) for start in range(0, length - 1, gaps)]
    span = gaps * factor + 1
    known = np.isin(np.arange(clip), np.arange(0, span, factor))
    given = np.zeros((len(starts), count, clip, *videos.shape[2:]), np.uint8)
    for part, start in zip(given, starts, strict=True):
        part[:, known] = videos[:, start : start + gaps + 1]
    given = rearrange(given, "s n f h w c -> (s n) f h w c")
    made = _fill(sampler, params, key, given, known, list(prompts) * len(starts), progress)
    made = rearrange(made, "(s n) f h w c -> s n f h w c", s=len(starts))
    whole = np.zeros((count, (length - 1) * factor + 1, *videos.shape[2:]), np.uint8)
    for part, start in reversed(list(zip(made, starts, strict=True))):
        whole[:, start * factor : start * factor + span] = part[:, :span]
    return whole


def super_resolve(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    progress: Progress | None = None,
) -> Videos:
    """Enlarges videos to the model's size: those whose means over blocks of pixels they are (VDM,
    Ho et al. 2022, §3.1).

    videos: of the model's number of frames, `n f h/k w/k c` for a whole number k. Raises ValueError
    otherwise.
    """
    clip, height, width, channels = sampler.video_shape
    count, frames, low_height, low_width, low_channels = videos.shape
    factor = max(1, height // low_height)
    if (low_height * factor, low_width * factor) != (height, width) or factor < 2:
        raise ValueError(
            f"the video has {low_height} x {low_width} pixels: the model's {height} x {width} must "
            "be a whole multiple"
        )
    if (frames, low_channels) != (clip, channels):
        raise ValueError(
            f"the video is {frames} frames of {low_channels} channels: the model's clips are "
            f"{clip} of {channels} (num_frames makes them longer)"
        )
    _check_prompts(videos, prompts)
    known = Known(measurement=Downsample(space=factor), y=_scaled(videos))
    return _sample(sampler, params, key, prompts, known, progress)


def inpaint(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    known: Bool[np.ndarray, "#f #h #w"],
    progress: Progress | None = None,
) -> Videos:
    """Makes the pixels anew that are not known.

    videos: of the model's number of frames. known: bool, `[1, h, w]` for the same pixels in all
    frames, or `[f, h, w]`. Raises ValueError if nothing is known, or everything.
    """
    _check_videos(sampler, videos, prompts)
    clip = sampler.video_shape[0]
    if videos.shape[1] != clip:
        raise ValueError(
            f"the video has {videos.shape[1]} frames: the model's clips have {clip} "
            "(num_frames makes them longer)"
        )
    known = np.broadcast_to(known, videos.shape[1:4])
    if known.all() or not known.any():
        raise ValueError(f"known: {'all' if known.all() else 'no'} pixels are, so nothing is to do")
    return _fill(sampler, params, key, videos, known[..., None], prompts, progress)


def loop(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    context: int,
    progress: Progress | None = None,
) -> Videos:
    """Appends the way back from a video's end to its beginning: played endlessly it has no seam.

    A clip is made whose first `context` frames are the video's last, and whose last are the
    video's first; what is between is appended. The prompts are those of that clip. Raises
    ValueError for a context with nothing between, or longer than a video.
    """
    _check_videos(sampler, videos, prompts)
    clip = sampler.video_shape[0]
    if not 1 <= context <= (clip - 1) // 2:
        raise ValueError(
            f"context = {context}: must be from 1 to {(clip - 1) // 2}, or nothing of a clip of "
            f"{clip} frames is left between both ends"
        )
    if videos.shape[1] < context:
        raise ValueError(f"context = {context}: the video has only {videos.shape[1]} frames")
    given = np.zeros((len(videos), clip, *videos.shape[2:]), np.uint8)
    given[:, :context], given[:, -context:] = videos[:, -context:], videos[:, :context]
    known = np.ones(clip, bool)
    known[context:-context] = False
    made = _fill(sampler, params, key, given, known, prompts, progress)
    return np.concatenate([videos, made[:, context:-context]], axis=1)


def restyle(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    strength: float,
    progress: Progress | None = None,
) -> Videos:
    """Makes videos anew from noisy versions of themselves, after other prompts (SDEdit, Meng et al.
    2021, algorithm 2): what the noise leaves, places and motion before details, stays.

    strength: the share of the sampler's steps that is gone through, above 0 to 1, which leaves
    nothing. Raises ValueError.
    """
    _check_videos(sampler, videos, prompts)
    if videos.shape[1] != sampler.video_shape[0]:
        raise ValueError(
            f"the video has {videos.shape[1]} frames: the model's clips have "
            f"{sampler.video_shape[0]} (num_frames makes them longer)"
        )
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength}: must be above 0, at most 1")
    steps = max(1, round(strength * sampler.steps))
    levels = tuple(float(level) for level in sampler.logsnrs()[-steps - 1 :])
    sampler = dataclasses.replace(sampler, grid=grids.Explicit(levels=levels))
    return _sample(sampler, params, key, prompts, None, progress, start=videos)


def _fill(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    given: Videos,
    known: Bool[np.ndarray, "f"] | Bool[np.ndarray, "f h w 1"],
    prompts: Sequence[str],
    progress: Progress | None,
) -> Videos:
    """Clips of which `known` elements are as given."""
    mask = known.reshape(-1, 1, 1, 1) if known.ndim == 1 else known
    rows = np.broadcast_to(mask, (len(given), *mask.shape))
    # y is zero, not black, where nothing is known.
    y = np.where(rows, _scaled(given), np.float32(0))
    what = Known(measurement=Mask(known=rows), y=y)
    made = _sample(sampler, params, key, prompts, what, progress)
    # Methods that only pull towards what is known do not end in it to the last bit.
    return np.where(rows, given, made)


def _sample(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    prompts: Sequence[str],
    known: Known | None,
    progress: Progress | None,
    start: Videos | None = None,
) -> Videos:
    parts: list[np.ndarray] = []
    for part in sampler.stream(params, key, prompts, known=known, start=start):
        parts.append(part)
        if progress is not None:
            progress(sum(len(part) for part in parts), len(prompts))
    return np.concatenate(parts)


def _part(progress: Progress | None, index: int, parts: int, each: int) -> Progress | None:
    """Progress of one of several parts alike."""
    if progress is None:
        return None
    return lambda done, _: progress(index * each + done, parts * each)


def _scaled(videos: Videos) -> np.ndarray:
    """float32 in [−1, 1], on the host."""
    return np.asarray(from_uint8(jnp.asarray(videos)))


def _check_prompts(videos: Videos, prompts: Sequence) -> None:
    if isinstance(prompts, str) or len(prompts) != len(videos):
        raise ValueError(f"prompts = {prompts!r}: must be {len(videos)}, one for each video")


def _check_videos(sampler: Sampler, videos: Videos, prompts: Sequence) -> None:
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[2:] != sampler.video_shape[1:]:
        height, width, channels = sampler.video_shape[1:]
        raise ValueError(
            f"video {videos.dtype}{list(videos.shape)}: must be uint8 [n, f, {height}, {width}, "
            f"{channels}], the model's size"
        )
    _check_prompts(videos, prompts)
