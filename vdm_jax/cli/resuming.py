"""A sampler whose videos are on disk while a job goes on, so that a killed job can be resumed."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Key, PyTree, UInt8

from vdm_jax.cli.outputs import Parts
from vdm_jax.stage.sampler import Callback, Known, Preview, Sampler, Start
from vdm_jax.training import processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptSampler(Sampler):
    """A sampler that writes every batch to disk, and first returns the batches of an earlier run.

    A job calls `stream` in the same order whenever it is run. The videos on disk are therefore
    those of its first calls, and of the beginning of one more.

    Attributes:
      parts: where the videos are; None in processes other than the first, which get the first's.
    """

    parts: Parts | None

    @classmethod
    def of(cls, sampler: Sampler, parts: Parts | None) -> Self:
        """The same sampler, with the same compiled functions, whose videos are in `parts`."""
        fields = {field.name: getattr(sampler, field.name) for field in dataclasses.fields(sampler)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever made `sampler` was warned
            kept = cls(**fields, parts=parts)
        # What is compiled for either need not be compiled for the other.
        vars(kept).update(compiled=sampler.compiled, reporting=sampler.reporting)
        return kept

    def stream(
        self,
        params: PyTree,
        key: Key[Array, ""],
        prompts: Sequence[str],
        callback: Callback | None = None,
        known: Known | None = None,
        preview: Preview | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        start: Start | None = None,
        first: int = 0,
    ) -> Iterator[UInt8[np.ndarray, "n f h w c"]]:
        """See `Sampler.stream`. Raises OutputError too."""
        done = 0
        for videos in self._replayed(len(prompts)):
            done += len(videos)
            yield videos
        if done == len(prompts):
            return
        known, start, inputs = jax.tree.map(lambda leaf: leaf[done:], (known, start, inputs))
        for videos in super().stream(
            params,
            key,
            prompts[done:],
            callback,
            known,
            preview,
            inputs=inputs,
            start=start,
            first=first + done,
        ):
            if self.parts is not None:
                self.parts.add(videos)
            yield videos

    def _replayed(self, count: int) -> Iterator[UInt8[np.ndarray, "n f h w c"]]:
        """The samples of an earlier run that this call would draw first, in every process."""
        mine = [] if self.parts is None else self.parts.replay(count)
        if jax.process_count() == 1:
            yield from mine
            return
        for number in range(processes.first_does(lambda: len(mine))):
            shape = processes.first_does(lambda at=number: list(mine[at].shape))
            here = mine[number] if processes.is_first() else np.zeros(shape, np.uint8)
            yield np.asarray(multihost_utils.broadcast_one_to_all(here))
