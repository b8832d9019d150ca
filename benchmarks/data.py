"""Clips a second from disk, and the time to a clip of the shipped model: parts of `benchmarks.run`.

    python -m benchmarks.data --decode      clips of video files that one core decodes a second

Both readers are given the same moving shapes, 8 frames of 16 x 16: ours as the array_record data
set that training reads, with captions, the peer's as GIFs. Batches of 16, shuffled, made by the
process that asks for them and its threads, as both sides' defaults have it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import serving
from benchmarks.serving import ROOT, Worker, WorkerError

BATCH, SIZE, FRAMES = 16, 16, 8
GIFS = 512
NAME = f"{SIZE}x{SIZE}x{FRAMES}"
PROMPT = "a red circle moving left"
# Clips of video files (f, h, w), each in a file of its own that is as large.
DECODED = (16, 256, 256)
FILES = 8


def measure(python: str | None, scratch: Path, quick: bool) -> dict[str, str]:
    """{what: clips/s}; python: the peers', None = ours alone."""
    batches, rounds = (20, 1) if quick else (200, 3)
    workers = {"vdm_jax, grain over array_record": (sys.executable, "benchmarks.data")}
    if python is not None:
        workers["video-diffusion-pytorch, folder of GIFs"] = (python, "benchmarks.peers.gifs")
    rates: dict[str, str] = {}
    folder = scratch / "clips"
    started = {}
    try:
        for name, (interpreter, module) in workers.items():
            variables = {"JAX_PLATFORMS": "cpu"}
            command = [interpreter, "-W", "ignore", "-m", module]
            started[name] = Worker(name, command, variables)
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        failed: dict[str, str] = {}
        for number in range(1 + rounds):  # the first is warm-up, and for ours renders the clips
            for name, worker in started.items():
                if name in failed:
                    continue
                try:
                    taken = worker.ask("read", limit=900, folder=str(folder), batches=batches)
                    seconds[name] += [taken] if number else []
                except WorkerError as error:
                    failed[name] = f"fails: {error}"
        for name in workers:
            rates[f"{name}, clips/s"] = failed.get(name) or _rate(seconds[name], batches * BATCH)
    finally:
        for worker in started.values():
            worker.close()
    for name in ("diffusers", "make-a-video-pytorch", "lumiere-pytorch"):
        rates[f"{name}, clips/s"] = "none: the package reads no video"
    return rates


def first_clip_of_shipped(device: str, scratch: Path) -> dict[str, str]:
    """{what: seconds} from starting `vdm sample` to its end, with an empty compilation cache."""
    figures = {}
    command = [
        sys.executable,
        "-m",
        "vdm_jax",
        "sample",
        f"--prompt={PROMPT}",
        f"--device={device}",
    ]
    command += [f"--device={device}", f"--out={scratch / 'samples'}"]
    platforms = "cuda" if device == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as empty:
        for what in ("empty compilation cache", "again, from the cache"):
            started = time.perf_counter()
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": empty, "JAX_PLATFORMS": platforms},
                capture_output=True,
                text=True,
            )
            seconds = time.perf_counter() - started
            lines = done.stderr.strip().splitlines() or ["no message"]
            figures[f"launch.sample, one clip of moving_shapes, {what}, s"] = (
                f"{seconds:.1f}" if done.returncode == 0 else f"fails: {lines[-1][:160]}"
            )
    return figures


def decoding(folder: Path, rounds: int = 5, clips: int = 64) -> list[float]:
    """Clips of `DECODED` that one core decodes a second, in each of some rounds.

    H.264 files of a drifting texture with grain, read by `VideoFolder`. The time is the
    processor's own, of all threads: other work on the machine hardly counts.
    """
    import numpy as np

    from vdm_jax.data import video_io
    from vdm_jax.data.video_folder import VideoFolder

    frames, height, width = DECODED
    rng = np.random.default_rng(0)
    for number in range(FILES):
        rough = rng.normal(size=(height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
        texture = sum(np.roll(rough, (i, j), (0, 1)) for i in range(8) for j in range(8)) / 8
        moved = [np.roll(texture, (frame, 2 * frame), (0, 1)) for frame in range(frames)]
        grainy = np.stack(moved) * 40 + 128 + rng.normal(size=(*DECODED, 1)) * 4
        clip = grainy.clip(0, 255).astype(np.uint8)
        video_io.write_mp4(folder / f"{number}.mp4", clip, fps=16, min_size=height)
    source = VideoFolder(folder, num_frames=frames, image_size=height, image_width=width)
    rates = []
    for number in range(1 + rounds):  # the first is warm-up
        started = time.process_time()
        for index in range(clips):
            source.read(index % len(source))
        taken = time.process_time() - started
        rates += [clips / taken] if number else []
    return rates


def _rate(seconds: list[float], clips: int) -> str:
    rates = [clips / each for each in seconds]
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


class Reader:
    """Our pipeline, on a data set that the first request renders; GIFs of it for the peer."""

    def __init__(self):
        self._batches: Iterator | None = None

    def read(self, folder: str, batches: int) -> float:
        """Seconds that `batches` batches took."""
        if self._batches is None:
            self._batches = self._open(Path(folder))
        return serving.timed(lambda: [next(self._batches) for _ in range(batches)], 1)[0]

    def _open(self, folder: Path) -> Iterator:
        from vdm_jax import config as config_lib
        from vdm_jax.data import pipeline, tfds_source, video_io
        from vdm_jax.systems import vdm

        overrides = {"data.data_dir": str(folder), "data.config": NAME}
        config = config_lib.load_config(ROOT / "configs/vdm/moving_shapes.py", overrides)
        tfds_source.prepare(tfds_source.make_builder("moving_shapes", NAME, str(folder)))
        config = pipeline.with_vocabulary(config)
        dataset = pipeline.make_dataset(
            config,
            text_encoder=vdm.build(config).text_encoder,
            batch_size=BATCH,
            seed=0,
            report=None,
        )
        batches = iter(dataset)
        written = 0
        while written < GIFS:
            for clip in next(batches)["video"]:
                path = folder / "gifs" / f"{written:04d}.gif"
                video_io.write_gif(path, clip, min_size=SIZE)
                written += 1
        return batches


def _print_decoding() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rates = decoding(Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / FILES
    shape = " x ".join(map(str, DECODED))
    print(
        f"clips of {shape}, H.264 of {size / 1e3:,.0f} kB each: {statistics.median(rates):.1f} a "
        f"second and core ({min(rates):.1f} to {max(rates):.1f}, n = {len(rates)})"
    )


if __name__ == "__main__":
    if "--decode" in sys.argv:
        _print_decoding()
    else:
        serving.serve(lambda: {"read": Reader().read})
