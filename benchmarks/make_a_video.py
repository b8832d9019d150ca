"""Make-A-Video's claims on scenes: videos follow texts, move as videos do, and agree in detail.

    python -m benchmarks.make_a_video --model=MODEL [--prompts=64] [--noise=16] [--out=DIR]

MODEL is a cascade of Make-A-Video on scenes: 64 x 64 pixels before super-resolution. No stage of it
was trained on a text with a video. DIR receives table.md, figures.json, contact_sheet.png and the
samples of every stage.

  text    of captions of held-out frames, which say what is where: the shares of clips whose first
          frame shows the object with its colour, the place, the background, and all of these
  motion  speeds of objects, in pixels a frame, at the key frames: of the model's clips, of held-out
          clips of the data, and of frames that the image model samples for the same captions one by
          one. The distance of two distributions of speeds is the first Wasserstein distance.
          Unsteadiness is the root mean square distance, in pixels, from motion at one velocity.
  noise   the warp error of the last stage's clips (Lai et al. 2018), whose frames begin with the
          same noise, and with noise of their own; the motion is that of the stage before
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIDE = 64  # pixels that the judge reads
_SHOWN = 6  # clips on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.make_a_video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="MODEL")
    parser.add_argument("--image", default="scenes_image", metavar="MODEL", help="the baseline")
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--noise", type=int, default=16, metavar="N", help="of them, default 16")
    parser.add_argument("--out", default="make_a_video", metavar="DIR")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    from vdm_jax.cli import common

    common.setup("any")
    import vdm_jax
    from vdm_jax.data import video_io

    cascade, image, out = vdm_jax.load(options.model), vdm_jax.load(options.image), options.out
    figures, videos, captions = measure(cascade, image, options.prompts, options.noise, Path(out))
    table = as_table(figures)
    (Path(out) / "table.md").write_text(table)
    (Path(out) / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    sheet = Path(out) / "contact_sheet.png"
    video_io.contact_sheet(sheet, videos[:_SHOWN], captions[:_SHOWN])
    print(table)


def measure(
    cascade: Any, image: Any, prompts: int, noise: int, out: Path
) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    """All figures, the clips of the last stage of 64 x 64, and their captions."""
    import jax

    from vdm_jax.evaluation import clips

    config = image.config.data.config
    captions = clips.from_rendered("scenes", config, "held_out", prompts, frames=True).captions
    data = clips.from_rendered("scenes", config, "held_out", prompts).videos
    found = {one.name: one for one in cascade.stream(jax.random.key(0), captions, out)}
    given = found["decoder"].videos.shape[1]
    videos = np.array(found["interpolation"].videos)
    skip = (videos.shape[1] - 1) // (given - 1)
    alone = image.sample(jax.random.key(0), prompts=captions, num_samples=given)
    alone = alone.reshape(len(captions), given, *alone.shape[2:])
    whole = data.shape[1] // skip * skip + 1
    figures = {
        "n": len(captions),
        "text": text_figures(
            {"interpolation": videos, "sr_h": coarsened(found["sr_h"].videos)}, captions
        ),
        "motion": motion_figures(
            {"data": data[:, :whole:skip], "model": videos[:, ::skip], "image model": alone}, skip
        ),
        "noise": noise_figures(cascade, found, min(noise, len(captions))),
    }
    return figures, videos, captions


def coarsened(videos: np.ndarray) -> np.ndarray:
    """Videos, uint8 n f h w 3, with 64 x 64 pixels: means of squares."""
    n, f, height, _, c = videos.shape
    ratio = height // SIDE
    squares = np.asarray(videos, np.float32).reshape(n, f, SIDE, ratio, SIDE, ratio, c)
    return np.round(squares.mean((3, 5))).astype(np.uint8)


def text_figures(
    videos: Mapping[str, np.ndarray], captions: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """By stage and factor, the share of captions that the first frame shows, with Wilson's
    interval at 95%."""
    from vdm_jax.evaluation import intervals, judge
    from vdm_jax.evaluation.scene_judge import SCENES

    found: dict[str, dict[str, list[float]]] = {}
    for stage, clips in videos.items():
        scores = judge.score(clips[:, :1], captions, SCENES)
        n = int(scores.pop("n"))
        found[stage] = {
            name: list(intervals.share_interval(round(share * n), n)[:3])
            for name, share in scores.items()
        }
    return found


def motion_figures(
    videos: Mapping[str, np.ndarray], skip: int
) -> dict[str, dict[str, int | list[float]]]:
    """By source, how objects move at key frames, `skip` frames from one to the next; "data" is what
    the others are compared with. Bootstrap intervals at 95%."""
    from vdm_jax.evaluation import intervals

    moves = {
        name: np.array([motion(video, skip) for video in clips]) for name, clips in videos.items()
    }
    seen = {name: rows[np.isfinite(rows).all(1)] for name, rows in moves.items()}
    found: dict[str, dict[str, int | list[float]]] = {}
    for name, rows in seen.items():
        found[name] = {"n": len(moves[name]), "seen": len(rows)}
        if len(rows) < 2:
            continue
        speeds, rough = rows[:, :1], rows[:, 1:]
        found[name]["speed"] = list(intervals.bootstrap(_mean, speeds)[:3])
        found[name]["unsteadiness"] = list(intervals.bootstrap(_mean, rough)[:3])
        if name != "data" and len(seen["data"]) > 1:
            interval = intervals.bootstrap(wasserstein, speeds, seen["data"][:, :1])
            found[name]["distance"] = list(interval[:3])
    return found


def motion(video: np.ndarray, skip: int) -> tuple[float, float]:
    """The speed of a clip's object, in pixels a frame, and its unsteadiness in pixels; NaN where no
    object is seen. The clip has every `skip`-th frame."""
    from vdm_jax.evaluation import scene_judge

    centres = scene_judge.centres(video)
    if centres is None:
        return float("nan"), float("nan")
    times, places = np.arange(len(video)) * skip, centres * SIDE
    fitted = np.polynomial.polynomial.polyfit(times, places, 1)
    apart = places - (fitted[0] + times[:, None] * fitted[1])
    return float(np.linalg.norm(fitted[1])), float(np.sqrt(np.square(apart).sum(1).mean()))


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """The first Wasserstein distance of two sets of numbers [n, 1]: the mean difference of their
    quantiles."""
    at = (np.arange(256) + 0.5) / 256
    return float(np.abs(np.quantile(one, at) - np.quantile(other, at)).mean())


def _mean(x: np.ndarray) -> float:
    return float(x.mean())


def noise_figures(cascade: Any, found: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Warp errors of the last stage with shared and with independent noise, and their difference,
    with bootstrap intervals at 95%."""
    import jax

    from vdm_jax.evaluation import fidelity, intervals
    from vdm_jax.pipelines import model as pretrained

    step, key = cascade.steps[-1], jax.random.fold_in(jax.random.key(0), len(cascade.steps) - 1)
    model, low_res = pretrained.load(step.source), np.array(found["sr_l"].videos[:count])
    ratio = found["sr_h"].videos.shape[2] // low_res.shape[2]
    guides = low_res.repeat(ratio, axis=2).repeat(ratio, axis=3)
    errors = {}
    for name, shared in (("shared", True), ("independent", False)):
        sampler = model.sampler(**{**step.changes, "shared_noise": shared})
        stream = sampler.stream(model.params, key, [""] * count, inputs={"low_res": low_res})
        videos = np.concatenate(list(stream))
        errors[name] = fidelity.warp_error(videos, guides=guides).clips
    both = np.stack(list(errors.values()), axis=1)
    both = 1e4 * both[np.isfinite(both).all(1)]
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "shared": lambda x: float(x[:, 0].mean()),
        "independent": lambda x: float(x[:, 1].mean()),
        "independent - shared": lambda x: float((x[:, 1] - x[:, 0]).mean()),
    }
    figures: dict[str, Any] = {"n": len(both)}
    for name, statistic in statistics.items() if len(both) > 1 else ():
        figures[name] = list(intervals.bootstrap(statistic, both)[:3])
    return figures


def as_table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""

    def cell(values: Sequence[float] | None, scale: float = 1.0, digits: int = 2) -> str:
        if values is None:
            return "–"
        value, low, high = (f"{scale * number:.{digits}f}" for number in values)
        return f"{value} [{low}, {high}]"

    factors = list(next(iter(figures["text"].values())))
    lines = [f"| stage, n = {figures['n']} | {' | '.join(f'{name}, %' for name in factors)} |"]
    lines += ["|---" * (1 + len(factors)) + "|"]
    for stage, row in figures["text"].items():
        cells = [cell(row[name], 100, 1) for name in factors]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    heads = ("clips of", "n", "object seen", "speed, pixels a frame", "distance from the data's")
    heads += ("unsteadiness, pixels",)
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in figures["motion"].items():
        cells = [cell(row.get(key)) for key in ("speed", "distance", "unsteadiness")]
        lines.append(f"| {name} | {row['n']} | {row['seen']} | {' | '.join(cells)} |")
    lines += ["", f"| noise of SR_h's frames, n = {figures['noise']['n']} | warp error, 1e-4 |"]
    lines += ["|---|---|"]
    for name in ("shared", "independent", "independent - shared"):
        lines.append(f"| {name} | {cell(figures['noise'].get(name))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
