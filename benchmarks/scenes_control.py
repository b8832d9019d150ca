"""How closely images of scenes follow the edges or the depth that a ControlNet was given."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """A held-out frame of one object: pixels, what the ControlNet is given, the caption, the depth
    and the object's mask (h, w)."""

    frame: np.ndarray
    hint: np.ndarray
    caption: str
    depth: np.ndarray
    mask: np.ndarray


def make_rows(model, source: str, count: int) -> list[Row]:
    """Frames of the model's data. source: `edges` or `depth`, which is the hint."""
    from vdm_jax.data.scenes.builder import FRAMES, Scenes, clips

    config = next(c for c in Scenes.BUILDER_CONFIGS if c.name == model.config.data.config)
    rows = []
    for index, (scene, clip) in enumerate(clips(config, "held_out", count)):
        at = index * 7 % FRAMES
        hint, depth, mask = (x[at] for x in (getattr(clip, source), clip.depth, clip.mask))
        caption = scene.frame_captions[at]
        rows.append(Row(clip.video[at], hint, caption, depth[..., 0], mask[..., 0] > 0))
    return rows


def sample(
    model, folder: Path, rows: list[Row], key: Any, changes: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Hints and images, uint8 (n, 1, h, w, 3), of the rows' captions with the ControlNet of a
    folder. changes: of the model's sampler."""
    from vdm_jax.stage.conditions.hint import Hint
    from vdm_jax.stage.control import ControlStage
    from vdm_jax.stage.low_rank import BASE
    from vdm_jax.weights import controlnet

    network, params = controlnet.read_folder(folder)
    network = network.clone(time=model.stage.network.time)
    hint = Hint(shape=(*model.stage.video_shape[:3], network.hint_channels))
    stage = ControlStage.add(model.stage, network, hint)
    sampler = dataclasses.replace(
        model.sampler(**changes), stage=stage, frozen={**model.frozen, BASE: model.params}
    )
    hints = np.stack([row.hint for row in rows])[:, None]
    hints = np.broadcast_to(hints, (len(rows), *hint.shape)).copy()
    (name,) = {one.name for one in stage.network.controls}
    texts = [row.caption for row in rows]
    stream = sampler.stream({name: params}, key, texts, inputs={"hint": hints})
    return hints, np.concatenate(list(stream))


def scores(rows: list[Row], images: np.ndarray, suffix: str = "") -> dict[str, float]:
    """`edge_f1` and `depth_error` of images (n, 1, h, w, 3) of the rows' captions."""
    f1 = [outline_f1(row.caption, row.frame, x[0]) for row, x in zip(rows, images, strict=True)]
    errors = [depth_error(row, x[0]) for row, x in zip(rows, images, strict=True)]
    return {
        f"edge_f1{suffix}": round(float(np.mean(f1)), 3),
        f"depth_error{suffix}": round(float(np.mean(errors)), 2),
    }


def depth_error(row: Row, image: np.ndarray) -> float:
    """The mean absolute error of an image's depth, in levels of 255: the given object's depth where
    the image has a foreground, and the ground's elsewhere."""
    seen = foreground(row.caption, image).repeat(2, axis=0).repeat(2, axis=1)
    # The ground's depth is a ramp: one value a row of pixels.
    ground = np.where(row.mask, 0, row.depth).max(axis=1, keepdims=True)
    depth = np.where(seen, row.depth[row.mask].max(initial=0), ground)
    return float(np.abs(depth.astype(float) - row.depth).mean())


def outline_f1(caption: str, true: np.ndarray, image: np.ndarray) -> float:
    """F1 of the outlines of two frames of a caption, each matched to within two pixels."""
    first, second = (outline(caption, frame) for frame in (true, image))
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    precision = (second & near(first)).sum() / second.sum()
    recall = (first & near(second)).sum() / first.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def outline(caption: str, frame: np.ndarray) -> np.ndarray:
    """The border of the foreground, at half of the frame's size."""
    found = foreground(caption, frame)
    return found & near(~found)


def foreground(caption: str, frame: np.ndarray) -> np.ndarray:
    """What the caption's background does not explain of a frame, at half of its size."""
    from vdm_jax.data.scenes.grammar import BACKGROUNDS, parse_caption
    from vdm_jax.evaluation import scene_matching as matching

    ground = tuple(BACKGROUNDS).index(parse_caption(caption)[0].background)
    view = matching.make_view(matching.halved(frame[None].astype(np.float32) / 255), ground)
    margin = matching.MARGIN
    return view.cost[0, margin:-margin, margin:-margin] > matching.MOST_COST / 2


def near(mask: np.ndarray) -> np.ndarray:
    """The mask and the pixels beside it."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.any(
        [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0
    )
