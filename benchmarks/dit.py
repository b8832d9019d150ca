"""What a Sora-like model on scenes is worth, and what packing saves.

    python -m benchmarks.dit --parts=compute --models=1x=DIR,4x=DIR,16x=DIR
    python -m benchmarks.dit --parts=durations,first_frame --models=tiny=DIR
    python -m benchmarks.dit --parts=aspects --models=native=DIR,square=DIR
    python -m benchmarks.dit --parts=packing [--config=dit/tiny]

Captions are of the data's split `held_out`. DIR is what vdm train or vdm convert wrote.

  compute      a row a model: the share of clips of which the judge reads all that their captions
               say, and the operations of its training (batch x updates x operations of a clip)
  durations    of the first model, a row a length: the same share, in clips of 1 to 33 frames; those
               beyond the model's own are extrapolation
  aspects      a row a model: in clips of --size, the share of frames in which the plainest object
               touches the frame's edge, or is beyond it
  first_frame  of the first model's autoencoder: the difference of mean colour, in levels of 255,
               between a decoded frame and the frame itself, for the first frame and for the others
  packing      a training update of mixed sizes: packed into rows, in a bucket for each size, and
               padded to the largest size: tokens of clips a second, and the share that is padding

Prints Markdown, and writes it and the figures to OUT/report.md and OUT/report.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("compute", "durations", "aspects", "first_frame", "packing")
# Clips of the sizes that are mixed: (frames, height, width, clips of a row).
MIXED = ((13, 32, 32, 1), (9, 32, 32, 1), (5, 24, 40, 1), (1, 32, 32, 4))
DURATIONS = (1, 5, 9, 13, 17, 25, 33)
_EDGE = 1.0 / 64  # of the frame's width: an object this near is cut off


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default="", metavar="NAME=DIR,...", help="in order")
    parser.add_argument("--config", default="dit/tiny", metavar="NAME", help="of packing")
    parser.add_argument("--out", default="samples/dit", metavar="OUT", help="default: there")
    parser.add_argument("--clips", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument("--updates", type=int, default=5, metavar="N", help="timed, of packing")
    parser.add_argument("--size", default="32x48", metavar="HxW", help="of aspects (32x48)")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    from benchmarks.cascade import table
    from vdm_jax.cli import common

    common.setup("any")
    options.models = dict(one.split("=", 1) for one in options.models.split(",") if one)
    known: dict[str, Callable[[Any], list[dict]]] = {
        "compute": compute,
        "durations": durations,
        "aspects": aspects,
        "first_frame": first_frame,
        "packing": packing,
    }
    out, found = Path(options.out), {}
    for part in options.parts.split(","):
        if part != "packing" and not options.models:
            parser.error(f"--parts={part}: needs --models")
        found[part] = known[part](options)
        print(f"\n{part}\n\n{table(found[part])}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in found.items())
    (out / "report.md").write_text(text + "\n")


def held_out(model, count: int, frames: bool = False):
    """Clips, or single frames, and their captions."""
    from vdm_jax.evaluation import clips

    return clips.from_rendered("scenes", model.config.data.config, "held_out", count, frames=frames)


def judged(videos: np.ndarray, captions: list[str]) -> dict[str, Any]:
    """What the judge reads of clips."""
    from vdm_jax.evaluation import judge, vocabularies

    return judge.score(videos, captions, vocabularies.choose(captions))


def compute(options) -> list[dict]:
    """A row a model."""
    import jax

    from vdm_jax.pipelines import model as pretrained

    rows = []
    for name, source in options.models.items():
        model = pretrained.load(source)
        captions = held_out(model, options.clips).captions
        videos = model.sample(jax.random.key(0), prompts=captions)
        train = model.config.train
        clips = train.batch_size * train.steps
        flops = clips * model.stage.train_flops(model.config.data.image_frames)
        rows.append({"model": name, "training, PFLOP": flops / 1e15, **judged(videos, captions)})
    return rows


def durations(options) -> list[dict]:
    """A row a length."""
    import jax

    from vdm_jax.pipelines import model as pretrained

    (name, source), *_ = options.models.items()
    model, rows = pretrained.load(source), []
    for frames in DURATIONS:
        captions = held_out(model, options.clips, frames == 1).captions
        started = time.monotonic()
        videos = model.sample(jax.random.key(0), prompts=captions, num_frames=frames)
        seconds = (time.monotonic() - started) / len(videos)
        rows.append({"model": name, "frames": frames, "s a clip": seconds})
        rows[-1] |= judged(videos, captions)
    return rows


def aspects(options) -> list[dict]:
    """A row a model."""
    import jax

    from vdm_jax.evaluation import scene_judge
    from vdm_jax.pipelines import model as pretrained

    height, width = map(int, options.size.split("x"))
    rows = []
    for name, source in options.models.items():
        model = pretrained.load(source)
        captions = held_out(model, options.clips).captions
        videos = model.sample(jax.random.key(0), prompts=captions, height=height, width=width)
        # The judge reads squares: the frame in the middle of grey ones.
        side = scene_judge.HALF
        if max(height, width) > 2 * side:
            raise ValueError(f"--size={options.size}: must be at most {2 * side} pixels")
        square = np.full((*videos.shape[:2], 2 * side, 2 * side, 3), 128, np.uint8)
        top, left = side - height // 2, side - width // 2
        square[:, :, top : top + height, left : left + width] = videos
        near = []
        for video in square:
            places = scene_judge.centres(video)
            if places is None:
                continue
            x, y = (places * 2 * side - [left, top]).T
            inside = np.minimum.reduce([x, width - x, y, height - y]) / width
            near.append((inside < _EDGE).mean())
        rows.append(
            {"model": name, "clips with an object": len(near), "at the edge": float(np.mean(near))}
        )
    return rows


def first_frame(options) -> list[dict]:
    """A row for the first frame, and one for the others."""
    import jax

    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.stage import resize
    from vdm_jax.stage.space import from_uint8, to_uint8

    (_, source), *_ = options.models.items()
    model = pretrained.load(source)
    space, view = model.stage.space, model.stage.view
    clips = held_out(model, options.clips).videos[:, : view.shape[0]]
    small = to_uint8(resize.coarsen(from_uint8(clips), view.shape[:3]))
    run = jax.jit(
        lambda x: to_uint8(space.decode(space.encode(from_uint8(x), model.frozen), model.frozen))
    )
    decoded = np.concatenate([np.asarray(run(small[i : i + 8])) for i in range(0, len(small), 8)])
    return colour_shift(np.asarray(small), decoded)


def colour_shift(frames: np.ndarray, decoded: np.ndarray) -> list[dict]:
    """How far the mean colour of decoded frames, uint8 (n, f, h, w, 3), is from that of the frames,
    in levels of 255: the mean of its size, and with its sign."""
    shift = (decoded.astype(np.float64) - frames).mean((2, 3))
    error = np.square(decoded.astype(np.float64) - frames).mean((2, 3, 4))
    rows = []
    for name, part in (("first frame", slice(0, 1)), ("others", slice(1, None))):
        rows.append(
            {
                "frames": name,
                "shift of colour": float(np.abs(shift[:, part]).mean()),
                "with its sign": float(shift[:, part].mean()),
                "PSNR, dB": float(10 * np.log10(255**2 / error[:, part].mean())),
            }
        )
    return rows


def packing(options) -> list[dict]:
    """A row a way of training on mixed sizes."""
    from vdm_jax import config as config_lib

    config = config_lib.load_config(options.config)
    largest = max(MIXED, key=lambda size: size[0] * size[1] * size[2])
    ways = {
        "packed": (MIXED, True),
        "buckets": (MIXED, False),
        # Every clip takes the room of the largest.
        "padded": (((*largest[:3], sum(size[3] for size in MIXED)),), False),
    }
    useful = sum(_tokens(config, size) for size in MIXED)
    rows = []
    for name, (sizes, packed) in ways.items():
        seconds, tokens = timed(config, sizes, packed, options.updates)
        clip_tokens = useful if name != "buckets" else useful / len(MIXED)
        rows.append(
            {
                "way": name,
                "tokens of clips a second": clip_tokens * config.train.batch_size / seconds,
                "padding": 1 - clip_tokens / tokens,
                "s an update": seconds,
            }
        )
    return rows


def _tokens(config, size: tuple[int, ...]) -> int:
    """Tokens of a row's clips of a size."""
    from vdm_jax.models.packing import num_tokens
    from vdm_jax.systems import video_dit

    stage = video_dit.build(_sized(config, (size,), False))
    return size[3] * num_tokens(stage.z_shape, stage.network.patch)


def _sized(config, sizes: tuple, packed: bool):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update({"sizes": sizes, "packed": packed, "image_frames": 0})
        config.model.masks = ()
    return config


def timed(config, sizes: tuple, packed: bool, updates: int) -> tuple[float, float]:
    """Seconds of an update on random clips, and the tokens of a row; the mean over sizes where a
    batch has one size."""
    import jax

    from vdm_jax import systems
    from vdm_jax.models.packing import num_tokens
    from vdm_jax.parallel import sharding
    from vdm_jax.training import optimizer, state, step

    config = _sized(config, sizes, packed)
    stage, tx = systems.build(config), optimizer.make_optimizer(config.train)
    plan, rng = sharding.make_plan(stage, config.mesh), np.random.default_rng(0)
    frozen = systems.read_frozen(config, config.mesh.to_dict())
    update = step.make_train_step(stage, tx, config, plan, frozen)
    current, patch = state.create_state(stage, tx, 0, plan), stage.network.patch

    def draw(leaf):
        values = rng.integers(0, 255, leaf.shape)
        return (
            values.astype(leaf.dtype) if leaf.dtype == np.uint8 else np.ones(leaf.shape, leaf.dtype)
        )

    groups = [stage.sizes] if packed else [(size,) for size in stage.sizes]
    seconds, tokens = [], []
    for group in groups:
        batch = {}
        for size in group:
            one = stage.stages[stage.sizes.index(size)]
            shapes = one.abstract_batch(config.train.batch_size * size.clips)
            batch[size.name] = {
                name: draw(leaf).reshape(-1, size.clips, *leaf.shape[1:])
                for name, leaf in shapes.items()
            }
        placed = plan.put_batch(batch, config.train.batch_size)
        current, metrics = update(current, placed)
        jax.block_until_ready(metrics)
        started = time.monotonic()
        for _ in range(updates):
            current, metrics = update(current, placed)
        jax.block_until_ready(metrics)
        seconds.append((time.monotonic() - started) / updates)
        stages = {size: stage.stages[stage.sizes.index(size)] for size in group}
        tokens.append(
            sum(size.clips * num_tokens(one.z_shape, patch) for size, one in stages.items())
        )
    return float(np.mean(seconds)), float(np.mean(tokens))


if __name__ == "__main__":
    main()
