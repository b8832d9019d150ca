"""Cascades: several trained stages that sample together, one after the other.

A saved cascade is a directory with `cascade.json` (the order of the stages, and fields of their
samplers, see `cascade_file`) and the stages: STAGE.safetensors, or STAGE/ of training.

While it is sampled, one stage at a time is in memory. Its videos so far are in
OUT/stages/NN_STAGE.npy: the same call goes on after a crash, or after a later stage has been
trained again, behind the last batch that is still right.
"""

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Key, Shaped, UInt8

from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.data import frame_rate
from vdm_jax.pipelines import arguments, cascade_file
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.conditions.prompt import Prompt
from vdm_jax.stage.stage import Stage

# progress(stage's name, samples done, samples in all), called after each batch.
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeStep:
    """A stage of a cascade, and how it is sampled.

    Attributes:
      name: of the stage, and of its files.
      source: its model, see `pretrained.load`.
      changes: fields of `sampler.Sampler` that differ from the stage's own configuration.
    """

    name: str
    source: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageOutput:
    """The samples of a stage in the file `path`, and their frame rate.

    They are videos, uint8 (n, f, h, w, c), or a prior's embeddings, float32 (n, 1, 1, 1, d).

    seconds: the time that the stage took, with compilation and earlier calls.
    """

    name: str
    path: Path
    seconds: float
    fps: float

    @property
    def videos(self) -> Shaped[np.ndarray, "n f h w c"]:
        """The samples, mapped into memory."""
        return np.load(self.path, mmap_mode="r")


def cascade_config(
    names: Sequence[str], init_from: Mapping[str, str] | None = None
) -> ml_collections.ConfigDict:
    """The configuration of a cascade.

    Args:
      names: the stages in order; each has a configuration file of this name beside the cascade's.
      init_from: stage to the model whose parameters it starts from; that is trained before it.

    Returns the fields `stages`, `init_from` and `sample`: {stage: {field of its sampler: value}},
    None = as the stage's own configuration.
    """
    fields = (
        *("steps", "sampler", "guidance", "oscillate_after", "augmentation", "batch_size"),
        *("tile", "tile_overlap", "window", "window_overlap", "shared_noise"),
    )
    return ml_collections.ConfigDict(
        {
            "stages": tuple(names),
            "init_from": dict(init_from or {}),
            "sample": {name: dict.fromkeys(fields) for name in names},
        }
    ).lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeModel:
    """A trained cascade.

    Attributes:
      steps: the stages in order.
      mesh: sizes of the mesh's axes for every stage, None = one device.
      offload: keep the stages' frozen networks in the host's memory.
      _samplers: of the stages that were sampled, without parameters; compiled once.
    """

    steps: tuple[CascadeStep, ...]
    mesh: Mapping[str, int] | None = None
    offload: bool = False
    _samplers: dict[str, sampling.Sampler] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages."""
        return tuple(step.name for step in self.steps)

    @property
    def fps(self) -> float:
        """The frame rate of the last stage's videos."""
        return frame_rate.playback(self.last_config)

    @property
    def last_config(self) -> ml_collections.ConfigDict:
        """The configuration of the last stage, whose videos are the cascade's."""
        return pretrained.read_config(self.steps[-1].source)

    def sample_config(self, stage: str) -> ml_collections.ConfigDict:
        """The section `sample` of a stage's configuration, with the cascade's changes."""
        step = self.steps[self._index(stage)]
        section = pretrained.read_config(step.source).sample.copy_and_resolve_references()
        with section.unlocked():
            section.update(_plain(step.changes))
        return section

    def replace(self, changes: Mapping[str, Mapping[str, Any]]) -> "CascadeModel":
        """The cascade with fields of its stages' samplers changed: {stage: {field: value}}."""
        steps = list(self.steps)
        for stage, fields in changes.items():
            step = steps[self._index(stage)]
            steps[self._index(stage)] = dataclasses.replace(
                step, changes={**step.changes, **fields}
            )
        return dataclasses.replace(self, steps=tuple(steps))

    def sample(
        self,
        key: Key[Array, ""],
        prompt: str | None = None,
        *,
        prompts: Sequence[str] | None = None,
        num_samples: int = 1,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        out: str | Path | None = None,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "n f h w c"]:
        """Draws videos: `num_samples` of each prompt, in the order of the prompts.

        Args:
          key: the same key and arguments give the same videos.
          prompt, prompts: one text, or a list of texts; give one of both.
          num_samples: of each prompt.
          changes: as in `replace`.
          out: where the videos of every stage are kept, see `stream`; None = nowhere.
          progress: called after each batch.

        Raises ValueError, and what `stream` raises.
        """
        texts = arguments.as_prompts(prompt, prompts, num_samples)
        arguments.check_key(key)
        model = self.replace(changes or {})
        if out is not None:
            return np.array(list(model.stream(key, texts, out, progress))[-1].videos)
        if jax.process_count() > 1:
            raise ValueError("out = None: several processes need a directory that all can see")
        with tempfile.TemporaryDirectory(prefix="vdm_jax_cascade_") as scratch:
            return np.array(list(model.stream(key, texts, scratch, progress))[-1].videos)

    def stream(
        self,
        key: Key[Array, ""],
        prompts: Sequence[str],
        out: str | Path,
        progress: Progress | None = None,
        *,
        first: int = 0,
    ) -> Iterator[StageOutput]:
        """Draws one video a prompt through all stages; yields after each stage.

        Sample i of stage k is drawn with a key of (key, k, first + i). Several processes all call
        this alike, with an `out` that all can see; the first writes. Raises ValueError where a
        stage cannot refine the videos of the one before, and what `pretrained.load` and
        `Sampler.stream` raise.
        """
        folder = Path(out) / "stages"
        folder.mkdir(parents=True, exist_ok=True)
        _check_chain(self.steps, prompts)
        drawn = [list(prompts), jax.random.key_data(key).tolist()]
        given, before = None, _digest([*drawn, first] if first else drawn)
        for number, step in enumerate(self.steps):
            # The videos of a stage depend on all stages before it.
            model = pretrained.digest(step.source)
            before = _digest([before, step.name, model, _plain(step.changes)])
            record = _Record(folder / f"{number:02d}_{step.name}", before)
            if record.done < len(prompts):
                stage_key = jax.random.fold_in(key, number)
                self._run(step, record, stage_key, prompts, given, progress, first)
            output = StageOutput(
                name=step.name,
                path=record.path,
                seconds=record.seconds,
                fps=frame_rate.playback(pretrained.read_config(step.source)),
            )
            given = output.videos
            yield output

    def _run(self, step, record, key, prompts, given, progress, offset) -> None:
        """Draws the samples of one stage that are still missing, from those of the stage before."""
        model = pretrained.load(step.source, mesh=self.mesh, offload=self.offload)
        name = _digest([config_lib.to_dict(model.config), step.name, _plain(step.changes)])
        sampler = self._samplers.setdefault(name, model.sampler(**step.changes))
        first, condition = record.open(len(prompts)), model.stage.of_stage_before
        # In some cascades only the first stage takes the text.
        texts = prompts if _takes_prompts(model.stage) else [""] * len(prompts)
        stream = sampler.stream(
            model.params,
            key,
            texts[first:],
            inputs=None if condition is None else {condition.name: given[first:]},
            first=offset + first,
        )
        started = time.monotonic()
        for videos in stream:
            record.add(videos, time.monotonic() - started)
            started = time.monotonic()
            if progress is not None:
                progress(step.name, record.done, len(prompts))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"stage {step.name} is written")

    def _index(self, stage: str) -> int:
        if stage not in self.stages:
            raise ValueError(f"{stage!r} is no stage of this cascade: {', '.join(self.stages)}")
        return self.stages.index(stage)


def load(
    source: str | Path, *, mesh: Mapping[str, int] | None = None, offload: bool = False
) -> CascadeModel:
    """Loads a cascade: a directory with `cascade.json`, or a shipped name.

    mesh, offload: as in `pretrained.load`. Raises FileNotFoundError and ValueError.
    """
    folder = pretrained.find_cascade(source)
    if folder is None:
        raise FileNotFoundError(
            f"{str(source)!r} is no directory with {cascade_file.NAME} and no cascade of the "
            f"package, which has {', '.join(pretrained.shipped_cascades())}"
        )
    saved = cascade_file.read(folder)
    cascade = _from_folder(folder, saved.stages, saved.sample, mesh)
    return dataclasses.replace(cascade, offload=offload)


def from_config(
    config: ml_collections.ConfigDict,
    folder: str | Path,
    *,
    mesh: Mapping[str, int] | None = None,
) -> CascadeModel:
    """The cascade of a configuration (`cascade_config`) whose stages are in `folder`."""
    return _from_folder(Path(folder), config.stages, config.sample.to_dict(), mesh)


def save(folder: str | Path, config: ml_collections.ConfigDict) -> Path:
    """Writes `cascade.json` of a configuration (`cascade_config`) beside the stages."""
    sample = {name: _plain(changes) for name, changes in config.sample.to_dict().items()}
    changed = {name: changes for name, changes in sample.items() if changes}
    return cascade_file.write(folder, config.stages, changed)


def _from_folder(
    folder: Path,
    stages: Sequence[str],
    sample: Mapping[str, Mapping[str, Any]],
    mesh: Mapping[str, int] | None,
) -> CascadeModel:
    steps = []
    for name in stages:
        workdir, file = folder / name, folder / f"{name}.safetensors"
        if not workdir.is_dir() and not file.is_file():
            raise FileNotFoundError(
                f"stage {name}: neither {workdir} nor {file} is there; train the cascade first: "
                f"vdm train --config=... --workdir={folder}"
            )
        source = workdir if workdir.is_dir() else file
        changes = _plain(sample.get(name, {}))
        steps.append(CascadeStep(name=name, source=str(source), changes=changes))
    return CascadeModel(steps=tuple(steps), mesh=mesh)


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

    def open(self, count: int) -> int:
        """Prepares the file of `count` samples; the number of the first one to be made."""
        self._count = count
        return self.done

    def _file(self, samples: Shaped[np.ndarray, "n f h w c"]) -> np.memmap:
        """The file of before, or a new one for samples like these."""
        if self.done:
            return np.lib.format.open_memmap(self.path, mode="r+")
        self._note.unlink(missing_ok=True)  # first: a note never speaks of another file
        shape = (self._count, *samples.shape[1:])
        return np.lib.format.open_memmap(self.path, mode="w+", dtype=samples.dtype, shape=shape)

    def add(self, videos: Shaped[np.ndarray, "n f h w c"], seconds: float) -> None:
        """Writes a batch, then that it is there."""
        if jax.process_index() == 0:
            self._videos = self._file(videos)
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


def _check_chain(steps: Sequence[CascadeStep], prompts: Sequence[str]) -> None:
    """Raises ValueError unless each stage takes what the one before it makes, and one the text."""
    before: jax.ShapeDtypeStruct | None = None
    has_text = False
    for step in steps:
        stage = systems.build(pretrained.read_config(step.source))
        if not isinstance(stage, Stage):
            raise ValueError(f"{step.name}: {step.source} is no stage of a cascade")
        condition = stage.of_stage_before
        wanted = None if condition is None else condition.input_shapes(1)[condition.name]
        if _kind(wanted) != _kind(before):
            raise ValueError(
                f"{step.name} refines {_kind(wanted) or 'nothing'} (frames, height, width), but "
                f"the stage before it makes {_kind(before) or 'nothing'}"
            )
        before = stage.sample_shape
        has_text = has_text or _takes_prompts(stage)
    if any(prompts) and not has_text:
        raise ValueError(
            "prompts were given, but no stage of this cascade takes text; omit --prompt"
        )


def _kind(samples: jax.ShapeDtypeStruct | None) -> tuple[int, ...] | str:
    """What stages of a cascade must agree on: a video's frames, height and width, or that it is an
    embedding and its features."""
    if samples is None:
        return ()
    frames, height, width, channels = samples.shape[-4:]
    is_video = samples.dtype == np.uint8
    return (frames, height, width) if is_video else f"an embedding of {channels} features"


def _takes_prompts(stage: Stage) -> bool:
    return any(isinstance(condition, Prompt) for condition in stage.conditions)


def digest(source: str | Path) -> str:
    """What names the parameters and configurations of a model or a cascade: "sha256:…"."""
    if (folder := pretrained.find_cascade(source)) is None:
        return pretrained.digest(source)
    stages = [pretrained.digest(step.source) for step in load(source).steps]
    return f"sha256:{_digest([cascade_file.read(folder).digest, stages])}"


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(changes.items()) if value is not None}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
