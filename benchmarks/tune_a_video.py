"""What the paper of Tune-A-Video claims, measured on clips of the data set `scenes`.

    python -m benchmarks.tune_a_video [--model=scenes_image] [--clips=40] [--out=DIR]

Each clip is edited in its object, its colour where it shows a coloured shape, and its background,
and is inverted and sampled by each of

  tune_a_video   the paper
  own_attention  tuned, inverted and sampled with each frame attending to itself
  untuned        the same network before tuning
  sdedit         the image model on each frame alone, from --strength of the way back

Prompts are captions of the clip's middle frame, because the image model learned captions of frames.
The measures of each result are whether the judge of scenes sees what was edited, and the whole
edited caption; the correlation of the object's path with the source's; and for edits of object and
colour the PSNR outside the source's true mask, grown by 4 pixels. No caption of scenes names a
style, so none is edited.

DIR receives table.md, figures.json, results.npz, a contact sheet, and the runs. The same command
goes on behind the last clip.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("tune_a_video", "own_attention", "untuned", "sdedit")
KINDS = ("object", "color", "background")
_SEED = 7  # of scenes that no model was trained on
_GROWN = 4  # pixels around the true mask in which another object may show
_SHOWN = 3  # clips on the sheet


class Source(NamedTuple):
    """A clip with its prompt; by kind what the edited caption says and that caption; the object's
    centres and its mask."""

    video: np.ndarray
    prompt: str
    edits: dict[str, Any]
    prompts: dict[str, str]
    centres: np.ndarray
    mask: np.ndarray


class Measured(NamedTuple):
    """What is measured of a result. NaN where no object is seen, or where nothing should stay."""

    edited: bool
    whole: bool
    correlation: float
    psnr: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune_a_video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="scenes_image", metavar="MODEL")
    parser.add_argument("--clips", type=int, default=40, metavar="N", help="default 40")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument("--updates", type=int, metavar="N", help="default: the recipe's")
    parser.add_argument("--learning_rate", type=float, metavar="X", help="default: the recipe's")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising (default: the recipe's)")
    parser.add_argument("--guidance", type=float, metavar="G", help="default: the recipe's")
    parser.add_argument("--strength", type=float, default=0.6, metavar="X", help="default 0.6")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="default: all")
    parser.add_argument("--out", default="samples/tune_a_video", metavar="DIR")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    from vdm_jax.cli import common

    common.setup("any")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sources = [make_source(index, options.frames) for index in range(options.clips)]
    rows, shown = {}, {}
    for name in options.variants.split(","):
        results, seconds = run(name, sources, options, out / name)
        np.savez_compressed(out / f"{name}.npz", **results)
        found: dict[str, list[Measured]] = {kind: [] for kind in KINDS}
        for label, video in results.items():
            index, kind = label.split("_", 1)
            found[kind].append(measure(video, sources[int(index)], kind))
            if int(index) < _SHOWN:
                shown[f"{index} {name}: {sources[int(index)].prompts[kind]}"] = video
        rows |= {f"{name}, {kind}": figures(found[kind]) for kind in KINDS if found[kind]}
        rows[f"{name}, all"] = {
            **figures([one for kind in KINDS for one in found[kind]]),
            "seconds": seconds / len(sources),
        }
        print(name, json.dumps(rows[f"{name}, all"]), flush=True)
    for index, source in enumerate(sources[:_SHOWN]):
        shown[f"{index} source: {source.prompt}"] = source.video
    write(out, options, rows, shown)


def write(out: Path, options: argparse.Namespace, rows: dict, shown: dict[str, Any]) -> None:
    """Writes the table, the figures and the sheet, and prints the table."""
    from vdm_jax.data import video_io

    table = as_table(rows)
    (out / "table.md").write_text(table)
    record = {"options": vars(options), "rows": rows}
    (out / "figures.json").write_text(json.dumps(record, indent=1) + "\n")
    order = sorted(shown)
    sheet = out / "contact_sheet.png"
    video_io.contact_sheet(sheet, np.stack([shown[label] for label in order]), order)
    print(table)


def make_source(index: int, frames: int) -> Source:
    """Clip `index` and its edits, which are combinations that the image model may have learned."""
    from vdm_jax.data.scenes import grammar, world

    scene = world.draw_scene(_SEED, "train", index, num_objects=1, num_frames=frames)
    clip, rng = world.render(scene, 64), np.random.default_rng((_SEED, index))
    thing, background = scene.things[0], scene.background
    here = grammar.things("train", background)
    others = {
        # Another sprite for a sprite, another shape of the same colour for a shape.
        "object": [t for t in here if t.color == thing.color and t != thing],
        "color": [t for t in here if thing.color and t.object == thing.object and t != thing],
    }
    place = grammar.place(*scene.centres[0, frames // 2])

    def item(thing: grammar.Thing, background: str) -> grammar.Item:
        return grammar.Item(*thing, place, "", background)

    edits = {
        kind: item(found[rng.integers(len(found))], background)
        for kind, found in others.items()
        if found
    }
    allowed = [b for b in grammar.BACKGROUNDS if thing in grammar.things("train", b)]
    allowed.remove(background)
    edits["background"] = item(thing, allowed[rng.integers(len(allowed))])
    return Source(
        video=clip.video,
        prompt=grammar.make_caption([item(thing, background)]),
        edits=edits,
        prompts={kind: grammar.make_caption([edit]) for kind, edit in edits.items()},
        centres=scene.centres[0],
        mask=clip.mask[..., 0] > 0,
    )


def run(
    name: str, sources: list[Source], options: argparse.Namespace, folder: Path
) -> tuple[dict[str, np.ndarray], float]:
    """The results of a variant, by "CLIP_KIND", and the seconds that they took. Results of an
    earlier run are taken from `folder`."""
    make, results, start = None, {}, time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for index, source in enumerate(sources):
        file = folder / f"{index}.npy"
        if not file.is_file():
            make = make or maker(name, sources[0], options, folder)
            np.save(file, make(index, source))
        for kind, video in zip(source.edits, np.load(file), strict=True):
            results[f"{index}_{kind}"] = video
    return results, time.perf_counter() - start


def maker(
    name: str, first: Source, options: argparse.Namespace, folder: Path
) -> Callable[[int, Source], np.ndarray]:
    """What makes the edits of a clip, in the order of its kinds. Compiled at the first clip."""
    if name == "sdedit":
        return frame_by_frame(options)
    if name not in VARIANTS:
        raise SystemExit(f"--variants: {name!r}: allowed are {', '.join(VARIANTS)}")
    from vdm_jax.pipelines import tuning

    recipe = make_recipe(options, "own" if name == "own_attention" else "first_and_previous")

    def configured(source: Source):
        return tuning.configure(options.model, recipe, source.video, source.prompt, fps=8.0)

    tuner = tuning.Tuner.of(configured(first))
    editor = tuning.Editor.of(tuner.model(tuner.start))

    def make(index: int, source: Source) -> np.ndarray:
        params = tuner.start
        if name != "untuned":
            config = configured(source)
            model, _ = tuner.tune(source.video, folder / f"run_{index}", config=config)
            params = model.params
        return editor.edit(params, source.video, list(source.prompts.values()))

    return make


def make_recipe(options: argparse.Namespace, attention: str):
    """The configuration of a variant."""
    from vdm_jax import config as config_lib

    given = {
        "train.steps": options.updates,
        "train.learning_rate": options.learning_rate,
        "sample.steps": options.steps,
        "sample.guidance": options.guidance,
    }
    overrides = {field: str(value) for field, value in given.items() if value is not None}
    overrides |= {"temporal.attention": attention, "checkpoint.every": "100000"}
    return config_lib.load_config("tune_a_video/tiny", overrides)


def frame_by_frame(options: argparse.Namespace) -> Callable[[int, Source], np.ndarray]:
    """SDEdit (Meng et al. 2021, algorithm 2) of each frame, with noise of its own."""
    import dataclasses

    import jax

    import vdm_jax
    from vdm_jax.diffusion import grids

    settings = make_recipe(options, "own").sample
    model = vdm_jax.load(options.model)
    sampler = model.sampler(
        steps=settings.steps, guidance=settings.guidance, batch_size=options.frames
    )
    steps = max(1, round(options.strength * settings.steps))
    levels = tuple(float(level) for level in sampler.logsnrs()[-steps - 1 :])
    sampler = dataclasses.replace(sampler, grid=grids.Explicit(levels=levels))

    def make(index: int, source: Source) -> np.ndarray:
        prompts = np.repeat(list(source.prompts.values()), len(source.video)).tolist()
        frames = np.tile(source.video[:, None], (len(source.prompts), 1, 1, 1, 1))
        key = jax.random.key(index)
        made = np.concatenate(list(sampler.stream(model.params, key, prompts, start=frames)))
        return made.reshape(len(source.prompts), *source.video.shape)

    return make


def measure(video: np.ndarray, source: Source, kind: str) -> Measured:
    """The figures of a result, uint8 f 64 64 3."""
    from vdm_jax.evaluation import scene_judge

    wanted, readings = source.edits[kind], scene_judge.read(video)
    right = [
        {part: getattr(one, part) == getattr(wanted, part) for part in KINDS} for one in readings
    ]
    centres = scene_judge.centres(video)
    return Measured(
        edited=any(one[kind] for one in right),
        whole=len(right) == 1 and all(right[0].values()),
        correlation=float("nan") if centres is None else correlation(centres, source.centres),
        psnr=float("nan") if kind == "background" else psnr_outside(video, source),
    )


def correlation(path: np.ndarray, wanted: np.ndarray) -> float:
    """Pearson's correlation of two paths (f, 2), the coordinates centred and taken together; 0 for
    a path that does not move."""
    a, b = (each - each.mean(0) for each in (path, wanted))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / size) if size > 0 else 0.0


def psnr_outside(video: np.ndarray, source: Source) -> float:
    """PSNR in dB against the source, over the pixels away from its object."""
    outside = ~grown(source.mask, _GROWN)
    error = (video[outside].astype(np.float64) - source.video[outside]) ** 2
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-2)))


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask (f, h, w) and the pixels at most `by` rows and columns beside it."""
    padded = np.pad(mask, ((0, 0), (by, by), (by, by)))
    places = range(2 * by + 1)
    height, width = mask.shape[1:]
    shifted = [padded[:, y : y + height, x : x + width] for y in places for x in places]
    return np.any(shifted, axis=0)


def figures(found: list[Measured]) -> dict:
    """Shares with Wilson's intervals, and means with bootstrap intervals, 95%."""
    from vdm_jax.evaluation import intervals

    row: dict[str, Any] = {"n": len(found)}
    for name in ("edited", "whole"):
        count = sum(getattr(one, name) for one in found)
        row[name] = list(intervals.share_interval(count, len(found))[:3])
    for name in ("correlation", "psnr"):
        values = np.array([getattr(one, name) for one in found])
        values = values[np.isfinite(values)]
        row[f"{name}_n"] = len(values)
        if len(values) > 1:
            interval = intervals.bootstrap(lambda x: float(x.mean()), values[:, None])
            row[name] = list(interval[:3])
    return row


def as_table(rows: dict[str, dict]) -> str:
    """The figures as Markdown."""
    lines = [
        "| variant, edit | n | edit seen | whole caption seen | object seen | correlation of paths "
        "| PSNR outside the object, dB | seconds a clip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(_cells(name, row))} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _cells(name: str, row: dict) -> Iterator[str]:
    yield from (name, str(row["n"]))
    for part in ("edited", "whole"):
        share, low, high = (100 * value for value in row[part])
        yield f"{share:.1f}% [{low:.1f}, {high:.1f}]"
    yield str(row["correlation_n"])
    for part, digits in (("correlation", 2), ("psnr", 1)):
        known = row.get(part)
        yield "–" if known is None else "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*known, d=digits)
    yield f"{row['seconds']:.0f}" if "seconds" in row else "–"


if __name__ == "__main__":
    main()
