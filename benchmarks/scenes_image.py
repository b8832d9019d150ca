"""What the latent image model of scenes is worth: its autoencoder, its captions, its ControlNets.

    python -m benchmarks.scenes_image --model=scenes_image --out=DIR [--parts=autoencoder,captions]

Frames and captions are of the data's split `held_out`: objects of the training split in places and
before backgrounds that they were not seen in.

  autoencoder  PSNR of reconstructed frames, their rFID, and the share of which the judge reads what
               it reads of the frames themselves
  captions     the share of images in which the judge reads all that their captions say, and FID
  control      of each ControlNet, the folder controlnet_NAME of the model, and of the same captions
               and noise without it: F1 of the outlines of the foreground in images and in the
               frames that their hints are of, to within two pixels; and the mean error of depth, of
               255 levels, where the image's foreground has the depth that the hint gives the object

FID is the Fréchet distance of the 128 features of images by the image-text pair that ships in
scenes_image, which was trained on this data. It is on another scale than FID by Inception v3. As a
scale, `fid_of_others` is the distance of as many other frames of the split.

Prints Markdown, and writes figures and contact sheets to OUT. `python -m benchmarks.scenes_style`
measures a LoRA of the model.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("autoencoder", "captions", "control")
FEATURES = "scenes_image/image_text"
_SHEET = 32  # images of a contact sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scenes_image",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="scenes_image", metavar="MODEL", help="a name or folder")
    parser.add_argument("--out", default="samples/scenes_image", metavar="DIR")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument("--frames", type=int, default=1024, metavar="N", help="of rFID; 1024")
    parser.add_argument("--guidance", type=float, metavar="X", help="default: the model's")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: all")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    from vdm_jax.cli import common
    from vdm_jax.pipelines import model as pretrained

    common.setup("any")
    model, out = pretrained.load(options.model), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    changes = {"steps": options.steps, "guidance": options.guidance}
    changes = {name: value for name, value in changes.items() if value is not None}
    parts, found = options.parts.split(","), {}
    if "autoencoder" in parts:
        found["autoencoder"] = autoencoder(model, options.images, options.frames, out)
    if "captions" in parts:
        found["captions"] = captions(model, options.images, changes, out)
    if "control" in parts:
        folder = pretrained.SHIPPED / options.model
        folder = folder if folder.is_dir() else Path(options.model)
        for path in sorted(folder.glob("controlnet_*")):
            found[path.name] = control(model, path, options.images, changes, out)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, values in found.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()))


def held_out(model, count: int) -> tuple[np.ndarray, list[str]]:
    """Frames and their captions."""
    from vdm_jax.evaluation import clips

    found = clips.from_rendered("scenes", model.config.data.config, "held_out", count, frames=True)
    return found.videos, found.captions


def autoencoder(model, count: int, frames: int, out: Path) -> dict[str, Any]:
    """PSNR and FID of reconstructions, and what the judge reads of the first `count`."""
    import jax

    from vdm_jax.stage.space import from_uint8, to_uint8

    videos, texts = held_out(model, 2 * frames)
    true, others = videos[:frames], videos[frames:]
    space = model.stage.space
    run = jax.jit(
        lambda x: to_uint8(space.decode(space.encode(from_uint8(x), model.frozen), model.frozen))
    )
    decoded = np.concatenate([np.asarray(run(true[i : i + 16])) for i in range(0, frames, 16)])
    sheet(out / "autoencoder", np.concatenate([true, decoded], axis=2))
    error = np.square(true.astype(float) - decoded).mean((1, 2, 3, 4))
    return {
        "psnr": round(float((10 * np.log10(255**2 / error)).mean()), 2),
        "psnr_of_all": round(float(10 * np.log10(255**2 / error.mean())), 2),
        "rfid": round(fid(decoded, true), 3),
        "fid_of_others": round(fid(others, true), 3),
        "frames": frames,
        **judged(decoded[:count], texts[:count]),
    }


def fid(images: np.ndarray, true: np.ndarray) -> float:
    """The Fréchet distance of the features of two sets of images, uint8 (n, 1, h, w, 3)."""
    from vdm_jax.evaluation import frechet

    return frechet.frechet_from_features(features(images), features(true))


def features(images: np.ndarray) -> np.ndarray:
    """Those of the shipped image-text pair, float32 (n, 128)."""
    run, params = _pair()
    return np.concatenate([run(images[i : i + 64, 0], params) for i in range(0, len(images), 64)])


@functools.cache
def _pair() -> tuple[Any, Any]:
    """The compiled image encoder of the shipped image-text pair, and its parameters."""
    import jax

    from vdm_jax.stage.image_encoder import IMAGE_ENCODER
    from vdm_jax.stage.space import from_uint8
    from vdm_jax.systems import image_embedding

    encoder = image_embedding.make_image_encoder(FEATURES)
    params = jax.device_put(image_embedding.read_image_encoder(FEATURES).params)
    return jax.jit(lambda x, params: encoder(from_uint8(x), {IMAGE_ENCODER: params})), params


def captions(model, count: int, changes: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the judge reads of images of held-out captions."""
    import jax

    frames, texts = held_out(model, count)
    images = model.sample(jax.random.key(0), prompts=texts, **changes)
    sheet(out / "captions", images)
    (out / "captions.txt").write_text("\n".join(texts[:_SHEET]) + "\n")
    return {**judged(images, texts), "fid": round(fid(images, frames), 3)}


def control(model, folder: Path, count: int, changes: dict[str, Any], out: Path) -> dict[str, Any]:
    """Outlines and depth with a ControlNet, and without."""
    import jax

    from benchmarks import scenes_control

    rows = scenes_control.make_rows(model, folder.name.removeprefix("controlnet_"), count)
    key, texts = jax.random.key(0), [row.caption for row in rows]
    hints, images = scenes_control.sample(model, folder, rows, key, changes)
    free = model.sample(key, prompts=texts, **changes)
    sheet(out / folder.name, np.concatenate([hints, images, free], axis=2))
    frames = np.stack([row.frame[None] for row in rows])
    return {
        **scenes_control.scores(rows, images),
        **scenes_control.scores(rows, free, "_without"),
        "depth_error_of_frames": scenes_control.scores(rows, frames)["depth_error"],
        **judged(images, texts),
    }


def judged(images: np.ndarray, texts: list[str]) -> dict[str, Any]:
    """What the judge reads, and the interval of all of it."""
    from vdm_jax.evaluation import intervals, judge
    from vdm_jax.evaluation.scene_judge import SCENES

    found = judge.score(images, list(texts), SCENES)
    right = intervals.share_interval(round(found["all"] * found["n"]), found["n"])
    ends = f"[{right.low:.3f}, {right.high:.3f}]"
    return {k: v if k == "n" else round(v, 3) for k, v in found.items()} | {"all_interval": ends}


def sheet(path: Path, videos: np.ndarray) -> None:
    """The first images as one picture."""
    from PIL import Image

    from vdm_jax.data import video_io

    tiled = video_io.grid(videos[:_SHEET], columns=8)
    Image.fromarray(tiled[0]).save(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
