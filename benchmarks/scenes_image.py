"""What the latent image model of scenes is worth: its autoencoder, its captions, its ControlNets.

    python -m benchmarks.scenes_image --model=scenes_image --out=DIR [--parts=autoencoder,captions]

Frames and captions are of the data's split `held_out`: objects of the training split in places and
before backgrounds that they were not seen in.

  autoencoder  PSNR of reconstructed frames, and the share of which the judge reads what it reads of
               the frames themselves
  captions     the share of images in which the judge reads all that their captions say
  control      of each ControlNet, the folder controlnet_NAME of the model: F1 of the outlines of
               the foreground in images and in the frames that their hints are of, to within a
               pixel of half the image's size; and the same without its ControlNet

Prints Markdown, and writes figures and contact sheets to OUT.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("autoencoder", "captions", "control")
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
        found["autoencoder"] = autoencoder(model, options.images, out)
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


def autoencoder(model, count: int, out: Path) -> dict[str, Any]:
    """PSNR and what the judge reads of reconstructions."""
    import jax

    from vdm_jax.stage.space import from_uint8, to_uint8

    frames, texts = held_out(model, count)
    space = model.stage.space
    run = jax.jit(
        lambda x: to_uint8(space.decode(space.encode(from_uint8(x), model.frozen), model.frozen))
    )
    decoded = np.concatenate([np.asarray(run(frames[i : i + 16])) for i in range(0, count, 16)])
    sheet(out / "autoencoder", np.concatenate([frames, decoded], axis=2))
    error = np.square(frames.astype(float) - decoded).mean((1, 2, 3, 4))
    return {
        "psnr": round(float((10 * np.log10(255**2 / error)).mean()), 2),
        "psnr_of_all": round(float(10 * np.log10(255**2 / error.mean())), 2),
        **judged(decoded, texts),
    }


def captions(model, count: int, changes: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the judge reads of images of held-out captions."""
    import jax

    _, texts = held_out(model, count)
    images = model.sample(jax.random.key(0), prompts=texts, **changes)
    sheet(out / "captions", images)
    (out / "captions.txt").write_text("\n".join(texts[:_SHEET]) + "\n")
    return judged(images, texts)


def control(model, folder: Path, count: int, changes: dict[str, Any], out: Path) -> dict[str, Any]:
    """F1 of outlines with a ControlNet, and without."""
    import jax

    from vdm_jax.data.scenes.builder import FRAMES, Scenes, clips
    from vdm_jax.stage.conditions.hint import Hint
    from vdm_jax.stage.control import ControlStage
    from vdm_jax.stage.low_rank import BASE
    from vdm_jax.weights import controlnet

    config = next(c for c in Scenes.BUILDER_CONFIGS if c.name == model.config.data.config)
    source, rows = folder.name.removeprefix("controlnet_"), []
    for index, (scene, clip) in enumerate(clips(config, "held_out", count)):
        at = index * 7 % FRAMES
        rows.append((clip.video[at], getattr(clip, source)[at], scene.frame_captions[at]))
    frames, hints, texts = zip(*rows, strict=True)
    network, params = controlnet.read_folder(folder)
    network = network.clone(time=model.stage.network.time)
    hint = Hint(shape=(*model.stage.video_shape[:3], network.hint_channels))
    stage = ControlStage.add(model.stage, network, hint)
    plain = model.sampler(**changes)
    sampler = dataclasses.replace(plain, stage=stage, frozen={**model.frozen, BASE: model.params})
    hints = np.broadcast_to(np.stack(hints)[:, None], (count, *hint.shape)).copy()
    (name,) = {one.name for one in stage.network.controls}
    stream = sampler.stream({name: params}, jax.random.key(0), texts, inputs={"hint": hints})
    images = np.concatenate(list(stream))
    sheet(out / folder.name, np.concatenate([hints, images], axis=2))
    free = np.concatenate(list(plain.stream(model.params, jax.random.key(0), texts)))
    scores = {
        key: np.mean([outline_f1(*row) for row in zip(texts, frames, made[:, 0], strict=True)])
        for key, made in (("f1", images), ("f1_without", free))
    }
    return {
        **{key: round(float(value), 3) for key, value in scores.items()},
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


def outline_f1(caption: str, true: np.ndarray, made: np.ndarray) -> float:
    """F1 of the outlines of two frames of a caption, each pixel matched to within one."""
    first, second = (outline(caption, frame) for frame in (true, made))
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    precision = (second & near(first)).sum() / second.sum()
    recall = (first & near(second)).sum() / first.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def outline(caption: str, frame: np.ndarray) -> np.ndarray:
    """The border of what the caption's background does not explain, at half size."""
    from vdm_jax.data.scenes.grammar import BACKGROUNDS, parse_caption
    from vdm_jax.evaluation import scene_matching as matching

    ground = tuple(BACKGROUNDS).index(parse_caption(caption)[0].background)
    view = matching.make_view(matching.halved(frame[None].astype(np.float32) / 255), ground)
    margin = matching.MARGIN
    foreground = view.cost[0, margin:-margin, margin:-margin] > matching.MOST_COST / 2
    return foreground & near(~foreground)


def near(mask: np.ndarray) -> np.ndarray:
    """The mask and the pixels beside it."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.any(
        [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0
    )


def sheet(path: Path, videos: np.ndarray) -> None:
    """The first images as one picture."""
    from PIL import Image

    from vdm_jax.data import video_io

    tiled = video_io.grid(videos[:_SHEET], columns=8)
    Image.fromarray(tiled[0]).save(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
