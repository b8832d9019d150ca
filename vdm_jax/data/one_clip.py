"""Batches that all hold the same clip, for tuning a model on it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vdm_jax.models.text.words import NULL, TextEncoder

Batch = dict[str, np.ndarray]


class OneClip:
    """Endless batches of one clip and its prompt, as `pipeline.ClipDataset` makes them.

    Attributes:
      batch: what each of them is.
    """

    def __init__(self, video: np.ndarray, prompt: str, text_encoder: TextEncoder):
        """video: uint8 f h w c. Raises ValueError for a prompt that the encoder would cut, and as
        the encoder does."""
        texts = {"": [prompt]}
        if text_encoder.null_text is not None:
            texts[NULL] = [text_encoder.null_text]
        self.batch: Batch = {"video": np.asarray(video)[None]}
        for prefix, text in texts.items():
            encoded = text_encoder.encode(text, strict=True)
            self.batch |= {f"{prefix}{name}": np.asarray(leaf) for name, leaf in encoded.items()}

    def __iter__(self) -> "OneClipIterator":
        return OneClipIterator(self.batch)


class OneClipIterator(Iterator[Batch]):
    """The batches; their number is the position, to be saved and restored."""

    def __init__(self, batch: Batch):
        self._batch, self._given = batch, 0

    def __next__(self) -> Batch:
        self._given += 1
        return dict(self._batch)

    def get_state(self) -> dict[str, Any]:
        return {"batches_given": self._given}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._given = int(state["batches_given"])
