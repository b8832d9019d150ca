"""Batches of clips of several sizes, of one `ClipDataset` for each size.

What is read is a function of the seed and of the number of the batch, as with clips of one size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.data import pipeline
from vdm_jax.data.pipeline import Batch, ClipDataset, ClipIterator
from vdm_jax.stage.native_sizes import SizedStage

Batches = dict[str, Batch]


def make_dataset(
    config: ConfigDict,
    stage: Any,
    *,
    rows: Sequence[int],
    report: Callable[[str], Any] | None = print,
) -> "ClipDataset | MixedDataset":
    """The training batches of a stage, of one size or of several; see `pipeline.make_dataset`.

    rows: those of a batch that this process reads. Raises DataError.
    """
    batch_size, seed = config.train.batch_size, config.train.seed
    common = {"split": config.data.split, "text_encoder": stage.text_encoder}
    if not isinstance(stage, SizedStage):
        return pipeline.make_dataset(
            config,
            **common,
            seed=seed,
            reading=stage.reading,
            batch_size=batch_size,
            rows=rows,
            report=report,
        )
    aspects, parts = [size.width / size.height for size in stage.sizes], {}
    for number, (one, size) in enumerate(zip(stage.stages, stage.sizes, strict=True)):
        frames, height, width, _ = one.view.data_shape
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.data.update({"num_frames": frames, "image_size": height, "image_width": width})
            own.data.aspects = tuple(aspects) if config.data.native else ()
        dataset = pipeline.make_dataset(
            own,
            **common,
            seed=seed + number,  # else the clips of a row would be the same in all sizes
            reading=one.reading,
            batch_size=batch_size * size.clips,
            rows=rows_of(rows, size.clips),
            report=None if parts else report,
        )
        parts[size.name] = (dataset, size.clips)
    return MixedDataset(parts, packed=stage.packed, seed=seed)


class MixedDataset:
    """Endless batches {name of a size: its batch}, with arrays (rows, clips of a row, …).

    A packed batch has all sizes. Otherwise a batch has one size: each size has its turn in every
    round, in an order that is drawn for the round.
    """

    def __init__(self, parts: Mapping[str, tuple[ClipDataset, int]], *, packed: bool, seed: int):
        """parts: of each size the data, and the clips of it that a row holds."""
        self.parts, self.packed, self.seed = dict(parts), packed, seed

    @property
    def source(self) -> Any:
        """The source of the first size."""
        return next(iter(self.parts.values()))[0].source

    def __iter__(self) -> "MixedIterator":
        return MixedIterator(self)

    def size_of(self, batch: int) -> tuple[str, int]:
        """The size of a batch that has one, and the number of batches of that size before it."""
        names = list(self.parts)
        turn, place = divmod(batch, len(names))
        order = np.random.default_rng((self.seed, turn)).permutation(len(names))
        return names[order[place]], turn


class MixedIterator(Iterator[Batches]):
    """Iterates over a `MixedDataset`, with its position to be saved and restored."""

    def __init__(self, dataset: MixedDataset):
        self._dataset, self._given = dataset, 0
        self._iterators: dict[str, ClipIterator] = {
            name: iter(part) for name, (part, _) in dataset.parts.items()
        }

    def __next__(self) -> Batches:
        if self._dataset.packed:
            names = list(self._iterators)
        else:
            names = [self._dataset.size_of(self._given)[0]]
        found = {name: self._rows(name, next(self._iterators[name])) for name in names}
        self._given += 1
        return found

    def _rows(self, name: str, batch: Batch) -> Batch:
        clips = self._dataset.parts[name][1]
        return {key: leaf.reshape(-1, clips, *leaf.shape[1:]) for key, leaf in batch.items()}

    def get_state(self) -> dict[str, int]:
        """The position: how many batches were given."""
        return {"batches_given": self._given}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to a position of `get_state`; the next batch is the one that would have come."""
        self._given = int(state["batches_given"])
        given = dict.fromkeys(self._iterators, self._given)
        if not self._dataset.packed:
            rounds = self._given // len(given)
            given = dict.fromkeys(given, rounds)
            for batch in range(rounds * len(given), self._given):
                given[self._dataset.size_of(batch)[0]] += 1
        for name, iterator in self._iterators.items():
            iterator.set_state({"batches_given": given[name]})

    def close(self) -> None:
        """Stops reading ahead; the position stays."""
        for iterator in self._iterators.values():
            iterator.close()


def rows_of(rows: Sequence[int], clips: int) -> tuple[int, ...]:
    """The clips of rows, where all clips of a batch are counted row by row."""
    return tuple(row * clips + clip for row in rows for clip in range(clips))
