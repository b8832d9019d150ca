"""What each stage of a trained cascade is worth, alone and in its place.

    python -m benchmarks.cascade --model=imagen_video_tiny
    python -m benchmarks.cascade --stage=DIR/ssr_64 --data_dir=DIR/shots/held_out --fvd

Clips and captions of the data's split `held_out`, whose combinations no stage was trained on; with
--stage, stages each on its own and clips of --data_dir.

  alone    each stage that refines is given true coarse clips: PSNR against the true fine ones (of
           a TSR stage, of the frames that it adds, and of those of them between two given ones,
           as after the last given one a blend is its copy), and FVD (--fvd), beside bilinear
           pixels or frames blended in time, with the 95% interval of the difference over the
           clips; and PSNR of what one step makes, the mean of all that it could make, which is
           what PSNR asks for (not of distilled students, which are for their own steps). With
           --rife beside RIFE's frames too; of several stages with the same clips, each beside the
           first
  chain    captions through the whole cascade: what the judge reads at every stage, and the time
  noise    the last stages' outputs by the noise put on what they refine (--noise 0,3,10: α²/σ²)

Prints Markdown, and writes it and the figures to OUT/report.md and OUT/report.json.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("alone", "chain", "noise")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cascade",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="CASCADE", help="a shipped name, or a workdir")
    parser.add_argument(
        "--stage", action="append", default=[], metavar="SOURCE", help="a stage instead"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="of clips for --stage")
    parser.add_argument("--out", default="samples/cascade", metavar="OUT", help="default: there")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    parser.add_argument("--noise", default="0,3,10", help="α²/σ², 0 = none (default 0,3,10)")
    parser.add_argument("--fvd", action="store_true", help="also FVD (I3D, a second a clip)")
    parser.add_argument("--rife", action="store_true", help="beside stages that add frames")

    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    if bool(options.stage) == bool(options.model):
        parser.error("give --model or --stage")
    from vdm_jax.cli import common
    from vdm_jax.pipelines import cascade as cascade_sampling

    common.setup("any")
    parts = options.parts.split(",")
    if options.stage:
        parts = ["alone"]
        steps = [
            cascade_sampling.CascadeStep(name=Path(source).name, source=source)
            for source in options.stage
        ]
    else:
        steps = cascade_sampling.load(options.model).steps
    out, found = Path(options.out), {}
    if "alone" in parts:
        found["alone"] = alone(steps, options)
    if {"chain", "noise"} & set(parts):
        truth, captions = held_out(steps[-1], options.clips, options.data_dir)
    if "chain" in parts:
        found["chain"] = chain(steps, captions, out / "chain")
    if "noise" in parts:
        levels = [float(level) for level in options.noise.split(",")]
        found["noise"] = noise(steps, captions, levels, out, truth, options.fvd)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in found.items())
    (out / "report.md").write_text(text + "\n")
    print("\n" + text)


def held_out(step, count: int, data_dir: str | None) -> tuple[np.ndarray, list[str]]:
    """Clips of the shape of a stage's data, and their captions."""
    from vdm_jax.evaluation import clips
    from vdm_jax.pipelines import model as pretrained

    data = pretrained.read_config(step.source).data
    if data.name == "moving_shapes":
        found = clips.from_rendered("moving_shapes", data.config, "held_out", count)
    else:
        data = data.copy_and_resolve_references()
        with data.unlocked():
            data.data_dir = data_dir or data.data_dir
        found = clips.from_data(data, count, seed=0)
    return found.videos, found.captions


def alone(steps, options) -> list[dict]:
    """A row a stage that refines: it and its baseline against the truth."""
    import jax
    import jax.numpy as jnp

    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.stage import resize
    from vdm_jax.stage.conditions.video import LowResVideo
    from vdm_jax.stage.space import from_uint8, to_uint8

    rows, first = [], {}
    for step in steps:
        model = pretrained.load(step.source)
        stage = model.stage
        low_res = stage.find(LowResVideo)
        if low_res is None:  # the base
            continue
        truth, captions = held_out(step, options.clips, options.data_dir)
        prompts = captions if stage.text_encoder is not None else [""] * len(captions)
        fine = resize.coarsen(from_uint8(jnp.asarray(truth)), stage.video_shape[:3])
        coarse = stage.coarse(truth)
        low = from_uint8(jnp.asarray(coarse))
        baseline = np.asarray(to_uint8(resize.refine(low, stage.video_shape[:3], "blend")))
        # True coarse clips have no artefacts for noise to hide: none is added.
        changes = {**step.changes, "augmentation": 0.0}

        def sampled(model=model, prompts=prompts, coarse=coarse, **changes) -> np.ndarray:
            stream = model.sampler(**changes).stream(
                model.params, jax.random.key(0), prompts, inputs={"low_res": coarse}
            )
            return np.concatenate(list(stream))

        videos, steps = sampled(**changes), model.sampler(**changes).steps
        reference = np.asarray(to_uint8(fine))
        factor = resize.ratios(stage.video_shape[:3], low_res.low_res_shape[:3])[0]
        made = {"psnr": videos}
        if steps > 1 and "distill" not in model.config:
            made["psnr of one step"] = sampled(**{**changes, "steps": 1})
        made["baseline psnr"] = baseline
        same = (truth.tobytes(), fine.shape, low.shape)
        name, others = first.setdefault(same, (step.source, videos))
        if name != step.source:
            made[f"psnr of {name}"] = others
        if options.rife and factor > 1:
            made["rife psnr"] = by_flow(coarse, factor)
        row = {"stage": step.name, "steps": steps}
        frame = np.arange(len(reference[0]))
        frames = {"": frame >= 0}
        if factor > 1:
            # In given frames the baseline's copies are exact.
            added = frame % factor > 0
            frames = {"": added, ", between": added & (frame < len(frame) - factor)}
        for ending, chosen in frames.items():
            row |= compared(
                {name + ending: clips[:, chosen] for name, clips in made.items()},
                reference[:, chosen],
            )
        if options.fvd:
            fvd = frechet(reference)
            row |= {"fvd": fvd(videos), "baseline fvd": fvd(baseline)}
            if "rife psnr" in made:
                row["rife fvd"] = fvd(made["rife psnr"])
        print(row, flush=True)
        rows.append(row)
    return rows


def by_flow(coarse: np.ndarray, factor: int) -> np.ndarray:
    """Clips with `factor` times the frames, by RIFE; after the last given frame its copies."""
    from vdm_jax.pipelines import between
    from vdm_jax.weights import rife

    made = between.interpolate(rife.load(), np.asarray(coarse), factor=factor)
    return np.concatenate([made, np.repeat(made[:, -1:], factor - 1, axis=1)], axis=1)


def chain(steps, captions: list[str], out: Path) -> list[dict]:
    """A row a stage: what the judge reads of its output, and its seconds a clip."""
    import jax

    from vdm_jax.evaluation import judge
    from vdm_jax.pipelines import cascade as cascade_sampling

    rows = []
    model = cascade_sampling.CascadeModel(steps=tuple(steps))
    for output in model.stream(jax.random.key(0), captions, out):
        shares = judge.score(np.asarray(output.videos), captions)
        rows.append(
            {
                "stage": output.name,
                "all right": shares["all"],
                **{name: shares[name] for name in judge.FACTORS},
                "seconds a clip": output.seconds / len(captions),
            }
        )
        print(rows[-1], flush=True)
    return rows


def noise(steps, captions, levels, out: Path, truth: np.ndarray, fvd: bool) -> list[dict]:
    """A row a level of noise on what every stage refines: the last output's judge and FVD."""
    import jax

    from vdm_jax.evaluation import judge
    from vdm_jax.pipelines import cascade as cascade_sampling

    rows = []
    model = cascade_sampling.CascadeModel(steps=tuple(steps))
    distance = frechet(truth) if fvd else None
    for level in levels:
        changed = {name: {"augmentation": level} for name in refining(steps)}
        started = time.monotonic()
        key, folder = jax.random.key(0), out / f"noise_{level:g}"
        videos = model.sample(key, prompts=captions, changes=changed, out=folder)
        row = {"α²/σ²": level or "none", "all right": judge.score(videos, captions)["all"]}
        if distance is not None:
            row["fvd"] = distance(videos)
        print(row, f"{time.monotonic() - started:.0f} s", flush=True)
        rows.append(row)
    return rows


def refining(steps) -> list[str]:
    """The names of the stages that refine a video: each but the base."""
    from vdm_jax.pipelines import model as pretrained

    return [step.name for step in steps if pretrained.read_config(step.source).stage.low_res]


def compared(made: dict[str, np.ndarray], reference: np.ndarray) -> dict:
    """PSNR of each, dB, the mean over the clips; and how much more the first has than each other,
    with the 95% interval over the clips."""
    from vdm_jax.evaluation import fidelity, intervals

    clips = {name: fidelity.psnr(videos, reference).clips for name, videos in made.items()}
    first, *others = clips
    row: dict = {name: float(np.mean(values)) for name, values in clips.items()}
    for name in others:
        found = intervals.bootstrap(np.mean, (clips[first] - clips[name])[:, None])
        row[f"{first} - {name}"] = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return row


def frechet(reference: np.ndarray) -> Callable[[np.ndarray], float]:
    """A function of clips: FVD of I3D's logits from those of `reference`, which are read once."""
    from vdm_jax.evaluation.frechet import frechet_from_features

    network = _i3d()
    theirs, _ = network(reference)
    return lambda videos: float(frechet_from_features(network(videos)[0], theirs))


@functools.cache
def _i3d() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Made once: it is compiled for each shape of clips that it is given."""
    from vdm_jax.evaluation import i3d, i3d_weights

    return i3d.I3DFeatures(params=i3d_weights.load_weights())


def table(rows: list[dict]) -> str:
    """Markdown. Rows may differ in their columns, as those of SSR and TSR stages do."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    for row in rows:
        values = (row.get(name, "") for name in names)
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
