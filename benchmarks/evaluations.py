"""Quality against evaluations of the network: fewer steps, guidance in part of them, students.

    python -m benchmarks.evaluations --model=moving_shapes --students=moving_shapes_8step:8,4,2
    python -m benchmarks.evaluations --model=scenes_image --metrics=judge --steps=50,25,12,6

All rows begin with the same noise and have the same held-out captions. The first row is the model
at its most steps with guidance in all of them; the others are

  guided    guidance in all of fewer steps: two evaluations a step
  interval  guidance in steps A to B of those, shares of all: one evaluation in each of the others
  without   no guidance: one evaluation a step
  NAME      a student that was distilled from the model, at the steps after the colon

OUT receives report.md, report.json and curve.png. Intervals are 95%: Wilson's for the judge's
shares, see docs/evaluation.md for the others.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
INTERVALS = ((0.0, 0.25), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="MODEL", help="of rendered data")
    parser.add_argument("--students", default="", metavar="MODEL:N,…;…", help="default: none")
    parser.add_argument("--steps", default="64,32,16,8", metavar="N,…", help="64,32,16,8")
    parser.add_argument("--interval_steps", default="", metavar="N,…", help="the most, and a half")
    parser.add_argument("--guidance", type=float, metavar="G", help="default: the model's own")
    parser.add_argument("--samples", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument("--metrics", default="judge,fvd", help="judge and those of vdm evaluate")
    parser.add_argument("--out", default="samples/evaluations", metavar="OUT")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    from vdm_jax.cli import common, progress
    from vdm_jax.evaluation import ladder
    from vdm_jax.pipelines import model as pretrained

    common.setup("any")
    model, out = pretrained.load(options.model), Path(options.out)
    prompts, score, figures = measures(model, options)
    rows, first = [], None
    for each, name, family, changes in progress.track(list(entries(options, model)), "measuring"):
        row, videos = ladder.measure(
            each.sampler(**changes),
            each.params,
            prompts,
            name=name,
            family=family,
            score=score,
            figures=figures,
            reference=first,
        )
        first = videos if first is None else first
        rows.append(row)
        print(
            name, row.steps, row.evaluations, dict(row.scores), round(row.distance, 1), flush=True
        )
    out.mkdir(parents=True, exist_ok=True)
    table = ladder.markdown(rows)
    (out / "report.md").write_text(table, encoding="utf-8")
    ladder.save(out / "report.json", rows)
    ladder.curve(out / "curve.png", rows, over="evaluations")
    print(table)


def entries(options, model) -> Iterator[tuple[Any, str, str, dict[str, Any]]]:
    """Model, name and family of each row, and the changes to the model's own sampler."""
    from vdm_jax.pipelines import model as pretrained

    steps = numbers(options.steps)
    own = {} if options.guidance is None else {"guidance": options.guidance}
    for count in steps:
        yield model, "guided", "guided", {**own, "steps": count}
    for count in numbers(options.interval_steps) or [steps[0], steps[0] // 2]:
        for start, end in INTERVALS:
            changes = {"steps": count, "guidance_start": start, "guidance_end": end}
            yield model, f"{start:g} to {end:g}", f"interval, {count} steps", own | changes
    for count in steps:
        yield model, "without", "without", {"guidance": 1.0, "steps": count}
    for text in filter(None, options.students.split(";")):
        name, _, counts = text.partition(":")
        student = pretrained.load(name)
        for count in numbers(counts):
            changes = own if student.stage.takes_guidance else {}
            yield student, Path(name).stem, Path(name).stem, {**changes, "steps": count}


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(part) for part in filter(None, text.split(","))]


def measures(model, options) -> tuple[list[str], Any, Any]:
    """Held-out captions, what scores videos of them, and what measures these against the data."""
    from vdm_jax.data import tfds_source
    from vdm_jax.evaluation import clips, comparison, i3d, i3d_weights, judge, suite, vocabularies

    data, metrics = model.config.data, options.metrics.split(",")
    captions = captions_of(model, tfds_source)
    prompts = list(itertools.islice(itertools.cycle(captions), options.samples))

    def score(videos: np.ndarray, prompts: list[str]) -> dict[str, float]:
        shares = judge.score(videos, prompts, vocabularies.choose(prompts))
        return {name: float(value) for name, value in shares.items() if name != "n"}

    names = [name for name in metrics if name != "judge"]
    if not names:
        return prompts, score, None
    reference = clips.from_data(data, options.samples, seed=0)
    evaluation = comparison.Evaluation(
        samples=reference,
        reference=reference,
        network=i3d.I3DFeatures(params=i3d_weights.load_weights()),
        stride=data.frame_stride,
    )

    def figures(videos: np.ndarray, prompts: list[str], subject: dict[str, Any]):
        description = {"data": "samples", "split": "", "resize": "none"}
        samples = clips.Clips(videos=videos, captions=prompts, description=description)
        return suite.measure(evaluation.of(samples, subject), names)

    return prompts, score if "judge" in metrics else None, figures


def captions_of(model, tfds_source) -> list[str]:
    """Held-out captions: of frames, for a model of images."""
    data, still = model.config.data, model.stage.video_shape[0] == 1
    if not still:
        return tfds_source.rendered_captions(data, "held_out")
    from vdm_jax.evaluation import clips

    found = clips.from_rendered(data.name, data.config, "held_out", 256, frames=True)
    return list(found.captions)


if __name__ == "__main__":
    main()
