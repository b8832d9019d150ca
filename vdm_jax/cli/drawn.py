"""Samples on disk while they are drawn: OUT/samples_parts/IDENTITY.npy, a file a sample.

A sample's file is named by what it depends on, so any command that wants the same sample in the
same folder takes it from there, or from the samples.npz of a command that finished.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdm_jax.cli import outputs

_NAME = 32  # letters of an identity in a file's name


class Drawn:
    """The samples of one command that are there.

    Attributes:
      finished: numbers of the samples that an earlier command finished, in its samples.npz.
    """

    def __init__(self, out: Path, identities: Sequence[str]):
        """identities: of all samples of the command (`requests.identities`)."""
        self._folder = out / outputs.PARTS
        self._identities = list(identities)
        self._kept: dict[int, np.ndarray] = {}
        archive = out / "samples.npz"
        if archive.is_file():
            self._take(archive)
        self.finished = sorted(self._kept)
        for index in range(len(self._identities)):
            if index not in self._kept and (sample := self._read(index)) is not None:
                self._kept[index] = sample

    @property
    def done(self) -> list[int]:
        """The numbers of the samples that are there."""
        return sorted(self._kept)

    def add(self, indices: Sequence[int], videos: np.ndarray) -> None:
        """Writes samples, `n f h w c`. Raises OutputError, saying what is there."""
        for index, video in zip(indices, videos, strict=True):
            encoded = io.BytesIO()
            np.save(encoded, video[None], allow_pickle=False)
            path = self._path(index)
            try:
                outputs.replace(path, encoded.getvalue())
            except OSError as error:
                raise outputs.OutputError(
                    f"{path} could not be written: {outputs.plain(error)}. {len(self._kept)} of "
                    f"{len(self._identities)} samples are in {self._folder}; the same command "
                    "goes on behind them"
                ) from error
            self._kept[index] = np.load(path, mmap_mode="r")[0]

    def videos(self) -> np.ndarray:
        """All samples, uint8 `n f h w c`, in the order of the command."""
        return np.stack([self._kept[index] for index in range(len(self._identities))])

    def remove(self) -> None:
        """Deletes the files of these samples, once they are elsewhere."""
        for index in range(len(self._identities)):
            self._path(index).unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._identities[index][:_NAME]}.npy"

    def _read(self, index: int) -> np.ndarray | None:
        try:
            part = np.load(self._path(index), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # not there, or the machine stopped while it was written
            return None
        return part[0] if part.ndim == 5 and len(part) == 1 else None

    def _take(self, archive: Path) -> None:
        """Takes the samples of an earlier command that are wanted now."""
        try:
            with np.load(archive, allow_pickle=False) as arrays:
                if "identities" not in arrays:
                    return
                there = {str(name): at for at, name in enumerate(arrays["identities"])}
                if not there.keys() & {*self._identities}:
                    return
                videos = arrays["video"]
        except (OSError, ValueError, KeyError):  # damaged: all is drawn again
            return
        for index, identity in enumerate(self._identities):
            if (at := there.get(identity)) is not None and at < len(videos):
                self._kept[index] = videos[at]
