"""From prompts through the stages of a cascade to videos, each stage's output kept on disk.

One stage at a time: its model is read, all samples are drawn, the model is let go. What a stage
has made so far is in OUT/stages/NN_NAME.npy; after a crash, or when a later stage has been trained
again, the same call goes on behind the last batch that is still right.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from vdm_jax import config as config_lib
from vdm_jax.pipelines import model as pretrained

# progress(stage's name, samples done, samples in all), called after each batch.
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeStep:
    """A stage of a cascade, and how it is sampled.

    Attributes:
      name: of the stage, and of its files.
      source: its model, see `pretrained.load`.
      changes: fields of `sampling.Sampler` where they are to differ from its configuration.
    """

    name: str
    source: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageOutput:
    """What a stage has made: videos uint8 (n, f, h, w, c) in a file, and seconds it took, those of
    compilation and of an earlier call included; fps of the videos."""

    name: str
    path: Path
    seconds: float
    fps: float

    @property
    def videos(self) -> UInt8[np.ndarray, "n f h w c"]:
        """The videos, mapped into memory."""
        return np.load(self.path, mmap_mode="r")


def cascade_config(
    names: Sequence[str], init_from: Mapping[str, str] | None = None
) -> ml_collections.ConfigDict:
    """The configuration of a cascade: the order of its stages, and fields of a stage's sampler that
    are to differ from its own configuration, None = as it says.

    init_from: of stages that start from another model's parameters, that model's name; it is
    trained before.
    """
    fields = ("steps", "sampler", "guidance", "oscillate_after", "augmentation", "batch_size")
    fields += ("tile", "tile_overlap", "window", "window_overlap")
    return ml_collections.ConfigDict(
        {
            "stages": tuple(names),
            "init_from": dict(init_from or {}),
            "sample": {name: dict.fromkeys(fields) for name in names},
        }
    ).lock()


def sample(
    steps: Sequence[CascadeStep],
    seed: int,
    prompts: Sequence[str],
    out: str | Path,
    *,
    mesh: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Iterator[StageOutput]:
    """Draws one video a prompt through all stages; yields after each stage.

    Sample i of stage k is drawn with a key of (seed, k, i). Several processes all call this alike,
    with an `out` that all can see; the first writes. Raises ValueError where a stage cannot refine
    what the one before makes, where `out` holds samples of something else, and what
    `pretrained.load` and `Sampler.stream` raise.
    """
    folder = Path(out) / "stages"
    folder.mkdir(parents=True, exist_ok=True)
    _check_chain(steps)
    low_res, before = None, _digest([list(prompts), seed])
    for number, step in enumerate(steps):
        # What a stage makes depends on all stages before it.
        before = _digest([before, step.name, _identity(step.source), _plain(step.changes)])
        record = _Record(folder / f"{number:02d}_{step.name}", before)
        if record.done < len(prompts):
            key = jax.random.fold_in(jax.random.key(seed), number)
            _run(step, record, key, prompts, low_res, mesh, progress)
        stage = pretrained.read_config(step.source).stage
        output = StageOutput(
            name=step.name,
            path=record.path,
            seconds=record.seconds,
            fps=_frame_rate(stage, pretrained.read_config(step.source).data),
        )
        low_res = output.videos
        yield output


def _run(step, record, key, prompts, low_res, mesh, progress) -> None:
    """Draws what is missing of one stage's videos."""
    model = pretrained.load(step.source, mesh=mesh)
    sampler = model.sampler(**step.changes)
    first = record.open(len(prompts), sampler.video_shape)
    stream = sampler.stream(
        model.params,
        key,
        prompts[first:],
        low_res=None if low_res is None else low_res[first:],
        first=first,
    )
    started = time.monotonic()
    for videos in stream:
        record.add(videos, time.monotonic() - started)
        started = time.monotonic()
        if progress is not None:
            progress(step.name, record.done, len(prompts))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"stage {step.name} is written")


class _Record:
    """The file of a stage's videos, with a note of how many are done and of what made them."""

    def __init__(self, stem: Path, identity: str):
        self.path, self._note = stem.with_suffix(".npy"), stem.with_suffix(".json")
        self._identity = identity
        self.done, self.seconds = 0, 0.0
        if self._note.exists() and self.path.exists():
            note = json.loads(self._note.read_text())
            if note["identity"] == identity:
                self.done, self.seconds = note["done"], note["seconds"]

    def open(self, count: int, shape: tuple[int, ...]) -> int:
        """Makes the file, or opens that of before; the number of the first video to be made."""
        if jax.process_index() == 0:
            if self.done:
                self._videos = np.lib.format.open_memmap(self.path, mode="r+")
            else:
                self._note.unlink(missing_ok=True)  # first: a note never speaks of another file
                self._videos = np.lib.format.open_memmap(
                    self.path, mode="w+", dtype=np.uint8, shape=(count, *shape)
                )
        return self.done

    def add(self, videos: UInt8[np.ndarray, "n f h w c"], seconds: float) -> None:
        """Writes a batch, then that it is there."""
        start, self.done = self.done, self.done + len(videos)
        self.seconds += seconds
        if jax.process_index() != 0:
            return
        self._videos[start : self.done] = videos
        self._videos.flush()
        note = {"identity": self._identity, "done": self.done, "seconds": self.seconds}
        partial = self._note.with_suffix(".partial")
        partial.write_text(json.dumps(note))
        partial.replace(self._note)


def _check_chain(steps: Sequence[CascadeStep]) -> None:
    """Raises ValueError unless each stage refines what the one before it makes."""
    made: tuple[int, ...] = ()
    for step in steps:
        config = pretrained.read_config(step.source)
        if "stage" not in config:
            raise ValueError(f"{step.name}: {step.source} is no stage of a cascade")
        wanted = tuple(config.stage.low_res)
        if wanted != made:
            raise ValueError(
                f"{step.name} refines {wanted or 'nothing'} (frames, height, width), but the stage "
                f"before it makes {made or 'nothing'}"
            )
        made = tuple(config.stage.shape)


def _frame_rate(stage, data) -> float:
    return stage.data_fps * stage.shape[0] / data.num_frames


def _identity(source: str) -> list[Any]:
    """What tells a model from the one that was there before under the same name."""
    path = Path(source)
    if path.is_dir():
        from vdm_jax.training import checkpoints

        step, config = checkpoints.read_config(path)
        return [step, config_lib.to_dict(config)]
    if path.is_file():
        return [path.stat().st_size, path.stat().st_mtime_ns]
    return [source]


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(changes.items()) if value is not None}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
