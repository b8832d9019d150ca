"""What the paper of Gen-1 claims, measured on scenes.

    python -m benchmarks.gen1 --model=MODEL [--prior=MODEL] [--clips=40] [--out=OUT]

MODEL is a model of Gen-1's phase 4 on the data set `scenes`, 64 x 64. The structure is the true
depth of held-out clips with one object. The content is a frame of another held-out clip with
another object and another background; with a prior also that frame's caption.

  structure  t_s from 0 to 7: the error of the result's depth, and what the judge sees of the
             content's object and background, and of the clip's
  temporal   ω_t: how alike neighbouring frames are, by the model's image encoder (the paper's frame
             consistency) and in pixels; and the difference from ω_t = 1, clip by clip
  content    an image, a prompt, and the clip's own frame as the content: the same figures as of
             structure, at its lowest t_s

The depth of a result is where the judge sees an object: there the depth of the clip's object, and
elsewhere that of the background; the error is its mean absolute difference from the true depth, in
percent of the range. Prints Markdown, and writes it and the figures to OUT/report.md and
OUT/report.json, and a sheet of the videos of each row. Intervals are 95%.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("structure", "temporal", "content")
_SIZE = 64  # pixels of the judge's frames
_OTHER = 500  # the content of clip i is scene i + _OTHER, or a later one that differs


class Seen(NamedTuple):
    """What a frame shows: an object with its colour, if it has one of several, and a background."""

    thing: tuple[str, str]
    background: str


class Task(NamedTuple):
    """Clips with their true depth; for each, a frame of another clip, its caption, what it shows,
    and what the clip itself shows."""

    clips: np.ndarray
    depth: np.ndarray
    images: np.ndarray
    prompts: list[str]
    wanted: list[Seen]
    own: list[Seen]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gen1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="MODEL", help="of Gen-1, on scenes")
    parser.add_argument("--prior", metavar="MODEL", help="default: the model's own, if it has one")
    parser.add_argument("--out", default="samples/gen1", metavar="OUT")
    parser.add_argument("--clips", type=int, default=40, metavar="N", help="default 40")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's own")
    parser.add_argument("--guidance", type=float, metavar="G", help="default: the model's own")
    parser.add_argument("--levels", default="0,1,2,3,4,5,6,7", metavar="N,…", help="of t_s")
    parser.add_argument("--scales", default="0.5,1,1.25,1.5", metavar="X,…", help="of ω_t")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    from benchmarks.cascade import table
    from vdm_jax.cli import common
    from vdm_jax.evaluation import scene_judge
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.pipelines import restructuring

    common.setup("any")
    model, out, found = pretrained.load(options.model), Path(options.out), {}
    restructuring.check(model.stage)
    scene_judge.check_size(f"--model={options.model}", model.stage.video_shape)
    out.mkdir(parents=True, exist_ok=True)
    task = make_task(options.clips, model.stage.video_shape[0])
    for part in options.parts.split(","):
        run = {"structure": structure, "temporal": temporal, "content": content}[part]
        found[part] = run(options, model, task)
        print(f"\n{part}\n\n{table(found[part])}", flush=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in found.items())
    (out / "report.md").write_text(text + "\n")


def structure(options, model, task: Task) -> list[dict]:
    """A row a level of structure."""
    rows = [{"t_s": "the clips", **judged(task, task.clips)}]
    for level in map(int, options.levels.split(",")):
        videos = sampled(options, model, task, task.images, f"t_s_{level}", structure=float(level))
        rows.append({"t_s": level, **judged(task, videos)})
    return rows


def temporal(options, model, task: Task) -> list[dict]:
    """A row a scale of guidance over time."""
    from benchmarks.controlvideo import mean

    scales = [float(text) for text in options.scales.split(",")]
    figures = {}
    for scale in scales:
        videos = sampled(options, model, task, task.images, f"w_t_{scale:g}", temporal=scale)
        figures[scale] = steadiness(model, videos)
    rows = []
    for scale, found in figures.items():
        row = {"ω_t": f"{scale:g}", **{name: mean(values) for name, values in found.items()}}
        if 1.0 in figures:
            for name, values in found.items():
                row[f"{name}, less that of ω_t = 1"] = mean(values - figures[1.0][name])
        rows.append(row)
    return rows


def content(options, model, task: Task) -> list[dict]:
    """A row a kind of content."""
    import jax

    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.pipelines import restructuring

    kinds = {"another clip's frame": task.images, "the clip's own frame": task.clips[:, 0]}
    if source := options.prior or model.config.model.prior:
        prior = pretrained.load(source)
        kinds["another clip's caption"] = restructuring.embeddings(
            prior, model.stage, jax.random.key(1), task.prompts
        )
    rows = []
    for name, given in kinds.items():
        videos = sampled(options, model, task, given, name.replace(" ", "_").replace("'", ""))
        rows.append({"content": name, **judged(task, videos)})
    return rows


def make_task(count: int, frames: int) -> Task:
    """Held-out clips of one object, each with another content."""
    from vdm_jax.data.scenes import world
    from vdm_jax.data.scenes.grammar import parse_caption

    parts, later = [], _OTHER
    for index in range(count):
        scene = world.draw_scene(0, "held_out", index, num_objects=1, num_frames=frames)
        clip, own = world.render(scene, _SIZE), _shown(parse_caption(scene.frame_captions[0]))
        while True:
            other = world.draw_scene(0, "held_out", later, num_objects=1, num_frames=frames)
            later += 1
            caption = other.frame_captions[frames // 2]
            wanted = _shown(parse_caption(caption))
            if own.thing != wanted.thing and own.background != wanted.background:
                break
        image = world.render(other, _SIZE).video[frames // 2]
        parts.append((clip.video, clip.depth, image, caption, wanted, own))
    clips, depth, images, prompts, wanted, own = zip(*parts, strict=True)
    arrays = [np.stack(each) for each in (clips, depth, images)]
    return Task(*arrays, list(prompts), list(wanted), list(own))


def _shown(items) -> Seen:
    return Seen((items[0].object, items[0].color), items[0].background)


def sampled(options, model, task: Task, given: np.ndarray, name: str, **changes) -> np.ndarray:
    """Videos of the clips' structure and a content, and a sheet of them in OUT."""
    import jax

    from vdm_jax.data import video_io
    from vdm_jax.pipelines import restructuring

    sampler = model.sampler(steps=options.steps, guidance=options.guidance, **changes)
    videos = restructuring.restructure(sampler, model.params, jax.random.key(0), task.depth, given)
    sheet = Path(options.out) / f"{name}.png"
    video_io.contact_sheet(sheet, videos, task.prompts, max_clips=16)
    return videos


def judged(task: Task, videos: np.ndarray) -> dict:
    """What the judge sees of the content in the middle frame, and the error of depth."""
    from benchmarks.controlvideo import mean, seen, share

    middle = videos.shape[1] // 2
    readings = [seen(video[middle]) for video in videos]
    read = [None if found is None else Seen(found[:2], found[2]) for found in readings]
    row = {"depth error, %": mean(100 * depth_errors(task, videos))}
    for what in Seen._fields:
        for whose, truths in (("content", task.wanted), ("clip", task.own)):
            right = sum(
                found is not None and getattr(found, what) == getattr(truth, what)
                for found, truth in zip(read, truths, strict=True)
            )
            row[f"{what} of the {whose}"] = share(right, len(videos))
    return row


def depth_errors(task: Task, videos: np.ndarray) -> np.ndarray:
    """For each video the mean absolute error of its depth, of 1."""
    from vdm_jax.evaluation import scene_judge

    found = []
    for depth, there in zip(task.depth[..., 0], scene_judge.foregrounds(videos), strict=True):
        # The background is the same in every row, and the object has one depth.
        floor = np.broadcast_to(np.linspace(0, 127, _SIZE)[:, None], depth.shape)
        near = depth[np.abs(depth - floor) > 1]
        object_depth = np.median(near) if near.size else 0.0
        found.append(np.abs(np.where(there, object_depth, floor) - depth).mean() / 255)
    return np.array(found)


def steadiness(model, videos: np.ndarray) -> dict[str, np.ndarray]:
    """How alike neighbouring frames of each video are."""
    import jax
    import jax.numpy as jnp

    from vdm_jax.evaluation import fidelity
    from vdm_jax.stage.conditions.embedding import ImageEmbedding
    from vdm_jax.stage.space import from_uint8

    encoder = model.stage.find(ImageEmbedding).encoder
    embed = jax.jit(lambda frames: encoder(from_uint8(frames), model.frozen))
    features = np.stack([np.asarray(embed(jnp.asarray(video))) for video in videos])
    changes = np.abs(np.diff(videos.astype(np.float32), axis=1)).mean((1, 2, 3, 4))
    return {
        "frame consistency, %": 100 * fidelity.frame_consistency(features).clips,
        "change from frame to frame, of 255": changes,
    }


if __name__ == "__main__":
    main()
