"""What can be done with a video and one joint model of whole clips: make it longer, slower, larger,
whole, endless, or after another prompt.

Each but `restyle` is sampling with something known (`sampling.Known`), by the method that the
sampler names; what is given comes back bit for bit. Videos are uint8 `n f h w c`, one prompt for
each.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Key, PyTree, UInt8

from vdm_jax.diffusion import grids
from vdm_jax.diffusion.conditional import ByReconstruction, ByReplacement
from vdm_jax.diffusion.measurements import Downsample
from vdm_jax.diffusion.samplers import Distilled
from vdm_jax.pipelines import filling
from vdm_jax.pipelines.filling import Coarse, Edited, Progress, Videos
from vdm_jax.stage.conditions.still import Still
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.sampler import Known, Sampler


def extend(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str | Sequence[str]],
    *,
    frames: int,
    context: int,
    backwards: bool = False,
    low_res: Coarse | None = None,
    progress: Progress | None = None,
) -> Edited:
    """Continues videos until they have `frames` frames, a clip of the model's length at a time.

    The last `context` frames of what there is are the first of the next clip (VDM, Ho et al. 2022,
    §3.1). A video's prompt is one text, or one for each round in turn, from the first again when
    they end.

    backwards: the frames are put before the video; its first `context` are the last of the clip
    before.

    low_res: what all `frames` frames are at a lower resolution, uint8 `n frames h/k w/k c`; the new
    frames follow it (see `inpaint`).

    Raises ValueError for a context that leaves nothing to be made, or that is longer than a video,
    and for a low_res of another shape.
    """
    filling.check_videos(sampler, videos, prompts)
    clip = sampler.video_shape[0]
    if low_res is not None and low_res.shape[:2] != (len(videos), frames):
        raise ValueError(
            f"low_res {list(low_res.shape)}: must be {len(videos)} videos of all {frames} frames"
        )
    if not 1 <= context < clip:
        raise ValueError(f"context = {context}: must be from 1 to {clip - 1}, below a clip's")
    if videos.shape[1] < context:
        raise ValueError(f"context = {context}: the video has only {videos.shape[1]} frames")
    if backwards and low_res is not None:
        raise ValueError("low_res: of a video that is extended backwards no low_res is taken")
    rounds = -(-(frames - videos.shape[1]) // (clip - context))
    if rounds < 1:
        raise ValueError(f"frames = {frames}: the video has {videos.shape[1]} already")
    in_turn = [[texts] if isinstance(texts, str) else list(texts) for texts in prompts]
    known = np.arange(clip) < context
    known = known[::-1] if backwards else known
    for this in range(rounds):
        given = np.zeros((len(videos), clip, *videos.shape[2:]), np.uint8)
        given[:, known] = videos[:, :context] if backwards else videos[:, -context:]
        texts = [turns[this % len(turns)] for turns in in_turn]
        report = filling.progress_of_part(progress, this, rounds, len(videos))
        coarse = None
        if low_res is not None:
            # Beyond the end, which is cut off, its last frame stands still.
            places = np.minimum(videos.shape[1] - context + np.arange(clip), frames - 1)
            coarse = low_res[:, places]
        this_key = jax.random.fold_in(key, this)
        new = filling.fill(sampler, params, this_key, given, known, texts, report, coarse)
        parts = [new[:, ~known], videos] if backwards else [videos, new[:, ~known]]
        videos = np.concatenate(parts, axis=1)
    return videos[:, -frames:] if backwards else videos[:, :frames]


def interpolate(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    factor: int,
    progress: Progress | None = None,
) -> Edited:
    """Makes `factor` − 1 frames between each two: m frames become (m − 1) factor + 1.

    The result plays at the frame rate that the model learned if the videos have 1/factor of it. A
    clip of the model holds as many known frames as fit; clips meet in known frames and are sampled
    all at once. Raises ValueError if not even two fit.
    """
    filling.check_videos(sampler, videos, prompts)
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
    made = filling.fill(sampler, params, key, given, known, list(prompts) * len(starts), progress)
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
) -> Edited:
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
    filling.check_prompts(videos, prompts)
    known = Known(measurement=Downsample(space=factor), y=filling.scaled(videos))
    return filling.sample(sampler, params, key, prompts, known, progress)


def inpaint(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    known: Bool[np.ndarray, "#f #h #w"],
    low_res: Coarse | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Edited:
    """Makes the pixels anew that are not known.

    videos: of the model's number of frames. known: bool, `[1, h, w]` for the same pixels in all
    frames, or `[f, h, w]`. low_res: the videos at a lower resolution, uint8 `n f/j h/k w/k c`,
    which the new pixels follow: by the conditional method as means over blocks, or, in a stage that
    refines videos, as its input. inputs: of the stage's other conditions by name, a row a video.
    Raises ValueError if nothing is known, or everything, and for a low_res that does not fit.
    """
    filling.check_videos(sampler, videos, prompts)
    clip = sampler.video_shape[0]
    if videos.shape[1] != clip:
        raise ValueError(
            f"the video has {videos.shape[1]} frames: the model's clips have {clip} "
            "(num_frames makes them longer)"
        )
    known = np.broadcast_to(known, videos.shape[1:4])
    if known.all() or not known.any():
        raise ValueError(f"known: {'all' if known.all() else 'no'} pixels are, so nothing is to do")
    known = known[..., None]
    return filling.fill(
        sampler, params, key, videos, known, prompts, progress, low_res, others=inputs
    )


def animate(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    images: UInt8[np.ndarray, "n h w c"],
    prompts: Sequence[str],
    *,
    progress: Progress | None = None,
) -> Videos:
    """Clips that begin with images, by a model that takes the image as a condition.

    images: of the model's size. prompts: one for each, "" for a model without text. Raises
    ValueError for another model.
    """
    if sampler.stage.find(Still) is None:
        raise ValueError("this model takes no image as a condition; use inpaint")
    filling.check_prompts(images, prompts)
    return filling.sample(
        sampler, params, key, prompts, None, progress, inputs={Still.name: images}
    )


def predict(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    frames: int,
    each: int = 1,
    low_res: int = 1,
) -> Iterator[Edited]:
    """Yields videos that go on from the first `frames` frames of others, a batch at a time.

    Args:
      videos: of the model's number of frames; a stage that refines videos also gets their coarse
        version.
      frames: that are known; they come back bit for bit.
      each: samples of every video, one after the other.
      low_res: means over blocks of so many by so many pixels of every frame are known too; 1 =
        none.

    Sample i is drawn with fold_in(key, i). Raises ValueError as `inpaint` does.
    """
    filling.check_videos(sampler, videos, prompts)
    clip, height, width, _ = sampler.video_shape
    if videos.shape[1] != clip or not 1 <= frames < clip:
        raise ValueError(
            f"frames = {frames} of videos of {videos.shape[1]}: must be from 1 to {clip - 1}, of "
            f"videos of {clip} frames"
        )
    if low_res > 1 and sampler.stage.find(LowResVideo) is not None:
        raise ValueError(f"low_res = {low_res}: this model refines a video of its own")
    if low_res < 1 or height % low_res or width % low_res:
        raise ValueError(f"low_res = {low_res}: must divide {height} x {width} pixels")
    total = len(videos) * each
    size = min(sampler.batch_size, total)
    known = np.arange(clip) < frames
    for at in range(0, total, size):
        # The last batch is filled up, so that one program serves all.
        rows = np.minimum(np.arange(at, at + size), total - 1) // each
        given, coarse = videos[rows], None
        if sampler.stage.find(LowResVideo) is not None:
            coarse = sampler.stage.coarse(given)
        elif low_res > 1:
            means = Downsample(space=low_res).measure(jnp.asarray(given, jnp.float32))
            coarse = np.asarray(jnp.rint(means)).astype(np.uint8)
        texts = [prompts[row] for row in rows]
        made = filling.fill(sampler, params, key, given, known, texts, None, coarse, first=at)
        yield made[: total - at]


def refine(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    low_res: Videos,
    prompts: Sequence[str],
    *,
    context: int,
    progress: Progress | None = None,
) -> Edited:
    """What a super-resolution stage makes of videos: larger (SSR), or with more frames (TSR).

    low_res: of the size that the stage refines, and of as many frames or more. A longer one is
    refined in parts. Each part after the first begins with `context` or more frames of the
    low-resolution video that are refined already, and these are known: so a part goes on from the
    one before.

    Raises ValueError for a model that refines nothing, for videos of another size or fewer frames,
    for a context that leaves nothing to be made, and for a sampler that cannot go on from frames.
    """
    condition = sampler.stage.find(LowResVideo)
    if condition is None:
        raise ValueError(
            "this model refines no video: choose a super-resolution stage, such as "
            "imagen_video_tiny/ssr_16"
        )
    filling.check_prompts(low_res, prompts)
    clip, *size = condition.low_res_shape
    length = low_res.shape[1]
    if low_res.dtype != np.uint8 or list(low_res.shape[2:]) != size or length < clip:
        raise ValueError(
            f"low_res {low_res.dtype}{list(low_res.shape)}: must be uint8 [n, f, "
            f"{', '.join(map(str, size))}] with f of {clip} or more"
        )
    if length == clip:
        return filling.sample(
            sampler, params, key, prompts, None, progress, inputs={"low_res": low_res}
        )
    if not 1 <= context < clip:
        raise ValueError(
            f"context = {context}: must be from 1 to {clip - 1}, below a part's frames"
        )
    _check_continues(sampler, clip, length)
    ratio = sampler.video_shape[0] // clip
    starts = [*range(0, length - clip, clip - context), length - clip]
    made = np.zeros((len(low_res), 0, *sampler.video_shape[1:]), np.uint8)
    for this, start in enumerate(starts):
        given = np.zeros((len(low_res), *sampler.video_shape), np.uint8)
        before = made[:, start * ratio :]
        given[:, : before.shape[1]] = before
        known = np.arange(clip * ratio) < before.shape[1]
        report = filling.progress_of_part(progress, this, len(starts), len(low_res))
        this_key = jax.random.fold_in(key, this)
        part = low_res[:, start : start + clip]
        new = filling.fill(sampler, params, this_key, given, known, prompts, report, part)
        made = np.concatenate([made, new[:, before.shape[1] :]], axis=1)
    return made


def _check_continues(sampler: Sampler, clip: int, length: int) -> None:
    replaces = isinstance(sampler.method, (ByReconstruction, ByReplacement))
    if replaces and isinstance(sampler.rule, Distilled):
        raise ValueError(
            f"the video has {length} frames and the stage refines {clip} at once: its sampler "
            "'distilled' cannot go on from frames by this method. Choose --method=projection, "
            "another --sampler, or a shorter video"
        )


def loop(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    context: int,
    progress: Progress | None = None,
) -> Edited:
    """Appends the way back from a video's end to its beginning: played endlessly it has no seam.

    See `join`, of a video with itself. Raises as `join`.
    """
    joined = join(sampler, params, key, videos, videos, prompts, context=context, progress=progress)
    return joined[:, : -videos.shape[1]]


def join(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    followers: Videos,
    prompts: Sequence[str],
    *,
    context: int,
    progress: Progress | None = None,
) -> Edited:
    """Videos, what leads from each to its follower, and the followers.

    A clip is made whose first `context` frames are the video's last, and whose last are the
    follower's first; what is between leads from one to the other. The prompts are those of that
    clip. Raises ValueError for a context with nothing between, or longer than a video.
    """
    filling.check_videos(sampler, videos, prompts)
    filling.check_videos(sampler, followers, prompts)
    clip = sampler.video_shape[0]
    if not 1 <= context <= (clip - 1) // 2:
        raise ValueError(
            f"context = {context}: must be from 1 to {(clip - 1) // 2}, or nothing of a clip of "
            f"{clip} frames is left between both ends"
        )
    shortest = min(videos.shape[1], followers.shape[1])
    if shortest < context:
        raise ValueError(f"context = {context}: the video has only {shortest} frames")
    given = np.zeros((len(videos), clip, *videos.shape[2:]), np.uint8)
    given[:, :context], given[:, -context:] = videos[:, -context:], followers[:, :context]
    known = np.ones(clip, bool)
    known[context:-context] = False
    made = filling.fill(sampler, params, key, given, known, prompts, progress)
    return np.concatenate([videos, made[:, context:-context], followers], axis=1)


def restyle(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: Videos,
    prompts: Sequence[str],
    *,
    strength: float,
    progress: Progress | None = None,
) -> Edited:
    """Makes videos anew from noisy versions of themselves, after other prompts (SDEdit, Meng et al.
    2021, algorithm 2): what the noise leaves, places and motion before details, stays.

    strength: the share of the sampler's steps that is gone through, above 0 to 1, which leaves
    nothing. Raises ValueError.
    """
    filling.check_videos(sampler, videos, prompts)
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
    return filling.sample(sampler, params, key, prompts, None, progress, start=videos)
