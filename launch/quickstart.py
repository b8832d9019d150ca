"""From nothing to generated videos: prepares data, trains, samples, and judges the samples.

    bash launch/quickstart.sh [--minutes N] [--videos DIR] [--fresh] [--config.F=V ...]

Draws a video of the model that ships, to look at meanwhile. Then trains vdm/moving_shapes on the
embedded data set, draws captions that were never trained on, and says where the videos are and what
the judge reads in them. N minutes (default 15)
are the wall time of everything after installing; training gets what the rest leaves. Run it again
to go on: training that was interrupted resumes, training that is over is only sampled, and more
minutes train further. With --videos it trains vdm/own_videos on the video files under DIR instead,
captioned by .txt or .json files beside them or else by their folders' names, and draws captions
found there.

The run is in runs/quickstart, or with --videos in runs/quickstart_NAME_NUMBER; its folder shipped/
has the video of the model that ships, final/ the GIF, the contact sheet, the MP4s and the samples
as an array (samples.npz). What is installed goes to .venv; PYTHON=/path/to/python chooses the
Python (3.11 or newer), and VDM_JAX_EXTRAS=gpu or tpu what JAX is installed for (default: gpu where
there is one).
"""

import argparse
import collections
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from vdm_jax.cli import common, parsing

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "vdm_jax"
CONFIG, CONFIG_OF_VIDEOS = "vdm/moving_shapes", "vdm/own_videos"
DEFAULT_MINUTES = 15.0
# Wall time of all but training itself: the trainer's start and last save, sampling (compiled anew)
# and judging. Measured on one core alone: 10 s, 50 s and 1 s.
RESERVED_SECONDS = 90.0
# Less than this is not worth another start of the trainer.
LEAST_TRAINING_SECONDS = 20.0
SAMPLES_A_CAPTION = 4
LEAST_SAMPLES = 16
MOST_CAPTIONS = 14
STEPS, GUIDANCE = 64, 2.0
FIRST_CAPTION = "a red circle moving left"


class Stopped(Exception):
    """Ctrl-C or SIGTERM: the command that was running has saved and stopped."""


def main(arguments: list[str]) -> int:
    parser = parsing.parser("bash launch/quickstart.sh", __doc__)
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=DEFAULT_MINUTES,
        metavar="N",
        help="wall time (default 15)",
    )
    parser.add_argument(
        "--videos", type=_directory, metavar="DIR", help="train on these video files"
    )
    parser.add_argument("--fresh", action="store_true", help="remove this run first")
    parser.add_argument("--check", action="store_true", help="only check these flags")
    options, overrides = parser.parse_known_args(arguments)
    unknown = [text for text in overrides if not re.match(r"--config\.[^=]+=", text)]
    if unknown:
        parser.error(f"unrecognised: {' '.join(unknown)} (fields are set by --config.F=V)")
    if options.check:
        return 0
    name = CONFIG
    if options.videos is not None:
        name = CONFIG_OF_VIDEOS
        overrides = [f"--config.data.data_dir={options.videos}", *overrides]
    started = time.monotonic()

    from vdm_jax import config as config_lib

    os.chdir(ROOT)
    config = config_lib.load_config(name, config_lib.split_overrides(overrides)[0])
    workdir = workdir_of(options.videos)
    if options.fresh and workdir.exists():
        print(f"--fresh: removing {_shown(workdir)}")
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)

    try:
        _first_look(workdir)
        if options.videos is None:
            print("\ndata")
            _run(
                "data",
                "prepare",
                f"--data={config.data.name}/{config.data.config}",
                f"--data_dir={config.data.data_dir}",
            )
        steps = _steps(config, options.minutes)
        _train(name, workdir, options.minutes, started, [steps, *overrides])
        trained = config_lib.from_json((workdir / "config.json").read_text())
        out = _sample(workdir, choose_captions(trained))
    except Stopped:
        print("stopped; the same command goes on from there")
        return 130
    _report(out, judged=options.videos is None)
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def workdir_of(videos: Path | None) -> Path:
    """Where a run lives: one place for the embedded data set, one for each video directory."""
    if videos is None:
        return ROOT / "runs" / "quickstart"
    digest = hashlib.sha256(str(videos).encode()).hexdigest()[:6]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", videos.name).strip("_") or "videos"
    return ROOT / "runs" / f"quickstart_{slug}_{digest}"


def training_seconds(minutes: float, spent: float, elapsed: float) -> float:
    """Seconds left for training out of `minutes`, at least 0.

    spent: seconds of training by earlier runs. elapsed: seconds of this run so far.
    """
    return max(0.0, 60.0 * minutes - RESERVED_SECONDS - spent - elapsed)


def choose_captions(config) -> list[str]:
    """What is sampled: held-out captions of the embedded data, common ones of the user's videos.

    config: as saved by training, with the vocabulary. Words that it does not have are left out.
    """
    if config.data.name == "moving_shapes":
        from vdm_jax.data import shapes

        captions = shapes.captions("held_out", 2 if config.data.config.endswith("_two") else 1)
        return captions[:: max(1, len(captions) // MOST_CAPTIONS)][:MOST_CAPTIONS]

    from vdm_jax.data import pipeline
    from vdm_jax.models.text import words as text

    known = set(config.text.vocabulary)
    counted = collections.Counter(
        " ".join([word for word in text.split_words(caption) if word in known])
        for caption in pipeline.source_info(config).captions
    )
    longest = config.text.max_length
    cut = [" ".join(caption.split()[:longest]) for caption, _ in counted.most_common()]
    return [caption for caption in dict.fromkeys(cut) if caption][:MOST_CAPTIONS]


def _first_look(workdir: Path) -> None:
    """Draws a video of the model that ships, once a run."""
    out = workdir / "shipped"
    if (out / "samples.gif").is_file():
        return
    shutil.rmtree(out, ignore_errors=True)
    print("\na video of the model that ships")
    _run("sample", f"--prompt={FIRST_CAPTION}", f"--out={_shown(out)}")


def _sample(workdir: Path, captions: list[str]) -> Path:
    out = workdir / "final"
    shutil.rmtree(out, ignore_errors=True)  # clips of other captions would stay among the new
    out.mkdir()
    prompts = out / "captions.txt"
    prompts.write_text("".join(caption + "\n" for caption in captions), encoding="utf-8")
    each = max(SAMPLES_A_CAPTION, LEAST_SAMPLES // max(len(captions), 1))
    print("\nsamples")
    _run(
        "sample",
        f"--model={_shown(workdir)}",
        f"--prompts_file={_shown(prompts)}",
        f"--num_samples={each}",
        f"--steps={STEPS}",
        f"--guidance={GUIDANCE:g}",
        f"--out={_shown(out)}",
    )
    return out


def _train(
    config: str, workdir: Path, minutes: float, started: float, overrides: list[str]
) -> None:
    record = workdir / "quickstart.json"
    spent = json.loads(record.read_text())["trained_seconds"] if record.exists() else 0.0
    seconds = training_seconds(minutes, spent, time.monotonic() - started)
    if spent and seconds < LEAST_TRAINING_SECONDS:
        print(
            f"\ntraining: has had its {spent / 60:.1f} minutes of {minutes:g} already; "
            f"sampling only (--minutes={2 * minutes:g} trains further, --fresh starts over)"
        )
        return
    seconds = max(seconds, LEAST_TRAINING_SECONDS)
    print(f"\ntraining for {seconds / 60:.1f} minutes; Ctrl-C saves and stops")
    begun = time.monotonic()
    try:
        _run(
            "train",
            f"--config={config}",
            f"--workdir={_shown(workdir)}",
            f"--config.train.minutes={seconds / 60:.3f}",
            *overrides,
        )
    finally:
        spent += time.monotonic() - begun
        record.write_text(json.dumps({"trained_seconds": round(spent, 1)}) + "\n")


def _steps(config, minutes: float) -> str:
    """The configuration's steps are meant for the default minutes; more minutes have more."""
    factor = max(1, math.ceil(minutes / DEFAULT_MINUTES))
    return f"--config.train.steps={factor * config.train.steps}"


def _report(out: Path, judged: bool) -> None:
    count = len(list(out.glob("*.mp4")))
    print(f"\n{count} videos:")
    print(f"  GIF            {out / 'samples.gif'}")
    print(f"  contact sheet  {out / 'contact_sheet.png'}")
    print(f"  MP4s           {out}/*.mp4")
    if not judged:
        return
    import numpy as np

    from vdm_jax.evaluation import judge

    with np.load(out / "samples.npz") as samples:
        scores = judge.score(samples["video"], [str(text) for text in samples["prompts"]])
    print(
        f"the judge, on captions that were never trained on: colour {scores['color']:.0%}, shape "
        f"{scores['shape']:.0%}, direction {scores['direction']:.0%}; all three right "
        f"{scores['all']:.0%} of {count}"
    )


def _run(*arguments: str) -> None:
    """Runs `vdm ARGUMENTS` in the repository and shows it.

    Raises Stopped when it was interrupted; ends this process when it failed, having said why.
    """
    from vdm_jax.data import text_files

    print(f"$ vdm {text_files.shown(shlex.join(arguments))}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", PROGRAM, *arguments], cwd=ROOT)
    stopped = False

    def stop(number: int, _) -> None:
        nonlocal stopped
        stopped = True
        if number == signal.SIGTERM:  # Ctrl-C reaches the child from the terminal
            process.send_signal(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopped:
        raise Stopped
    if code:
        sys.exit(code if code > 0 else 1)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return minutes


def _directory(text: str) -> Path:
    # quickstart.sh changes to the repository; the user means where they called it.
    path = (Path(os.environ.get("VDM_JAX_CALLER_DIR", ".")) / Path(text).expanduser()).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no directory")
    return path


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    common.run(main, sys.argv[1:])
