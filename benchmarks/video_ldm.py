"""What the paper of Video LDM claims, measured on scenes.

    python -m benchmarks.video_ldm --decoder=DIR/vae --fvd=64
    python -m benchmarks.video_ldm --model=DIR/key_frames --scratch=DIR/scratch
    python -m benchmarks.video_ldm --interpolation=DIR/interpolation

Each runs the parts whose models are named; all may be. Clips are held out of training.

  decoder        clips of 16 frames encoded and decoded, by the trained decoder and by that of the
                 image autoencoder (--image_decoder): the warp error along the motion of the clips
                 themselves (Lai et al. 2018), the flicker, PSNR, and with --fvd=N the Fréchet video
                 distance of N clips. Blur lowers the warp error below that of the clips, which is
                 why there is the flicker: the root mean square change of the error from one frame
                 to the next, of 255
  layers         a model of which the layers over frames alone were trained, and one of which all
                 layers were, from scratch: the training loss of held-out clips, with no known
                 frame and with two, and what the judge sees of captions in samples
  interpolation  five key frames, 1.875 a second, to 65 frames, 30 a second, in two steps: by the
                 model, by blending frames, by RIFE's optical flow; and each of these and the clips
                 themselves encoded and decoded, as all that a model of latents makes is. PSNR of
                 the new frames, of all pixels and of those that change during the clip, and the
                 warp error

Intervals are 95%; differences are clip by clip. Prints Markdown, and writes it and the figures to
OUT/report.md and OUT/report.json, and sheets of clips.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHORT, LONG = "64x64x16", "64x64x65"  # configurations of scenes
FACTOR = 4  # of each interpolation
RATES = (7.5, 30.0)  # frames a second of its results
_CHANGES = 12  # of 255: what counts as a pixel that changes
_DRAWS = 16  # noise levels of a clip's loss
_SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video_ldm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--decoder", metavar="FOLDER", help="the trained decoder, as published")
    parser.add_argument("--image_decoder", default="scenes_image/vae", metavar="FOLDER")
    parser.add_argument("--fvd", type=int, default=0, metavar="N", help="clips; default: none")
    parser.add_argument("--model", metavar="MODEL", help="of key frames")
    parser.add_argument("--scratch", metavar="MODEL", help="the same with all layers trained")
    parser.add_argument("--interpolation", metavar="MODEL")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's own")
    parser.add_argument("--out", default="samples/video_ldm", metavar="OUT")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    if bool(options.model) != bool(options.scratch):
        parser.error("--model and --scratch go together")
    wanted = {
        "decoder": (options.decoder, decoder),
        "layers": (options.model, layers),
        "interpolation": (options.interpolation, interpolation),
    }
    if not any(named for named, _ in wanted.values()):
        parser.error("name a model: --decoder, --model with --scratch, or --interpolation")
    from benchmarks.cascade import table
    from vdm_jax.cli import common

    common.setup("any")
    out, found = Path(options.out), {}
    out.mkdir(parents=True, exist_ok=True)
    for part, (named, run) in wanted.items():
        if named:
            found[part] = run(options)
            print(f"\n{part}\n\n{table(found[part])}", flush=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(f"{name}\n\n{table(rows)}" for name, rows in found.items())
    (out / "report.md").write_text(text + "\n")


def decoder(options) -> list[dict]:
    """A row a decoder."""
    from vdm_jax.evaluation import clips, fidelity

    count = max(options.clips, options.fvd)
    truth = clips.from_rendered("scenes", SHORT, "held_out", count).videos
    videos = {
        "the clips": truth,
        "the image decoder": decoded(options.image_decoder, truth),
        "the decoder with layers over frames": decoded(options.decoder, truth),
    }
    figures, distances = {}, video_distances(videos, options.fvd)
    for name, made in videos.items():
        made, guides = made[: options.clips], truth[: options.clips]
        figures[name] = {"warp error, 1e-4": 1e4 * fidelity.warp_error(made, guides=guides).clips}
        if name != "the clips":
            figures[name]["flicker, of 255"] = flicker(made, guides)
            figures[name]["PSNR, dB"] = fidelity.psnr(made, guides).clips
    rows = compared(figures, "the image decoder")
    for row in rows:
        row |= distances.get(row["of"], {})
    return rows


def flicker(videos: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each clip the root mean square change of its error from one frame to the next, of 255."""
    changes = [
        np.diff(made.astype(np.float32) - wanted, axis=0)
        for made, wanted in zip(videos, truth, strict=True)
    ]
    return np.array([np.sqrt(np.square(change).mean()) for change in changes])


def decoded(folder: str, videos: np.ndarray) -> np.ndarray:
    """Clips encoded to their most likely latents and decoded by a published autoencoder."""
    import jax

    from vdm_jax.stage.space import AUTOENCODER, LatentSpace, from_uint8, to_uint8
    from vdm_jax.systems.pipeline_folder import part_folder
    from vdm_jax.weights import autoencoder

    network, params = autoencoder.read_folder(part_folder(folder))
    overlap = 4 if network.frame_reach else 0
    space = LatentSpace(data_shape=videos.shape[1:], autoencoder=network, decode_overlap=overlap)

    @jax.jit
    def run(params: Any, clip: Any) -> Any:
        frozen = {AUTOENCODER: params}
        return to_uint8(space.decode(space.encode(from_uint8(clip), frozen), frozen))

    return np.concatenate([np.asarray(run(params, clip[None])) for clip in videos])


def video_distances(videos: dict[str, np.ndarray], count: int) -> dict[str, dict]:
    """By name, the Fréchet video distance of clips to the first ones, the truth."""
    from vdm_jax.evaluation import frechet, i3d, i3d_weights

    if not count:
        return {}
    embed = i3d.I3DFeatures(params=i3d_weights.load_weights())
    logits = {name: embed(made[:count])[0] for name, made in videos.items()}
    truth, *others = logits
    found = {}
    for name in others:
        interval = frechet.frechet_interval(logits[name], logits[truth])
        values = f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"
        found[name] = {f"FVD, n = {count}": values}
    return found


def layers(options) -> list[dict]:
    """A row a model."""
    import jax

    from vdm_jax.data import video_io
    from vdm_jax.evaluation import clips
    from vdm_jax.pipelines import model as pretrained

    held_out = clips.from_rendered("scenes", LONG, "held_out", options.clips)
    figures, judged = {}, {}
    names = {"layers over frames": options.model, "all layers, from scratch": options.scratch}
    for name, source in names.items():
        model = pretrained.load(source)
        keys = held_out.videos[:, :: stride(model)][:, : model.stage.video_shape[0]]
        figures[name] = {
            f"loss, {known} known frames": losses(model, keys, held_out.captions, known)
            for known in (0, 2)
        }
        made = model.sample(jax.random.key(0), prompts=held_out.captions, **_changes(options))
        judged[name] = followed(made, held_out.captions)
        sheet = Path(options.out) / f"layers_{len(judged)}.png"
        video_io.contact_sheet(sheet, made[:_SHOWN], held_out.captions[:_SHOWN])
    rows = compared(figures, "all layers, from scratch")
    for row in rows:
        row |= judged.get(row["of"], {})
    return rows


def stride(model: Any) -> int:
    """Frames of the data from one frame of the model's clips to the next."""
    return model.stage.view.frame_strides[0]


def losses(model: Any, videos: np.ndarray, captions: list[str], known: int) -> np.ndarray:
    """The training loss of each clip at `_DRAWS` noise levels, the first frames known."""
    import jax
    import jax.numpy as jnp

    from vdm_jax.stage.space import from_uint8

    stage = model.stage

    @jax.jit
    def one(params: Any, frozen: Any, key: Any, clip: Any, cond: Any) -> Any:
        x = stage.space.encode(from_uint8(clip), frozen)
        cond = dict(stage.begin(cond, 1, key, {}, frozen))
        if known:
            mask = jnp.zeros((*x.shape[:-1], 1)).at[:, :known].set(1.0)
            cond |= {"masked_video": x * mask, "mask": mask}
        x, cond = jax.tree.map(lambda leaf: jnp.repeat(leaf, _DRAWS, axis=0), (x, cond))
        network = functools.partial(stage.raw_output, params)
        values, _ = stage.process.loss(key, lambda z, logsnr: network(z, logsnr, cond), x)
        return values.mean()

    found = []
    for number, (clip, caption) in enumerate(zip(videos, captions, strict=True)):
        key, cond = jax.random.key(number), stage.encode([caption])
        found.append(float(one(model.params, model.frozen, key, clip[None], cond)))
    return np.array(found)


def followed(videos: np.ndarray, captions: list[str]) -> dict[str, str]:
    """Shares of captions that samples follow, by factor."""
    from benchmarks.controlvideo import share
    from vdm_jax.evaluation import judge
    from vdm_jax.evaluation.scene_judge import SCENES

    scores = judge.score(videos, captions, SCENES)
    count = int(scores.pop("n"))
    return {name: share(round(value * count), count) for name, value in scores.items()}


def interpolation(options) -> list[dict]:
    """A row a method."""
    from vdm_jax.data import video_io
    from vdm_jax.evaluation import clips, fidelity
    from vdm_jax.pipelines import between
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.weights import rife

    model = pretrained.load(options.interpolation)
    held_out = clips.from_rendered("scenes", LONG, "held_out", options.clips)
    truth, whole = held_out.videos, FACTOR ** len(RATES)
    keys = truth[:, ::whole]
    others = {
        "blended frames": blended(keys, whole),
        "RIFE": between.interpolate(rife.load(), keys, factor=whole),
    }
    autoencoder = model.config.model.autoencoder
    made = {"the model": twice(options, model, keys, held_out.captions), **others}
    for name, videos in {**others, "the clips": truth}.items():
        made[f"{name}, encoded and decoded"] = decoded(autoencoder, videos)
    new = np.arange(truth.shape[1]) % whole != 0
    figures = {}
    for name, videos in made.items():
        figures[name] = {
            "PSNR, dB": fidelity.psnr(videos[:, new], truth[:, new]).clips,
            "PSNR where pixels change, dB": psnr_of_changes(videos[:, new], truth[:, new]),
            "warp error, 1e-4": 1e4 * fidelity.warp_error(videos, guides=truth).clips,
        }
        sheet = Path(options.out) / f"interpolation_{len(figures)}.png"
        video_io.contact_sheet(sheet, videos[:_SHOWN, ::FACTOR], held_out.captions[:_SHOWN])
    return compared(figures, "the model")


def twice(options, model: Any, videos: np.ndarray, captions: list[str]) -> np.ndarray:
    """Key frames to 4T and these to 16T frames, by one model."""
    import jax

    from vdm_jax.pipelines import editing

    for number, rate in enumerate(RATES):
        sampler = model.sampler(method="trained", fps=rate, **_changes(options))
        key = jax.random.key(number)
        videos = editing.interpolate(sampler, model.params, key, videos, captions, factor=FACTOR)
    return videos


def blended(videos: np.ndarray, factor: int) -> np.ndarray:
    """Between each two frames factor − 1 means of both, weighted by the distance."""
    frames = (videos.shape[1] - 1) * factor + 1
    before, share = np.divmod(np.arange(frames), factor)
    after = np.minimum(before + 1, videos.shape[1] - 1)
    share = (share / factor).reshape(-1, 1, 1, 1).astype(np.float32)
    return np.rint((1 - share) * videos[:, before] + share * videos[:, after]).astype(np.uint8)


def psnr_of_changes(videos: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The PSNR of each clip over the pixels that change while it lasts; NaN where none does."""
    found = []
    for made, wanted in zip(videos.astype(np.float32), truth.astype(np.float32), strict=True):
        moving = (wanted.max(0) - wanted.min(0)).max(-1) > _CHANGES
        error = np.square(made - wanted)[:, moving]
        found.append(10 * np.log10(255**2 / max(error.mean(), 1e-3)) if moving.any() else np.nan)
    return np.array(found)


def compared(figures: dict[str, dict[str, np.ndarray]], base: str) -> list[dict]:
    """A row each, with intervals of the means over clips, and of the differences from `base`."""
    from benchmarks.controlvideo import mean

    def interval(values: np.ndarray) -> str:
        return mean(values[np.isfinite(values)])

    rows = []
    for name, found in figures.items():
        row = {"of": name, **{what: interval(values) for what, values in found.items()}}
        for what, values in found.items():
            if name != base and what in figures[base]:
                row[f"{what}, less that of {base}"] = interval(values - figures[base][what])
        rows.append(row)
    return rows


def _changes(options) -> dict[str, int]:
    return {"steps": options.steps} if options.steps else {}


if __name__ == "__main__":
    main()
