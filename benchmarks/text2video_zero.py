"""Text2Video-Zero with and without motion in latents and attention across frames.

    python -m benchmarks.text2video_zero --model=MODEL [--prompts=64] [--frames=8] [--out=DIR]

MODEL is a latent image model of the data set `scenes`, 64 x 64. All four variants sample the same
prompts with the same seed; without motion each frame begins with noise of its own. DIR receives
table.md, figures.json, the clips (NAME.npz) and contact_sheet.png.

Of each clip are measured: whether the judge of scenes sees the same object, colour and background
in every frame alone; whether these are the caption's; how far the object moves from frame to frame,
in pixels, against what was asked; its unsteadiness, the root mean square distance of its centre, in
pixels, from motion at one velocity; and the mean change of a pixel, of 255, from frame to frame.

The same command goes on: variants whose clips are in DIR are not sampled again.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_SHOWN = 3  # prompts on the sheet


class Clip(NamedTuple):
    """What is measured of a clip: truth values; pixels a frame (x, y) and pixels, NaN if no object
    is seen; and levels of 255."""

    same: bool
    right: bool
    motion: tuple[float, float]
    unsteadiness: float
    change: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.text2video_zero",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="MODEL")
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's own")
    parser.add_argument("--guidance", type=float, metavar="G", help="default: the model's own")
    parser.add_argument(
        "--motion", default="0.5,0", metavar="X,Y", help="latent places a frame (default 0.5,0)"
    )
    parser.add_argument(
        "--timesteps", default="881,941", metavar="T',T", help="of 1000; default 881,941 (paper)"
    )
    parser.add_argument("--variants", default="", metavar="NAME,…", help="default: all four")
    parser.add_argument("--out", default="text2video_zero", metavar="DIR")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    import jax

    from vdm_jax.cli import common

    common.setup("any")
    import vdm_jax
    from vdm_jax.data import video_io
    from vdm_jax.evaluation import scene_judge
    from vdm_jax.pipelines import text2video_zero as pipeline

    model, out = vdm_jax.load(options.model), Path(options.out)
    scene_judge.check_size(f"--model={options.model}", model.stage.video_shape)
    out.mkdir(parents=True, exist_ok=True)
    x, y = map(float, options.motion.split(","))
    texts, rows, shown = captions(options.prompts), {}, {}
    factor = model.stage.space.multiple
    early, late = map(int, options.timesteps.split(","))
    for name, zero in variants((x, y), early, late).items():
        if options.variants and name not in options.variants.split(","):
            continue
        path = out / f"{name}.npz"
        if not path.exists():
            start = time.perf_counter()
            videos = pipeline.adapt(model, options.frames, zero).sample(
                jax.random.key(0), texts, steps=options.steps, guidance=options.guidance
            )
            seconds = (time.perf_counter() - start) / len(texts)
            np.savez_compressed(path, video=videos, prompts=texts, seconds=seconds)
        with np.load(path) as stored:
            videos, seconds = stored["video"], float(stored["seconds"])
            if list(stored["prompts"]) != texts:
                raise SystemExit(f"{path}: its prompts are not those of --prompts={len(texts)}")
        measured = [measure(video, text) for video, text in zip(videos, texts, strict=True)]
        rows[name] = {**figures(measured), "seconds": seconds}
        shown |= {f"{name}: {text}": videos[i] for i, text in enumerate(texts[:_SHOWN])}
        print(name, json.dumps(rows[name]), flush=True)
    asked = (-factor * x, -factor * y)
    table = as_table(rows, asked)
    (out / "table.md").write_text(table)
    record = {"model": options.model, "asked": asked, "prompts": texts, "rows": rows}
    (out / "figures.json").write_text(json.dumps(record, indent=1) + "\n")
    order = sorted(shown, key=lambda label: label.split(": ")[1])
    sheet = out / "contact_sheet.png"
    video_io.contact_sheet(sheet, np.stack([shown[label] for label in order]), order)
    print(table)


def variants(motion: tuple[float, float], early: int, late: int) -> dict:
    """The four settings by name; early, late: T' and T."""
    from vdm_jax.models.blocks.cross_frame import FIRST, OWN, CrossFrame
    from vdm_jax.systems.text2video_zero import INDEPENDENT, Text2VideoZero

    both = Text2VideoZero(motion=motion, unit="latent", t_prime=early, t=late)
    alone = CrossFrame(frames=OWN)
    assert both.attention == CrossFrame(frames=FIRST)
    return {
        "both": both,
        "motion": dataclasses.replace(both, attention=alone),
        "attention": dataclasses.replace(both, start=INDEPENDENT),
        "neither": dataclasses.replace(both, start=INDEPENDENT, attention=alone),
    }


def captions(count: int) -> list[str]:
    """Captions of rendered frames of one object, each once."""
    from vdm_jax.data.scenes import world

    found: dict[str, None] = {}
    index = 0
    while len(found) < count:
        scene = world.draw_scene(0, "train", index, num_objects=1, num_frames=2)
        found.setdefault(scene.frame_captions[0])
        index += 1
    return list(found)


def measure(video: np.ndarray, caption: str) -> Clip:
    """The figures of a clip, uint8 f 64 64 3, of one captioned object."""
    from vdm_jax.evaluation import scene_judge
    from vdm_jax.evaluation.judge import NONE

    ((wanted, color, _, _, background),) = scene_judge.SCENES.parse(caption)
    seen = set()
    for frame in video:
        readings = scene_judge.read(frame[None])
        seen.add(tuple((one.object, one.color, one.background) for one in readings))
    same = len(seen) == 1 and not any(NONE in one for one in next(iter(seen)))
    right = seen == {((wanted, color, background),)}
    centres = scene_judge.centres(video)
    motion, unsteadiness = (float("nan"),) * 2, float("nan")
    if centres is not None:
        times = np.arange(len(video))
        line = np.polyfit(times, centres * scene_judge.SIZE, 1)
        motion = tuple(line[0].tolist())
        apart = centres * scene_judge.SIZE - (times[:, None] * line[0] + line[1])
        unsteadiness = float(np.sqrt(np.square(apart).sum(1).mean()))
    change = float(np.abs(np.diff(video.astype(float), axis=0)).mean())
    return Clip(same, right, motion, unsteadiness, change)


def figures(clips: Sequence[Clip]) -> dict:
    """Shares with Wilson's intervals and the mean motion with bootstrap intervals, 95%."""
    from vdm_jax.evaluation import intervals

    found = {"n": len(clips)}
    for name in ("same", "right"):
        count = sum(getattr(clip, name) for clip in clips)
        found[name] = list(intervals.share_interval(count, len(clips))[:3])
    seen = np.array([clip.motion for clip in clips])
    seen = seen[np.isfinite(seen).all(1)]
    found["seen"] = len(seen)
    for axis, name in enumerate("xy"):
        if len(seen) > 1:
            interval = intervals.bootstrap(lambda x: float(x.mean()), seen[:, axis : axis + 1])
            found[f"motion_{name}"] = list(interval[:3])
    for name in ("unsteadiness", "change"):
        values = np.array([getattr(clip, name) for clip in clips])
        values = values[np.isfinite(values)]
        if len(values) > 1:
            interval = intervals.bootstrap(lambda x: float(x.mean()), values[:, None])
            found[name] = list(interval[:3])
    return found


def as_table(rows: dict, asked: tuple[float, float]) -> str:
    """The figures as Markdown."""
    lines = [
        "| variant | n | same in all frames | and as captioned | object seen | motion x; y, pixels "
        f"a frame (asked {asked[0]:g}; {asked[1]:g}) | unsteadiness, pixels | change, of 255 | "
        "seconds a clip |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        shares = (
            f"{100 * row[key][0]:.1f}% [{100 * row[key][1]:.1f}, {100 * row[key][2]:.1f}]"
            for key in ("same", "right")
        )
        moves = [row.get(f"motion_{axis}") for axis in "xy"]
        text = "; ".join(interval(move) for move in moves)
        rest = (interval(row.get(key)) for key in ("unsteadiness", "change"))
        cells = (name, row["n"], *shares, row["seen"], text, *rest, f"{row['seconds']:.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def interval(found: Sequence[float] | None) -> str:
    """A value and its interval, "–" where there is none."""
    return "–" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


if __name__ == "__main__":
    main()
