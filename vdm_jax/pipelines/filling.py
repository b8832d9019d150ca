"""Clips that are given in part and sampled elsewhere: what all jobs of `editing` come to.

Videos are uint8 `n f h w c`, one prompt for each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree, UInt8

from vdm_jax.diffusion.measurements import Mask, MaskedMeans
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.sampler import Known, Sampler
from vdm_jax.stage.space import from_uint8

Videos = UInt8[np.ndarray, "n f h w c"]
Edited = UInt8[np.ndarray, "n f2 h2 w2 c"]
Coarse = UInt8[np.ndarray, "n f3 h3 w3 c"]
# progress(done, total), of clips that are sampled.
Progress = Callable[[int, int], None]


def fill(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    given: Videos,
    known: Bool[np.ndarray, "f"] | Bool[np.ndarray, "f h w 1"],
    prompts: Sequence[str],
    progress: Progress | None,
    low_res: Coarse | None = None,
    first: int = 0,
    others: Mapping[str, np.ndarray] | None = None,
) -> Edited:
    """Clips of which `known` elements are as given, and that follow `low_res` elsewhere.

    first: number of the first sample. others: what further conditions are given, by name.
    """
    mask = known.reshape(-1, 1, 1, 1) if known.ndim == 1 else known
    rows = np.broadcast_to(mask, (len(given), *mask.shape))
    what, inputs = _known(sampler, given, rows, low_res)
    inputs = {**inputs, **(others or {})}
    made = sample(sampler, params, key, prompts, what, progress, inputs=inputs, first=first)
    # Methods that only pull towards what is known do not end in it to the last bit.
    return np.where(rows, given, made)


def _known(
    sampler: Sampler,
    given: Videos,
    rows: Bool[np.ndarray, "n #f #h #w 1"],
    low_res: Coarse | None,
) -> tuple[Known | None, dict[str, Coarse]]:
    """What the conditional method is given of the videos, and what the stage's conditions are."""
    # y is zero, not black, where nothing is known.
    y = np.where(rows, scaled(given), np.float32(0))
    masked = Known(measurement=Mask(known=rows), y=y)
    if low_res is None:
        return masked, {}
    condition = sampler.stage.find(LowResVideo)
    if condition is not None:
        shape = (sampler.video_shape[0] // condition.shape[0] * condition.low_res_shape[0],)
        shape += tuple(condition.low_res_shape[1:])
        _check_low_res(low_res, len(given), shape)
        return (masked if rows.any() else None), {"low_res": low_res}
    clip, height, width, channels = sampler.video_shape
    time, space = (max(1, a // b) for a, b in zip((clip, height), low_res.shape[1:3], strict=True))
    whole = (low_res.shape[1] * time, *(side * space for side in low_res.shape[2:4]), channels)
    if whole != sampler.video_shape or space == time == 1:
        raise ValueError(
            f"low_res {list(low_res.shape)}: the model's {clip} frames of {height} x {width} must "
            "be whole multiples of it, of height and width the same"
        )
    _check_low_res(low_res, len(given), low_res.shape[1:])
    both = MaskedMeans(known=rows, space=space, time=time)
    y = np.asarray(both.combine(jnp.asarray(y), jnp.asarray(scaled(low_res))))
    return Known(measurement=both, y=y), {}


def _check_low_res(low_res: Videos, count: int, shape: Sequence[int]) -> None:
    if low_res.dtype != np.uint8 or low_res.shape != (count, *shape):
        raise ValueError(
            f"low_res {low_res.dtype}{list(low_res.shape)}: must be uint8 {[count, *shape]}"
        )


def sample(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    prompts: Sequence[str],
    known: Known | None,
    progress: Progress | None,
    start: Videos | None = None,
    inputs: dict[str, Coarse] | None = None,
    first: int = 0,
) -> Edited:
    """Samples of a sampler's stream in one array.

    known: what the conditional method is given. start: videos whose noisy versions sampling starts
    from. inputs: of conditions, by name. first: number of the first sample.
    """
    options: dict[str, Any] = {"inputs": inputs} if inputs else {}
    options |= {"first": first} if first else {}
    parts: list[np.ndarray] = []
    for part in sampler.stream(params, key, prompts, known=known, start=start, **options):
        parts.append(part)
        if progress is not None:
            progress(sum(len(part) for part in parts), len(prompts))
    return np.concatenate(parts)


def progress_of_part(
    progress: Progress | None, index: int, parts: int, each: int
) -> Progress | None:
    """Progress of one of several parts alike."""
    if progress is None:
        return None
    return lambda done, _: progress(index * each + done, parts * each)


def scaled(videos: Videos) -> np.ndarray:
    """float32 in [−1, 1], on the host."""
    return np.asarray(from_uint8(jnp.asarray(videos)))


def check_prompts(videos: Videos, prompts: Sequence) -> None:
    """Raises ValueError unless there is one prompt for each video."""
    if isinstance(prompts, str) or len(prompts) != len(videos):
        raise ValueError(f"prompts = {prompts!r}: must be {len(videos)}, one for each video")


def check_videos(sampler: Sampler, videos: Videos, prompts: Sequence) -> None:
    """Raises ValueError for videos of another size than the model's, and as `check_prompts`."""
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[2:] != sampler.video_shape[1:]:
        height, width, channels = sampler.video_shape[1:]
        raise ValueError(
            f"video {videos.dtype}{list(videos.shape)}: must be uint8 [n, f, {height}, {width}, "
            f"{channels}], the model's size"
        )
    check_prompts(videos, prompts)
