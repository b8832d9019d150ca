"""Decoding in chunks with a decoder that mixes frames: the seams and the memory.

    python -m benchmarks.chunks [--autoencoder=FOLDER] [--frames=32] [--clips=6] [--out=DIR]

FOLDER holds an autoencoder of Stable Video Diffusion, an `AutoencoderKLTemporalDecoder`. Without
one the network is a small one with random parameters. The latents are those of rendered scenes, by
the autoencoder of `scenes_image`, whose objects move at one velocity: all steps from one frame to
the next are alike.

  seams   for numbers of frames that are decoded at once and overlaps: the mean absolute change of a
          pixel between neighbouring frames where one chunk passes into the next, over that
          elsewhere, as a difference in percent from the same steps of the clip decoded whole; and
          how far frames are from those of the clip decoded whole
  memory  the memory that this process holds at most while it decodes one clip, above what it held
          before (Linux)
  compile what the compiler lays out for 14 frames of 576 x 1024 pixels by the network of the
          published size; nothing is decoded

Prints Markdown, and writes it to DIR/chunks.md. Intervals are 95%, by bootstrap over clips.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("seams", "memory", "compile")
_SIZE = 64  # pixels of the rendered clips
_CHANNELS = (32, 32, 64, 64)  # of the network with random parameters
_PUBLISHED = (14, 72, 128, 4)  # latents of a published clip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chunks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--autoencoder", metavar="FOLDER", help="default: random parameters")
    parser.add_argument("--frames", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--clips", type=int, default=6, metavar="N", help="default 6")
    parser.add_argument("--overlaps", default="0,2,4", metavar="N,…", help="default 0,2,4")
    parser.add_argument("--at_once", default="4,8,14", metavar="N,…", help="default 4,8,14")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    parser.add_argument("--out", default="samples/chunks", metavar="DIR", help="default: there")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    from benchmarks.cascade import table
    from vdm_jax.cli import common

    common.setup("any", quiet=True)
    sizes, overlaps = (_numbers(options, name) for name in ("at_once", "overlaps"))
    network, params = load(options.autoencoder)
    latents, found = scenes_latents(options.clips, options.frames), []
    for part in options.parts.split(","):
        if part == "seams":
            rows = seams(network, params, latents, sizes, overlaps)
        elif part == "memory":
            rows = memory(network, params, latents[:1], sizes, max(overlaps))
        elif part == "compile":
            rows = compiled(sizes, max(overlaps))
        else:
            parser.error(f"--parts: {part}: allowed are {', '.join(PARTS)}")
        found.append(f"{part}\n\n{table(rows)}\n")
        print(found[-1], flush=True)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "chunks.md").write_text("\n".join(found))


def _numbers(options: argparse.Namespace, name: str) -> list[int]:
    return [int(text) for text in getattr(options, name).split(",")]


def load(folder: str | None) -> tuple[Any, Any]:
    """A network and its parameters; without a folder small and random."""
    from vdm_jax.models.autoencoder import AutoencoderKLTemporalDecoder
    from vdm_jax.weights import autoencoder

    if folder is None:
        network = AutoencoderKLTemporalDecoder(channels=_CHANNELS)
        return network, random_params(autoencoder.shapes(network))
    network, params = autoencoder.read_folder(folder)
    if not network.frame_reach:
        raise ValueError(f"--autoencoder={folder}: decodes each frame alone; no chunks are needed")
    return network, params


def random_params(shapes: Any) -> Any:
    """Parameters that keep the size of what passes through: normal kernels, scales of 1, zeros.

    Training starts with zeros where layers over frames end. These would hide what chunks do.
    """
    import jax

    rng = np.random.default_rng(0)

    def draw(path: tuple, shape: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(shape.shape[:-1])
            return (rng.normal(size=shape.shape) / np.sqrt(fan_in)).astype(np.float32)
        return np.full(shape.shape, float(name == "scale"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def scenes_latents(clips: int, frames: int) -> np.ndarray:
    """Latents of rendered clips of one object, of deviation about 1."""
    import vdm_jax
    from vdm_jax.data.scenes import world
    from vdm_jax.stage.space import AUTOENCODER, bound, from_uint8

    model = vdm_jax.load("scenes_image")
    autoencoder = model.stage.space.autoencoder
    encode = bound(autoencoder, AUTOENCODER, model.frozen, "encode")
    found = []
    for index in range(clips):
        scene = world.draw_scene(0, "held_out", index, num_objects=1, num_frames=frames)
        found.append(encode(from_uint8(world.render(scene, _SIZE).video)).mode())
    return np.stack(found) * autoencoder.scaling_factor


def make_decode(network: Any, params: Any, shape: Sequence[int], at_once: int, overlap: int) -> Any:
    """A function from z [b, *shape] to clips, `at_once` frames at a time, that is compiled once."""
    import jax

    from vdm_jax.stage.space import AUTOENCODER, LatentSpace

    frames, height, width, _ = shape
    factor = network.factor
    space = LatentSpace(
        data_shape=(frames, factor * height, factor * width, network.in_channels),
        autoencoder=network,
        decode_frames=at_once,
        decode_overlap=overlap,
    )
    decode, frozen = jax.jit(space.decode), {AUTOENCODER: jax.device_put(params)}
    return lambda z: decode(z, frozen)


def seams(
    network: Any, params: Any, latents: np.ndarray, sizes: Sequence[int], overlaps: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each number of frames at once and each overlap."""
    from vdm_jax.evaluation import intervals

    shape = latents.shape[1:]

    def decoded(at_once: int, overlap: int) -> np.ndarray:
        decode = make_decode(network, params, shape, at_once, overlap)
        return np.concatenate([np.asarray(decode(z[None])) for z in latents])

    whole, rows = decoded(shape[0], 0), []
    spread = whole.std()
    for at_once in sizes:
        for overlap in overlaps:
            if overlap >= at_once:
                continue
            clips, border = decoded(at_once, overlap), border_steps(shape[0], at_once, overlap)
            excess = 100 * (step_ratio(clips, border) / step_ratio(whole, border) - 1)
            low = intervals.bootstrap(lambda x: float(x.mean()), excess[:, None])
            apart = np.sqrt(np.square(clips - whole).mean()) / spread
            rows.append(
                {
                    "frames at once": at_once,
                    "overlap": overlap,
                    "steps at borders": int(border.sum()),
                    "change at borders against elsewhere, %": (
                        f"{low.value:+.1f} [{low.low:+.1f}, {low.high:+.1f}]"
                    ),
                    "r.m.s. distance from the whole, % of the deviation": float(100 * apart),
                }
            )
    return rows


def border_steps(frames: int, at_once: int, overlap: int) -> np.ndarray:
    """Which of the steps from a frame to the next pass, at least partly, from one chunk to another:
    those over which the chunks' weights change."""
    from vdm_jax.diffusion import windows

    size = min(at_once, frames)
    starts = windows.window_starts(frames, at_once, overlap)
    weights = np.zeros((len(starts), frames))
    rows = windows.window_weights(frames, size, starts, "inner")
    for row, start, found in zip(weights, starts, rows, strict=True):
        row[start : start + size] = found
    return (np.diff(weights, axis=1) != 0).any(0)


def step_ratio(clips: np.ndarray, border: np.ndarray) -> np.ndarray:
    """For each clip the mean change of a pixel over the steps at borders, over that elsewhere; NaN
    where all steps are of one kind."""
    steps = np.abs(np.diff(clips, axis=1)).mean((2, 3, 4))
    if border.all() or not border.any():
        return np.full(len(clips), np.nan)
    return steps[:, border].mean(1) / steps[:, ~border].mean(1)


def memory(
    network: Any, params: Any, latents: np.ndarray, sizes: Sequence[int], overlap: int
) -> list[dict[str, Any]]:
    """A row for each number of frames at once: what is held while a clip is decoded."""
    import jax

    from benchmarks import serving
    from vdm_jax.parallel import heap

    rows = []
    for at_once in (*sizes, latents.shape[1]):
        shared = min(overlap, at_once // 2) if at_once < latents.shape[1] else 0
        decode = make_decode(network, params, latents.shape[1:], at_once, shared)
        jax.block_until_ready(decode(latents))  # threads, code and the like stay from then on
        heap.trim()
        before = serving.resident()
        serving.reset_peak()
        result = jax.block_until_ready(decode(latents))
        held = serving.peak_resident() - before
        row = {"frames at once": at_once, "overlap": shared, "held, MiB": held / 2**20}
        rows.append({**row, "of these the clip, MiB": result.nbytes / 2**20})
    return rows


def compiled(sizes: Sequence[int], overlap: int) -> list[dict[str, Any]]:
    """A row for each number of frames at once: temporaries of the published network's decoding."""
    import jax

    from vdm_jax.models.autoencoder import AutoencoderKLTemporalDecoder
    from vdm_jax.stage.space import AUTOENCODER, LatentSpace
    from vdm_jax.weights import autoencoder

    network, rows = AutoencoderKLTemporalDecoder(), []
    frames, height, width, channels = _PUBLISHED
    z = jax.ShapeDtypeStruct((1, *_PUBLISHED), np.float32)
    for at_once in sizes:
        shared = min(overlap, at_once // 2) if at_once < frames else 0
        space = LatentSpace(
            data_shape=(frames, 8 * height, 8 * width, 3),
            autoencoder=network,
            decode_frames=at_once,
            decode_overlap=shared,
        )
        lowered = jax.jit(space.decode).lower(z, {AUTOENCODER: autoencoder.shapes(network)})
        # Buffers are laid out before code is made of the program, which takes most of the time.
        found = lowered.compile(compiler_options={"xla_backend_optimization_level": "0"})
        size = found.memory_analysis().temp_size_in_bytes
        rows.append(
            {"frames at once": at_once, "overlap": shared, "temporaries, GiB": size / 2**30}
        )
    return rows


if __name__ == "__main__":
    main()
