"""Writes clips of moving shapes in pastel: a style for Lumiere's image model. `scenes_style` is its
sister for the image model of scenes.

    python -m benchmarks.pastel --out=DIR [--clips=256]

DIR receives video files and their captions, of the data's split `train`, for launch.train with
--config.data.name=video_folder --config.data.data_dir=DIR.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_MIN_SIZE = 64  # of the files: a video's colours have half of its resolution


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pastel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--clips", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument("--data", default="16x16x32", metavar="NAME", help="of moving_shapes")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    from vdm_jax.data import video_io
    from vdm_jax.evaluation import clips

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    found = clips.from_rendered("moving_shapes", options.data, "train", options.clips)
    for number, (video, caption) in enumerate(zip(found.videos, found.captions, strict=True)):
        path = out / f"clip_{number:04d}.mp4"
        video_io.write_mp4(path, pastel(video), fps=24, min_size=_MIN_SIZE)
        path.with_suffix(".txt").write_text(caption + "\n")
    print(f"{len(found.videos)} clips in {out}")


def pastel(video: np.ndarray, amount: float = 0.5) -> np.ndarray:
    """Every pixel by `amount` of the way to the grey that is as bright: black stays black."""
    grey = video.max(axis=-1, keepdims=True).astype(np.float32)
    return np.rint(video + amount * (grey - video)).astype(np.uint8)


def vivid(video: np.ndarray, amount: float = 0.5) -> np.ndarray:
    """`pastel` taken back. Colours that no frame in pastel has become the nearest ones that are."""
    grey = video.max(axis=-1, keepdims=True).astype(np.float32)
    return np.clip(np.rint(grey + (video - grey) / (1 - amount)), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
