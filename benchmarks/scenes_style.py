"""A style that the latent image model of scenes learns from few frames, as a LoRA.

    python -m benchmarks.scenes_style --model=scenes_image --out=OUT [--frames=20] [--updates=300]

OUT/data receives frames of the data's split `train` in pastel (`benchmarks.pastel`) with their
captions. `vdm train` trains a LoRA of the model on them, in OUT/run, and `vdm convert` writes it as
OUT/lora/pytorch_lora_weights.safetensors, as diffusers reads it. What is there already is kept.
Images of held-out captions are then sampled with the file and without, from the same noise.

  colours     the distance of the colours of all pixels from those of held-out frames in pastel: the
              square root of the Fréchet distance of their means and covariances, in levels of 255
  saturation  the mean of a pixel's largest less its least value
  all         the share of images in which the judge reads all that their captions say. Before it
              looks, pastel is taken back by as much as saturation fell: against the frames as they
              were, and against the images without the LoRA

Prints Markdown, and writes OUT/report.json and OUT/style.png: frames in pastel, images with the
LoRA, images without.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_DRAWN = 10  # times as many frames as are chosen
# How far the style goes to grey. A LoRA reaches a part of it, and more in some places than in
# others. If the judge takes back twice what was reached, it still reads 97% of frames at 0.3, but
# only 28% at 0.5.
_AMOUNT = 0.3
_FILE_SIZE = 256  # of the files: a video's colours have half of its resolution
_TRAINING = {
    "data.name": "video_folder",
    "train.lora.rank": 8,
    "train.optimizer": "adamw",
    "train.batch_size": 16,
    "train.learning_rate": 1e-3,
    "train.ema_decay": 0.98,
    "train.log_every": 20,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scenes_style",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="scenes_image", metavar="MODEL", help="a name or folder")
    parser.add_argument("--out", default="samples/scenes_style", metavar="OUT")
    parser.add_argument("--frames", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument("--updates", type=int, default=300, metavar="N", help="default 300")
    parser.add_argument("--images", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="of the LoRA; 1")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()
    from benchmarks.cascade import table
    from vdm_jax.cli import common

    common.setup("any")
    out = Path(options.out)
    lora = out / "lora" / "pytorch_lora_weights.safetensors"
    if not lora.is_file():
        write_frames(out / "data", options.frames)
        train(options, out)
    rows = compare(options, lora, out)
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def write_frames(folder: Path, count: int) -> None:
    """Frames in pastel, as files of one frame, and their captions. Backgrounds take turns: one that
    no frame shows would keep its colours."""
    from benchmarks.pastel import pastel
    from vdm_jax.data import video_io
    from vdm_jax.evaluation import clips

    folder.mkdir(parents=True, exist_ok=True)
    found = clips.from_rendered("scenes", "64x64x16", "train", _DRAWN * count, frames=True)
    by_background: dict[str, list[int]] = {}
    for index, caption in enumerate(found.captions):
        by_background.setdefault(caption.rpartition(" of a ")[2], []).append(index)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_background.values()))
    chosen = [index for index in turns if index is not None][:count]
    for number, index in enumerate(chosen):
        video, caption = found.videos[index], found.captions[index]
        path = folder / f"frame_{number:04d}.mp4"
        video_io.write_mp4(path, pastel(video, _AMOUNT), fps=8, min_size=_FILE_SIZE)
        path.with_suffix(".txt").write_text(caption + "\n")


def train(options, out: Path) -> None:
    """Trains the LoRA and writes its file. Raises CalledProcessError."""
    settings = {
        **_TRAINING,
        "data.data_dir": out / "data",
        "train.lora.base": options.model,
        "train.steps": options.updates,
        "train.warmup_steps": options.updates // 10,
        "checkpoint.every": options.updates,
    }
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    config = "--config=latent_image/scenes"
    for command in (
        ["data", "embed", config, *fields],
        ["train", config, f"--workdir={out / 'run'}", *fields],
        ["convert", "--to=diffusers", f"--model={out / 'run'}", f"--out={out / 'lora'}"],
    ):
        subprocess.run([sys.executable, "-m", "vdm_jax", *command], check=True)


def compare(options, lora: Path, out: Path) -> list[dict[str, str]]:
    """A row for the frames in pastel, for images with the LoRA and for images without."""
    import jax

    from benchmarks.pastel import pastel
    from benchmarks.scenes_image import held_out, sheet
    from vdm_jax.pipelines import model as pretrained

    base = pretrained.load(options.model)
    styled = pretrained.load(options.model, loras={lora: options.scale})
    frames, texts = held_out(base, 2 * options.images)
    others, true = (
        pastel(part, _AMOUNT) for part in (frames[options.images :], frames[: options.images])
    )
    texts = texts[: options.images]
    images = {"frames in pastel": true}
    for name, model in (("with the LoRA", styled), ("without", base)):
        images[name] = model.sample(jax.random.key(0), prompts=texts, steps=options.steps)
    sheet(out / "style", np.concatenate([*images.values()], axis=2))
    plain = {"frames in pastel": frames[: options.images], "with the LoRA": images["without"]}
    return [
        row(name, shown, plain.get(name, shown), others, texts) for name, shown in images.items()
    ]


def row(
    name: str, images: np.ndarray, plain: np.ndarray, styled: np.ndarray, texts: list[str]
) -> dict[str, str]:
    """The figures of images, uint8 (n, 1, h, w, 3), against other frames in the style.

    plain: the images before they had a style, or without it.
    """
    from benchmarks.controlvideo import share
    from benchmarks.pastel import vivid
    from vdm_jax.evaluation import judge
    from vdm_jax.evaluation.scene_judge import SCENES

    reached = 1 - saturation(images) / saturation(plain)
    found = judge.score(vivid(images, max(reached, 0.0)), texts, SCENES)
    return {
        "images": name,
        "colours": f"{colour_distance(images, styled):.1f}",
        "saturation": f"{saturation(images):.1f}",
        "all": share(round(found["all"] * found["n"]), found["n"]),
    }


def saturation(images: np.ndarray) -> float:
    """The mean of a pixel's largest less its least value."""
    return float(np.ptp(images.astype(float), axis=-1).mean())


def colour_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The distance of the colours of all pixels of two sets of images, in levels."""
    from vdm_jax.evaluation.frechet import frechet

    moments = []
    for images in (first, second):
        pixels = images.reshape(-1, 3).astype(np.float64)
        moments += [pixels.mean(0), np.cov(pixels, rowvar=False)]
    return float(np.sqrt(frechet(*moments)))


if __name__ == "__main__":
    main()
