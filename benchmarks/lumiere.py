"""What the paper of Lumiere claims, measured on moving shapes.

    python -m benchmarks.lumiere --workdir=DIR

DIR holds the stages that vdm train made of cascade.py and keyframes_cascade.py of
configs/lumiere/tiny/.

  motion  clips of 32 frames from captions that neither was trained on, in one pass, and by
          keyframes and a model that fills in between them: what the judge reads, and how far
          objects stray from uniform motion (r.m.s., in frame widths)
  seams   the super-resolution model in overlapping windows that are averaged at each step, and in
          windows that know nothing of each other: the energy of frame differences where windows
          begin and end, over that elsewhere; and the same of the rendered clips
  memory  what a training step holds beside parameters and optimiser, by number of frames (--frames)

Prints Markdown, and writes it and the figures to OUT/report.md and OUT/report.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "lumiere" / "tiny"
PARTS = ("motion", "seams", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lumiere",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="with all stages")
    parser.add_argument("--out", default="samples/lumiere", metavar="OUT", help="default: there")
    parser.add_argument("--clips", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    parser.add_argument("--frames", default="16,32,64", help="of memory (default 16,32,64)")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    from benchmarks.cascade import table
    from vdm_jax.cli import common

    common.setup("any")
    out, found = Path(options.out), {}
    for part in options.parts.split(","):
        found[part] = {"motion": motion, "seams": seams, "memory": memory}[part](options)
        print(f"\n{part}\n\n{table(found[part])}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in found.items())
    (out / "report.md").write_text(text + "\n")


def motion(options) -> list[dict]:
    """A row a pipeline."""
    import jax

    from vdm_jax import config as config_lib
    from vdm_jax.evaluation import clips
    from vdm_jax.pipelines import cascade as cascade_lib
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.training.state import count_parameters

    truth = clips.from_rendered("moving_shapes", "16x16x32", "held_out", options.clips)
    rows = [_row("rendered", truth.videos, truth.captions, 0, 0.0)]
    for name, file, count in (
        ("one pass", "cascade", 1),
        ("keyframes and TSR", "keyframes_cascade", 2),
    ):
        config = config_lib.load_config(CONFIGS / f"{file}.py")
        steps = cascade_lib.from_config(config, options.workdir).steps[:count]
        videos, parameters, started = None, 0, time.monotonic()
        for number, step in enumerate(steps):
            model = pretrained.load(step.source)
            parameters += count_parameters(model.params)
            key = jax.random.fold_in(jax.random.key(0), number)
            stream = model.sampler(**step.changes).stream(
                model.params, key, truth.captions, inputs={"low_res": videos}
            )
            videos = np.concatenate(list(stream))
        seconds = (time.monotonic() - started) / len(videos)
        rows.append(_row(name, videos, truth.captions, parameters, seconds))
    return rows


def _row(name: str, videos: np.ndarray, captions, parameters: int, seconds: float) -> dict:
    from vdm_jax.evaluation import judge

    astray = np.array([judge.wobble(video) for video in videos])
    seen = astray[~np.isnan(astray)]
    shares = judge.score(videos, captions)
    return {
        "pipeline": name,
        "parameters": parameters,
        "seconds a clip": seconds,
        "all right": shares["all"],
        **{factor: shares[factor] for factor in judge.FACTORS},
        "astray, median": float(np.median(seen)),
        "astray, mean": float(seen.mean()),
        "object seen": float(len(seen) / len(astray)),
    }


def seams(options) -> list[dict]:
    """A row a way to cut the clip into windows."""
    import jax

    from vdm_jax import config as config_lib
    from vdm_jax.diffusion.windows import window_starts
    from vdm_jax.evaluation import clips, fidelity
    from vdm_jax.pipelines import cascade as cascade_lib
    from vdm_jax.pipelines import model as pretrained

    config = config_lib.load_config(CONFIGS / "cascade.py")
    _, refining = cascade_lib.from_config(config, options.workdir).steps
    model = pretrained.load(refining.source)
    truth = clips.from_rendered("moving_shapes", "32x32x32", "held_out", options.clips)
    coarse = model.stage.coarse(truth.videos)
    frames, size = truth.videos.shape[1], model.config.sample.window
    made, borders = {}, {}
    for name, overlap in (
        ("averaged at each step", model.config.sample.window_overlap),
        ("apart", 0),
    ):
        sampler = model.sampler(window_overlap=overlap, augmentation=0.0)
        stream = sampler.stream(
            model.params, jax.random.key(0), truth.captions, inputs={"low_res": coarse}
        )
        made[name] = np.concatenate(list(stream))
        starts = window_starts(frames, size, overlap)
        borders[name] = {at for start in starts for at in (start, start + size)} - {0, frames}
    return [
        {
            "windows": name,
            "borders": len(borders[name]),
            "energy at borders / elsewhere": at_borders(difference_energy(videos), borders[name]),
            "of the truth": at_borders(difference_energy(truth.videos), borders[name]),
            "psnr": float(np.mean(fidelity.psnr(videos, truth.videos).clips)),
        }
        for name, videos in made.items()
    ]


def difference_energy(videos: np.ndarray) -> np.ndarray:
    """Mean squared difference of frames `at - 1` and `at`, for `at` from 1 on."""
    pixels = videos.astype(np.float64)
    return np.square(pixels[:, 1:] - pixels[:, :-1]).mean((0, 2, 3, 4))


def at_borders(energy: np.ndarray, borders) -> float:
    """The mean at `borders` over the mean elsewhere."""
    at_border = np.isin(np.arange(1, len(energy) + 1), list(borders))
    return float(energy[at_border].mean() / energy[~at_border].mean())


def memory(options) -> list[dict]:
    """A row a number of frames: MiB a clip of a training step's temporaries."""
    rows = []
    for frames in map(int, options.frames.split(",")):
        one, keyframes, tsr = (
            _temporaries(name, shape, low_res)
            for name, shape, low_res in (
                ("base_32f_16", frames, None),
                ("keyframes", frames // 4, None),
                ("tsr", frames, frames // 4),
            )
        )
        rows.append(
            {
                "frames": frames,
                "one pass": one,
                "keyframes": keyframes,
                "TSR": tsr,
                "one pass / the larger": one / max(keyframes, tsr),
            }
        )
    return rows


def _temporaries(name: str, frames: int, low_frames: int | None) -> float:
    """MiB that the gradient of one clip's loss takes beside its inputs and outputs."""
    import flax.linen as nn
    import jax

    from vdm_jax import config as config_lib
    from vdm_jax import systems
    from vdm_jax.training import state

    overrides = {
        "stage.shape": f"({frames},16,16)",
        "data.num_frames": str(frames),
        "text.vocabulary": "red,circle",
    }
    if low_frames:
        overrides["stage.low_res"] = f"({low_frames},16,16)"
    stage = systems.build(config_lib.load_config(CONFIGS / f"{name}.py", overrides))
    params = nn.meta.unbox(stage.abstract_params())

    def gradient(params, batch, key):
        trained = stage.trained(params)
        return jax.grad(lambda trained: stage.loss(state.merge(trained, params), batch, key)[0])(
            trained
        )

    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(gradient).lower(params, stage.abstract_batch(1), key).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
