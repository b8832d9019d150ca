"""What the paper of ControlVideo claims, measured on scenes.

    python -m benchmarks.controlvideo --model=FOLDER --controlnet=FOLDER [--control=edges]

FOLDER are an image model of the scenes data and a ControlNet of its edges or depth. Each video
follows the true edges or depth of a held-out clip; its prompt is the caption of the middle frame.

  attention  full attention, attention to the first frame, and none: the share of videos whose
             frames all show the same object, colour and background by the judge, the F1 of their
             edges against the clip's, and the warp error
  smoother   with and without: the warp error
  long       64 frames by the hierarchical sampler, and in chunks that share noise: the share of
             videos whose first and last frame show the same
  memory     of one evaluation of the network beside its parameters, by number of frames

Prints Markdown, and writes it and the figures to OUT/report.md and OUT/report.json, and the videos
of each row with a sheet of them. Intervals are 95%. The same command goes on: videos that lie in
OUT are not sampled again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("attention", "smoother", "long", "memory")
_SIZE = 64  # pixels of the judge's frames


class Task(NamedTuple):
    """What videos follow: clips, control videos, prompts."""

    clips: np.ndarray
    controls: np.ndarray
    prompts: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.controlvideo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="an image model of scenes")
    parser.add_argument("--controlnet", required=True, metavar="FOLDER", help="for that model")
    parser.add_argument("--control", default="edges", choices=("edges", "depth"))
    parser.add_argument("--out", default="samples/controlvideo", metavar="OUT")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--frames", type=int, default=15, metavar="N", help="default 15")
    parser.add_argument("--long_frames", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--memory_frames", default="9,25,64", metavar="N,…", help="default 9,25,64")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument("--guidance", type=float, default=5.0, metavar="G", help="default 5")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    from benchmarks.cascade import table
    from vdm_jax.cli import common
    from vdm_jax.pipelines import model as pretrained

    common.setup("any")
    model, out, found = pretrained.load(options.model), Path(options.out), {}
    out.mkdir(parents=True, exist_ok=True)
    for part in options.parts.split(","):
        run = {"attention": attention, "smoother": smoother, "long": long, "memory": memory}[part]
        found[part] = run(options, model)
        print(f"\n{part}\n\n{table(found[part])}", flush=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in found.items())
    (out / "report.md").write_text(text + "\n")


def attention(options, model) -> list[dict]:
    """A row for what a frame attends to."""
    task = make_task(options, options.frames)
    rows = [_row("clips", task, task.clips, 0.0)]
    for kind in ("all", "first", "own"):
        adapted = _adapted(options, model, options.frames, attention=kind)
        videos, seconds = _sampled(options, adapted, task, kind)
        rows.append(_row(kind, task, videos, seconds))
        print(rows[-1], flush=True)
    return rows


def smoother(options, model) -> list[dict]:
    """A row with and one without the smoother, and their difference video by video."""
    from vdm_jax.evaluation import fidelity
    from vdm_jax.systems.controlvideo import Smoother

    task, errors = make_task(options, options.frames), {}
    for name, part, file in (("on", Smoother(), "smoother"), ("off", None, "all")):
        adapted = _adapted(options, model, options.frames, smoother=part)
        videos, _ = _sampled(options, adapted, task, file)
        errors[name] = 1e3 * fidelity.warp_error(videos).clips
    errors["on - off"] = errors["on"] - errors["off"]
    compared = np.isfinite(errors["on - off"])
    return [
        {"smoother": name, "1000 x warp error": mean(values[compared])}
        for name, values in errors.items()
    ]


def long(options, model) -> list[dict]:
    """A row for the hierarchical sampler, and one for chunks."""
    frames = options.long_frames
    task, rows = make_task(options, frames), []
    chunk = int(np.sqrt(frames))
    whole = _adapted(options, model, frames, hierarchical=True)
    videos, seconds = _sampled(options, whole, task, "hierarchical")
    rows.append({"sampler": "hierarchical", **_ends(videos), "seconds a video": f"{seconds:.1f}"})
    adapted, parts, total = _adapted(options, model, chunk), [], 0.0
    for start in range(0, frames, chunk):
        here = slice(min(start, frames - chunk), min(start, frames - chunk) + chunk)
        part = Task(task.clips[:, here], task.controls[:, here], task.prompts)
        videos, seconds = _sampled(options, adapted, part, f"chunk_{start}")
        parts.append(videos[:, chunk - min(chunk, frames - start) :])
        total += seconds
    videos = np.concatenate(parts, axis=1)
    rows.append(
        {"sampler": f"chunks of {chunk}", **_ends(videos), "seconds a video": f"{total:.1f}"}
    )
    return rows


def memory(options, model) -> list[dict]:
    """A row a number of frames."""
    import jax
    import jax.numpy as jnp

    rows = []
    for frames in map(int, options.memory_frames.split(",")):
        row = {"frames": frames}
        for name, hierarchical in (("full attention", False), ("hierarchical", True)):
            adapted = _adapted(options, model, frames, hierarchical=hierarchical).model
            stage = adapted.stage
            cond = stage.cond_shapes(1, 0)
            shapes = jax.eval_shape(lambda params: params, adapted.params)
            z = jax.ShapeDtypeStruct((1, *stage.z_shape), jnp.float32)
            logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
            compiled = jax.jit(stage.raw_output).lower(shapes, z, logsnr, cond).compile()
            row[f"{name}, MB"] = round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)
        rows.append(row)
    return rows


def make_task(options, frames: int) -> Task:
    """Held-out clips of one object and their true control videos."""
    from vdm_jax.data import controls
    from vdm_jax.data.scenes import world

    clips, videos, prompts = [], [], []
    for index in range(options.clips):
        scene = world.draw_scene(0, "held_out", index, num_objects=1, num_frames=frames)
        clip = world.render(scene, _SIZE)
        clips.append(clip.video)
        # Edges are depicted as depth is: one channel that becomes three.
        videos.append(controls.depth(getattr(clip, options.control)))
        prompts.append(scene.frame_captions[frames // 2])
    return Task(np.stack(clips), np.stack(videos), prompts)


def _adapted(options, model, frames: int, **settings):
    from vdm_jax.pipelines import controlvideo

    return controlvideo.adapt(model, options.controlnet, frames, **settings)


def _sampled(options, adapted, task: Task, name: str) -> tuple[np.ndarray, float]:
    """Videos, and the seconds that each took. Those that lie in OUT are read."""
    import jax

    from vdm_jax.data import video_io

    changes = {"steps": options.steps, "guidance": options.guidance}
    told = json.dumps({**changes, "control": options.control, "prompts": task.prompts})
    path = Path(options.out) / f"{name}.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["told"]) != told or stored["videos"].shape[1] != task.clips.shape[1]:
                raise SystemExit(f"{path}: was sampled with other flags; choose another --out")
            return stored["videos"], float(stored["seconds"])
    started = time.monotonic()
    videos = adapted.sample(jax.random.key(0), task.controls, task.prompts, **changes)
    seconds = (time.monotonic() - started) / len(videos)
    np.savez_compressed(path, videos=videos, seconds=seconds, told=told)
    video_io.contact_sheet(path.with_suffix(".png"), videos, task.prompts, max_clips=16)
    return videos, seconds


def _row(name: str, task: Task, videos: np.ndarray, seconds: float) -> dict:
    from vdm_jax.evaluation import fidelity

    readings = [[seen(frame) for frame in video] for video in videos]
    same = sum(row[0] is not None and len(set(row)) == 1 for row in readings)
    scores = np.array([edge_f1(a, b) for a, b in zip(videos, task.clips, strict=True)])
    errors = fidelity.warp_error(videos).clips
    return {
        "attention": name,
        "all frames alike": share(same, len(videos)),
        "edge F1": mean(scores),
        "1000 x warp error": mean(1e3 * errors[np.isfinite(errors)]),
        "seconds a video": f"{seconds:.1f}",
    }


def _ends(videos: np.ndarray) -> dict:
    pairs = [(seen(video[0]), seen(video[-1])) for video in videos]
    same = sum(first is not None and first == last for first, last in pairs)
    return {"both ends alike": share(same, len(videos))}


def seen(frame: np.ndarray) -> tuple[str, ...] | None:
    """Object, colour and background of a frame; None where the judge reads none."""
    from vdm_jax.evaluation import scene_judge

    reading = scene_judge.read(frame[None])[0]
    seen = (reading.object, reading.color, reading.background)
    return None if scene_judge.NONE in seen else seen


def edge_f1(video: np.ndarray, reference: np.ndarray) -> float:
    """The F1 of Canny edges, uint8 `f h w 3`, where an edge pixel counts as found within one pixel
    of an edge."""
    from scipy.ndimage import maximum_filter

    from vdm_jax.data import controls

    ours, theirs = (controls.canny(x)[..., 0] > 0 for x in (video, reference))
    near_ours, near_theirs = (maximum_filter(x, (1, 3, 3)) for x in (ours, theirs))
    precision = (ours & near_theirs).sum() / max(ours.sum(), 1)
    recall = (theirs & near_ours).sum() / max(theirs.sum(), 1)
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def share(count: int, total: int) -> str:
    from vdm_jax.evaluation.intervals import share_interval

    found = share_interval(count, total)
    return f"{found.value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def mean(values: np.ndarray) -> str:
    from vdm_jax.evaluation.intervals import bootstrap

    if len(values) < 2:
        return "-"
    found = bootstrap(lambda x: float(x.mean()), np.asarray(values)[:, None])
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    main()
