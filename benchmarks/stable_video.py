"""Stable Video Diffusion's claims on scenes: image pre-training helps, and numbers steer motion.

    python -m benchmarks.stable_video --pretrained=MODEL --scratch=MODEL [--clips=48] [--out=DIR]
    python -m benchmarks.stable_video --model=MODEL [--pictures=24] [--out=DIR]

  pretraining  the stage `video` that started from an image model against the same stage from random
               parameters, after equally many updates: the loss of held-out clips, with the same
               noise for each model, and the shares of clips, sampled for held-out captions at the
               model's lowest frame rate, that show the object, its colour, motion and background,
               and all of these
  motion       the stage `image_to_video`: clips of the same held-out pictures, captions and noise
               at several motion buckets, and at several frame rates: the change of a pixel from
               frame to frame, of 255, and the speed of the object, in pixels a frame. Rank
               correlation is Spearman's, over the settings for each picture, averaged over the
               pictures; steps are the differences between one setting and the next, picture by
               picture. The data's own clips of these pictures are measured at the same frame rates.

A motion bucket is an amount of motion a second, so a lower frame rate means more motion between two
frames. Prints Markdown, and writes it, figures.json and sheets of clips to DIR. Intervals are 95%:
Wilson's for shares, by bootstrap over clips elsewhere.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_SHOWN = 5  # clips of each setting on a sheet
_MEASURES = ("change", "speed")


class Clips(NamedTuple):
    """Held-out clips as a model's own: frames at one of its frame rates.

    Attributes:
      videos: uint8 [n, f, h, w, 3].
      captions: of each.
      fps: of each.
    """

    videos: np.ndarray
    captions: list[str]
    fps: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stable_video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pretrained", metavar="MODEL", help="the stage video")
    parser.add_argument("--scratch", metavar="MODEL", help="the same from random parameters")
    parser.add_argument("--model", metavar="MODEL", help="the stage image_to_video")
    parser.add_argument("--clips", type=int, default=48, metavar="N", help="default 48")
    parser.add_argument("--draws", type=int, default=4, metavar="N", help="of noise a clip: 4")
    parser.add_argument("--pictures", type=int, default=24, metavar="N", help="default 24")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's own")
    parser.add_argument("--buckets", default="30,80,130,200", metavar="N,…", help="at the 2nd rate")
    parser.add_argument("--out", default="stable_video", metavar="DIR")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    if not (options.model or (options.pretrained and options.scratch)):
        parser.error("give --pretrained and --scratch, or --model, or all three")

    from vdm_jax.cli import common

    common.setup("any")
    import vdm_jax

    out, figures = Path(options.out), {}
    out.mkdir(parents=True, exist_ok=True)
    if options.pretrained:
        sources = {"image model": options.pretrained, "random parameters": options.scratch}
        models = {name: vdm_jax.load(source) for name, source in sources.items()}
        figures["pretraining"] = pretraining(
            models, options.clips, options.draws, options.steps, out
        )
        print(pretraining_table(figures["pretraining"]), flush=True)
    if options.model:
        buckets = [float(text) for text in options.buckets.split(",")]
        figures["motion"] = motion(
            vdm_jax.load(options.model), buckets, options.pictures, options.steps, out
        )
        print(motion_table(figures["motion"]), flush=True)
    write = {"pretraining": pretraining_table, "motion": motion_table}
    for name, found in figures.items():
        (out / f"{name}.md").write_text(write[name](found))
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def held_out(model: Any, count: int, rate: float | None = None) -> Clips:
    """Held-out clips of scenes; without a rate each has one of the model's, in turn."""
    from vdm_jax.evaluation import clips

    view, frames = model.stage.view, model.stage.video_shape[0]
    found = clips.from_rendered("scenes", model.config.data.config, "held_out", count)
    rates = view.rates if rate is None else (rate,)
    fps = np.array([rates[i % len(rates)] for i in range(count)], np.float32)
    strides = np.rint(view.data_fps / fps).astype(int)
    chosen = [
        video[: (frames - 1) * stride + 1 : stride]
        for video, stride in zip(found.videos, strides, strict=True)
    ]
    return Clips(np.stack(chosen), list(found.captions), fps)


# --- image pre-training -------------------------------------------------------------------------


def pretraining(
    models: Mapping[str, Any], count: int, draws: int, steps: int | None, out: Path
) -> dict[str, Any]:
    """Of each model its loss and what its samples show; of the first two the difference in loss."""
    import jax

    from vdm_jax.data import video_io
    from vdm_jax.evaluation import intervals

    first, *_ = models.values()
    data, slowest = held_out(first, count), min(first.stage.view.rates)
    losses = {name: clip_losses(model, data, draws) for name, model in models.items()}
    rows: dict[str, Any] = {"data": {"shares": shares(held_out(first, count, slowest))}}
    for name, model in models.items():
        videos = model.sample(jax.random.key(0), prompts=data.captions, steps=steps, fps=slowest)
        shown = data.captions[:_SHOWN]
        video_io.contact_sheet(out / f"{name.replace(' ', '_')}.png", videos[:_SHOWN], shown)
        rows[name] = {
            "loss": interval(losses[name]),
            "shares": shares(data._replace(videos=videos)),
        }
        print(name, json.dumps(rows[name]), flush=True)
    one, other = list(losses.values())[:2]
    both = np.stack([one, other], axis=1)
    ratio = intervals.bootstrap(lambda x: float(x[:, 0].mean() / x[:, 1].mean()), both)
    return {
        "n": count,
        "rows": rows,
        "difference": interval(one - other),
        "ratio": list(ratio[:3]),
    }


def clip_losses(model: Any, data: Clips, draws: int) -> np.ndarray:
    """The training loss of each clip, averaged over draws of noise and its level that depend on the
    clip alone."""
    import jax

    from vdm_jax.models.text.words import NULL
    from vdm_jax.stage.conditions.prompt import Text

    encoder = model.stage.find(Text).encoder
    text, null = (
        encoder.encode(texts) for texts in (data.captions, [encoder.null_text] * len(data.captions))
    )
    rows = {**text, **{f"{NULL}{name}": value for name, value in null.items()}}
    rows |= {"video": data.videos, "fps": data.fps}
    loss = jax.jit(lambda *arguments: model.stage.loss(*arguments)[0])
    found = np.zeros((len(data.videos), draws))
    for clip in range(len(found)):
        batch = {name: np.asarray(value[clip : clip + 1]) for name, value in rows.items()}
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), clip), draw)
            found[clip, draw] = loss(model.params, batch, key, model.frozen)
    return found.mean(1)


def shares(data: Clips) -> dict[str, list[float]]:
    """By factor the share of clips that show what their captions say, with Wilson's interval."""
    from vdm_jax.evaluation import intervals, judge
    from vdm_jax.evaluation.scene_judge import SCENES

    found = judge.score(data.videos, data.captions, SCENES)
    n = int(found.pop("n"))
    return {
        name: list(intervals.share_interval(round(share * n), n)[:3])
        for name, share in found.items()
    }


def pretraining_table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    factors = list(found["rows"]["data"]["shares"])
    heads = [f"video stage from, n = {found['n']}", "loss", *(f"{name}, %" for name in factors)]
    lines = _head(heads)
    for name, row in found["rows"].items():
        cells = [cell(row.get("loss"), 3), *(cell(row["shares"][f], 1, 100) for f in factors)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    difference, ratio = cell(found["difference"], 3), cell(found["ratio"], 3)
    lines += ["", f"Loss from the image model less that from random parameters: {difference};"]
    lines += [f"the one over the other: {ratio}."]
    return "\n".join(lines) + "\n"


# --- steering -----------------------------------------------------------------------------------


def motion(
    model: Any, buckets: Sequence[float], count: int, steps: int | None, out: Path
) -> dict[str, Any]:
    """How clips of the same pictures move, by motion bucket and by frame rate."""
    import jax

    from vdm_jax.data import video_io
    from vdm_jax.pipelines import editing

    rates = sorted(model.stage.view.rates, reverse=True)
    base_rate, base_bucket = rates[len(rates) // 2], sorted(buckets)[(len(buckets) - 1) // 2]
    data = held_out(model, count, base_rate)
    cells = {(bucket, base_rate): f"bucket {bucket:g}" for bucket in sorted(buckets)}
    cells |= {(base_bucket, rate): f"{rate:.3g} fps" for rate in rates if rate != base_rate}
    measured, videos = {}, {}
    for (bucket, rate), label in cells.items():
        sampler = model.sampler(motion_bucket=bucket, fps=rate, steps=steps)
        videos[label] = editing.animate(
            sampler, model.params, jax.random.key(0), data.videos[:, 0], data.captions
        )
        measured[bucket, rate] = measures(videos[label])
        means = np.nanmean(measured[bucket, rate], axis=0)
        print(f"bucket {bucket:g}, {rate:.3g} fps", means, flush=True)
    of_data = {rate: measures(held_out(model, count, rate).videos) for rate in rates}
    shown = [np.array(clips[i]) for i in range(min(_SHOWN, count)) for clips in videos.values()]
    labels = [f"{label}: {data.captions[i]}" for i in range(min(_SHOWN, count)) for label in videos]
    video_io.contact_sheet(out / "motion.png", np.stack(shown), labels, max_clips=len(labels))
    return {
        "n": count,
        "bucket": sweep({b: measured[b, base_rate] for b in sorted(buckets)}),
        "fps": sweep({rate: measured[base_bucket, rate] for rate in rates}),
        "data": sweep(of_data),
        "at": {"fps": base_rate, "bucket": base_bucket},
    }


def measures(videos: np.ndarray) -> np.ndarray:
    """Of each clip the change of a pixel from frame to frame, of 255, and its object's speed in
    pixels a frame, NaN if none is seen: [n, 2]."""
    from benchmarks import make_a_video

    changes = np.abs(np.diff(videos.astype(np.float32), axis=1)).mean((1, 2, 3, 4))
    speeds = [make_a_video.motion(video, 1)[0] for video in videos]
    return np.stack([changes, np.array(speeds)], axis=1)


def sweep(found: Mapping[float, np.ndarray]) -> dict[str, Any]:
    """By measure: its mean at each setting, the steps from one to the next, and the mean rank
    correlation with the setting; of the clips in which all settings show it."""
    settings = list(found)
    values = np.stack(list(found.values()))  # [settings, n, measures]
    result: dict[str, Any] = {"settings": settings}
    for number, name in enumerate(_MEASURES):
        seen = values[:, np.isfinite(values[:, :, number]).all(0), number].T  # [n, settings]
        row: dict[str, Any] = {"n": len(seen)}
        if len(seen) > 1:
            row["means"] = [interval(seen[:, i]) for i in range(len(settings))]
            row["steps"] = [interval(step) for step in np.diff(seen, axis=1).T]
            row["correlation"] = interval(rank_correlations(settings, seen))
        result[name] = row
    return result


def rank_correlations(settings: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of `values` [n, settings] with the settings; 0 for a row
    of equal values."""
    from scipy import stats

    ranks = stats.rankdata(values, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    wanted = stats.rankdata(settings)
    wanted -= wanted.mean()
    size = np.sqrt(np.square(ranks).sum(1) * np.square(wanted).sum())
    return np.divide(ranks @ wanted, size, out=np.zeros(len(ranks)), where=size > 0)


def motion_table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    at, lines = found["at"], []
    titles = {
        "bucket": f"Motion bucket, at {at['fps']:.3g} frames a second",
        "fps": f"Frames a second, at motion bucket {at['bucket']:g}",
        "data": "Frames a second of the data's clips",
    }
    units = {"change": "change of a pixel, of 255", "speed": "speed, pixels a frame"}
    for name, title in titles.items():
        row = found[name]
        lines += _head([title, *(f"{setting:.3g}" for setting in row["settings"]), "correlation"])
        for measure in _MEASURES:
            values = row[measure]
            if values["n"] < 2:
                continue
            means = [cell(mean, 2) for mean in values["means"]]
            steps = [cell(step, 2) for step in values["steps"]]
            cells = [*means, cell(values["correlation"], 2)]
            label = f"{units[measure]}, n = {values['n']}"
            lines.append(f"| {label} | {' | '.join(cells)} |")
            lines.append(f"| – from the setting before | | {' | '.join(steps)} | |")
        lines.append("")
    return "\n".join(lines)


# --- figures ------------------------------------------------------------------------------------


def interval(values: np.ndarray) -> list[float]:
    """The mean of a figure of each clip, and the ends of its bootstrap interval."""
    from vdm_jax.evaluation import intervals

    return list(intervals.bootstrap(lambda x: float(x.mean()), np.asarray(values)[:, None])[:3])


def cell(values: Sequence[float] | None, digits: int, scale: float = 1.0) -> str:
    """A value with its interval."""
    if values is None:
        return "–"
    value, low, high = (f"{scale * number:.{digits}f}" for number in values)
    return f"{value} [{low}, {high}]"


def _head(cells: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|---" + "|---:" * (len(cells) - 1) + "|"]


if __name__ == "__main__":
    main()
