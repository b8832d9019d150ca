"""Editing with the shipped model: what it keeps, and how far from the truth it is.

    python benchmarks/editing.py [--clips 32] [--methods reconstruction replacement]

Moving shapes of the held-out captions, read by the judge:

  extension       8 rounds of clips that begin with the last frames of the one before, the direction
                  turned from round to round (a shape that went on would leave the frame); the share
                  of clips with colour, shape and direction right, for each round
  interpolation   rendered clips of which every second, third or seventh frame is known; the root
                  mean square error, of 255, in the others, against repeating and blending frames
  inpainting      rendered clips without their middle quarter; the error there
  super-resolution  from 8 x 8 and 4 x 4 pixels; the error, against repeating and bicubic pixels
  cost            time of a step with half of the frames known, against one with nothing known
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/editing.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="of DDIM, default 64")
    parser.add_argument(
        "--guidance", type=float, default=2.0, metavar="G", help="of extension; else 1 (default 2)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["reconstruction", "replacement", "pigdm", "projection"],
        metavar="NAME",
        help="default: all",
    )
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from vdm_jax.cli import common

    common.setup("any")

    import numpy as np

    import vdm_jax
    from vdm_jax.evaluation import clips

    model = vdm_jax.load()
    found = clips.from_rendered(
        "moving_shapes", model.config.data.config, "held_out", options.clips
    )
    truth, prompts = found.videos, found.captions
    cost(model, options)
    for method in options.methods:
        started = time.monotonic()
        extension(model, method, options, prompts)
        print(f"extension by {method}: {time.monotonic() - started:.0f} s\n", flush=True)
    rows = restoration(model, options, truth, prompts)
    print("| | " + " | ".join(rows[0][1]) + " |\n|---" + "|---:" * len(rows[0][1]) + "|")
    for name, values in rows:
        cells = ("–" if np.isnan(value) else f"{value:.1f}" for value in values.values())
        print(f"| {name} | {' | '.join(cells)} |")


def cost(model, options) -> None:
    """Prints what a step takes, the samplers by turns."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vdm_jax.diffusion import measurements
    from vdm_jax.stage import sampler as sampling

    clips, steps = 16, 8
    clip = model.stage.video_shape
    half = np.arange(clip[0]) < clip[0] // 2
    mask = np.broadcast_to(half.reshape(1, -1, 1, 1, 1), (clips, clip[0], 1, 1, 1))
    known = sampling.Known(
        measurement=measurements.Mask(known=jnp.asarray(mask)), y=jnp.zeros((clips, *clip))
    )
    variants = {"nothing known": {}} | {method: {"method": method} for method in options.methods}
    if "reconstruction" in variants:
        variants["reconstruction, remat=full"] = {"method": "reconstruction", "remat": "full"}
    runs = {}
    for name, changes in variants.items():
        sampler = model.sampler(
            sampler="ddim", steps=steps, guidance=options.guidance, batch_size=clips, **changes
        )
        cond = model.stage.encode(["a red circle moving left"] * clips)
        numbers = np.arange(clips, dtype=np.uint32)
        inputs = (model.params, {}, jax.random.key(0), numbers, cond, None)
        runs[name] = (sampler.compiled, (*inputs, known if changes else None))
        jax.block_until_ready(sampler.compiled(*runs[name][1]))
    seconds = {name: [] for name in runs}
    for _ in range(5):
        for name, (compiled, inputs) in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(compiled(*inputs))
            seconds[name].append((time.perf_counter() - started) / steps)
    print(f"| step of {clips} clips, guidance {options.guidance:g} | ms | |\n|---|---:|---:|")
    for name, times in seconds.items():
        ratio = np.median(times) / np.median(seconds["nothing known"])
        print(f"| {name} | {1e3 * np.median(times):.0f} | {ratio:.2f} x |")
    print(flush=True)


def extension(model, method: str, options, prompts: list[str]) -> None:
    """Prints the judge's shares, round by round."""
    import jax

    from vdm_jax.data import shapes
    from vdm_jax.evaluation import judge
    from vdm_jax.pipelines import editing

    clip = model.stage.video_shape[0]
    plain = model.sampler(
        sampler="ddim", steps=options.steps, guidance=options.guidance, batch_size=16
    )
    start = _all(plain.stream(model.params, jax.random.key(0), prompts))
    turned = [shapes.turned(prompt) for prompt in prompts]
    sampler = model.sampler(
        sampler="ddim",
        steps=options.steps,
        guidance=options.guidance,
        batch_size=16,
        method=method,
    )
    print(f"extension by {method}, context | color | shape | direction | all, rounds 1 to {ROUNDS}")
    for context in (1, 2):
        made = editing.extend(
            sampler,
            model.params,
            jax.random.key(1),
            start,
            list(zip(turned, prompts, strict=True)),
            frames=clip + ROUNDS * (clip - context),
            context=context,
        )
        shares = []
        for this in range(ROUNDS):
            first = (1 + this) * (clip - context)
            said = prompts if this % 2 else turned
            shares.append(judge.score(made[:, first : first + clip], said))
        columns = (
            " ".join(f"{share[name]:.0%}" for share in shares) for name in (*judge.FACTORS, "all")
        )
        print(f"| {context} | {' | '.join(columns)} |")


def restoration(model, options, truth, prompts) -> list[tuple[str, dict[str, float]]]:
    """Root mean square errors of everything that has a truth."""
    import jax
    import numpy as np
    from einops import reduce, repeat
    from PIL import Image

    from vdm_jax.pipelines import editing

    _, frames, size = truth.shape[:3]
    hole = np.zeros((size, size), bool)
    hole[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = True

    def error(videos, real=truth, where=...):
        return float(np.sqrt(np.mean((videos[where].astype(float) - real[where]) ** 2)))

    def every(factor):
        whole = truth[:, : (frames - 1) // factor * factor + 1]
        between = np.arange(whole.shape[1]) % factor != 0
        return whole, whole[:, ::factor], np.s_[:, between]

    def low(factor):
        means = reduce(
            truth.astype(np.float32), "n f (h s) (w r) c -> n f h w c", "mean", s=factor, r=factor
        )
        return np.rint(means).astype(np.uint8)

    def repeated_frames(factor):
        whole, known, where = every(factor)
        return error(np.repeat(known, factor, axis=1)[:, : whole.shape[1]], whole, where)

    def blended(factor):
        whole, known, where = every(factor)
        share = (np.arange(whole.shape[1]) % factor / factor).reshape(-1, 1, 1, 1)
        earlier = np.repeat(known, factor, axis=1)[:, : whole.shape[1]]
        later = np.concatenate([known[:, 1:], known[:, -1:]], axis=1)
        later = np.repeat(later, factor, axis=1)[:, : whole.shape[1]]
        return error((1 - share) * earlier + share * later, whole, where)

    def bicubic(factor):
        out = [
            [
                Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)
                for frame in clip
            ]
            for clip in low(factor)
        ]
        return error(np.stack([np.stack([np.asarray(f) for f in clip]) for clip in out]))

    def nearest(factor):
        return error(repeat(low(factor), "n f h w c -> n f (h s) (w r) c", s=factor, r=factor))

    between, scales = (2, 3, 7), (2, 4)
    names = (
        [f"1 of {k} frames" for k in between] + ["hole"] + [f"1/{k} of the side" for k in scales]
    )
    nan = float("nan")
    rows = [
        ("repeated", [*map(repeated_frames, between), nan, *map(nearest, scales)]),
        ("blended, bicubic", [*map(blended, between), nan, *map(bicubic, scales)]),
    ]
    key = jax.random.key(2)
    for method in options.methods:
        sampler = model.sampler(
            sampler="ddim", steps=options.steps, guidance=1.0, batch_size=16, method=method
        )
        of = (sampler, model.params, key)
        values = []
        for factor in between:
            whole, known, where = every(factor)
            made = editing.interpolate(*of, known, prompts, factor=factor)
            values.append(error(made, whole, where))
        made = editing.inpaint(*of, truth, prompts, known=~hole[None])
        values.append(error(made, truth, np.s_[:, :, hole]))
        for factor in scales:
            values.append(error(editing.super_resolve(*of, low(factor), prompts)))
        rows.append((method, values))
    return [(name, dict(zip(names, values, strict=True))) for name, values in rows]


def _all(stream):
    import numpy as np

    return np.concatenate(list(stream))


if __name__ == "__main__":
    main()
