"""Stable Video Diffusion's claim that curation decides quality: one small model on the films as
they are, on a random half of them, and on what a curation keeps, at equal updates.

    python -m benchmarks.curation_claim --workdir=DIR [--updates=1500] [--num_samples=128]

560 films of moving shapes over textures, 128 x 128, 24 frames a second; each has its caption
beside it. 200 are clean; the others are stills (80), have text burnt in (80), shake (80), are three
shots of one caption (40), or are copies of 5 films, coded anew (80). `vdm data curate` and
`vdm data elo --curated` do the rest. Printed are, for each model, FVD against held-out clean films,
the judge's share of clips with everything right, and the ratings by votes.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIZE, FRAMES = 128, 36  # of a shot; a clip for training takes 22 of its frames
COUNTS = {"clean": 200, "still": 80, "text": 80, "shake": 80, "cuts": 40, "copies": 80}
_COPIED = 5  # films
_SHAKE = 0.06  # frame heights
_BRIGHTEST = 70  # of a background, below what the judge takes for an object
_CONFIG = (
    "--config=vdm/own_videos",
    "--config.data.image_size=16",
    "--config.text.max_length=8",
    "--config.text.vocabulary_size=16",
    "--config.train.warmup_steps=100",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curation_claim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--updates", type=int, default=1500, metavar="N")
    parser.add_argument("--num_samples", type=int, default=128, metavar="N")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    from vdm_jax.cli import curate, elo

    workdir = Path(options.workdir)
    films, held_out, out = (workdir / name for name in ("films", "held_out", "curated"))
    _write_films(films)
    _write_held_out(held_out, options.num_samples)
    # Pictures of one shape over a texture have few frequencies, so distance 8 takes a third of the
    # clean films for copies. The detector of text takes shapes for letters, so it stays off.
    settings = ("--config.clips.least=1", "--config.duplicates.distance=1")
    curate.main([f"--videos={films}", f"--out={out}", "--workers=1", "--measure_only", *settings])
    _print_kept(out)
    elo.main(
        [
            f"--out={out}",
            "--curated",
            "--votes=judge",
            f"--reference={held_out}",
            f"--num_samples={options.num_samples}",
            f"--config.train.steps={options.updates}",
            *_CONFIG,
        ]
    )
    _measure(out / "elo" / "curated", held_out)


def _write_films(folder: Path) -> None:
    """Writes the films of `COUNTS`, each in a folder of its kind, with captions."""
    from benchmarks.curation import lettered, shaken, write_film

    if folder.is_dir():
        return
    rng = np.random.default_rng(0)
    changes = {
        "still": lambda shot: np.repeat(shot[:1], len(shot), axis=0),
        "text": lettered,
        "shake": lambda shot: shaken(shot, rng, _SHAKE),
    }
    partial, clean = folder.with_suffix(".part"), []
    for kind, count in COUNTS.items():
        for number in range(count):
            quality = 18
            if kind == "copies":
                (caption, film), quality = clean[number % _COPIED], 26
            else:
                caption = _caption(rng, "train")
                shots = [_shot(caption, rng) for _ in range(3 if kind == "cuts" else 1)]
                film = changes.get(kind, lambda shot: shot)(np.concatenate(shots))
            if kind == "clean":
                clean.append((caption, film))
            path = write_film(partial / kind / f"{number:03d}.mp4", film, quality)
            path.with_suffix(".txt").write_text(caption + "\n")
    partial.rename(folder)


def _write_held_out(folder: Path, count: int) -> None:
    """Clean films of combinations that the others do not have."""
    from benchmarks.curation import write_film

    if folder.is_dir():
        return
    rng, partial = np.random.default_rng(1), folder.with_suffix(".part")
    for number in range(count):
        caption = _caption(rng, "held_out")
        path = write_film(partial / f"{number:03d}.mp4", _shot(caption, rng))
        path.with_suffix(".txt").write_text(caption + "\n")
    partial.rename(folder)


def _caption(rng: np.random.Generator, split: str) -> str:
    from vdm_jax.data import shapes

    found = shapes.scenes(split, 1)
    return shapes.make_caption(found[rng.integers(len(found))])


def _shot(caption: str, rng: np.random.Generator) -> np.ndarray:
    """A moving shape over a dark coloured texture."""
    import cv2

    from vdm_jax.data import shapes

    scene = [shapes.parse_caption(caption)]
    seed = int(rng.integers(2**31))
    clip = shapes.render_clips(scene, size=SIZE, num_frames=FRAMES, seed=seed)[0]
    noise = sum(
        cv2.resize(rng.uniform(size=(n, n, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        for n in (3, 9, 24)
    )
    noise = (noise - noise.min()) / np.ptp(noise)
    colour = rng.uniform(0.2, 1, 3)
    ground = 25 + (_BRIGHTEST - 25) * noise * colour / colour.max()
    free = 1 - clip.max(-1, keepdims=True) / 255
    return np.rint(clip + free * ground).astype(np.uint8)


def _print_kept(out: Path) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(out / "clips.parquet").to_pylist()
    for kind in COUNTS:
        clips = [row for row in rows if row["clip"] and row["film"].startswith(kind)]
        kept = sum(row["kept"] for row in clips)
        print(f"{kind}: {kept} of {len(clips)} clips kept")


def _measure(workdir: Path, held_out: Path) -> None:
    """FVD and the judge of each model's samples, and ratings by distance of features."""
    from vdm_jax.evaluation import clips, comparison, elo, i3d, i3d_weights, protocol, suite, votes

    names = [row["name"] for row in json.loads((workdir / "elo.json").read_text())["players"]]
    cut = {"num_frames": 8, "size": 16, "stride": 1, "count": None, "seed": 0}
    reference = clips.from_path(held_out, fps=8.0, **cut)
    network = i3d.I3DFeatures(params=i3d_weights.load_weights())
    first, quality = None, {}
    for name in names:
        # Those of fewer updates may lie beside the last ones.
        drawn = max((workdir / name).glob("samples-*.npz"), key=os.path.getmtime)
        samples = clips.from_path(drawn, **cut)
        if first is None:
            this = first = comparison.Evaluation(
                samples=samples, reference=reference, subject={"model": name}, network=network
            )
        else:
            this = first.of(samples, {"model": name})
        for result in suite.measure(this, ["fvd", "judge"]):
            print(name, result.protocol.metric, protocol.figure(result), dict(result.extra))
        quality[name] = votes.nearness(this.sample_outputs[0], this.reference_outputs[0])
    for rating in elo.rate(names, votes.by_quality(quality)):
        print(f"by features: {rating}")
    judged = suite.measure(first.of(reference, {"model": "held out"}), ["judge"])
    print("held-out films themselves, judge:", protocol.figure(judged[0]))


if __name__ == "__main__":
    main()
