"""Cuts a film into its shots: DIR/train and, every fifth of them, DIR/held_out.

    python -m benchmarks.shots --film=FILM.mp4 --out=DIR [--size=64]

A cut is where a frame differs from the one before far more than those around it do. Shots shorter
than --least frames are dropped.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_AROUND = 12  # frames to either side of a cut
_TIMES = 4.0  # the difference at a cut over the median around it, at least
_LEAST_DIFFERENCE = 8.0  # of 255, at a cut


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--film", required=True, metavar="FILE")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--least", type=int, default=32, metavar="N", help="frames (default 32)")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="pixels (default 64)")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    from vdm_jax.data import source, video_io

    video, fps = video_io.read_video(Path(options.film))
    video = source.fit(video, options.size)
    bounds = [0, *cuts(video), len(video)]
    shots = [
        (start, stop)
        for start, stop in zip(bounds, bounds[1:], strict=False)
        if stop - start >= options.least
    ]
    for number, (start, stop) in enumerate(shots):
        split = "held_out" if number % 5 == 4 else "train"
        path = Path(options.out) / split / f"shot_{number:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        video_io.write_mp4(path, video[start:stop], fps=fps)
    print(f"{len(shots)} shots of {len(video)} frames in {options.out}")


def cuts(video: np.ndarray) -> list[int]:
    """The first frame of each shot but the first."""
    small = video[:, ::4, ::4].astype(np.int16)
    difference = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))
    found = []
    for at, value in enumerate(difference):
        around = difference[max(0, at - _AROUND) : at + _AROUND + 1]
        if value > max(_LEAST_DIFFERENCE, _TIMES * np.median(around)) and value == around.max():
            found.append(at + 1)
    return found


if __name__ == "__main__":
    main()
