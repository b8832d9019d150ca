"""Captions to the numbers of pieces of words, as published text encoders were trained with.

A tokeniser holds what it was made of, so that it can be sent to other processes, and a hash of it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


class WordPiece:
    """BERT's tokeniser from a `tokenizer.json`: [CLS], the pieces, [SEP]; padding is 0."""

    def __init__(self, text: str):
        """`text`: of the file. Raises ValueError where it is not such a file."""
        import tokenizers

        self._text = text
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # what the library raises has no type of its own
            raise ValueError(f"tokenizer.json cannot be read ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __reduce__(self) -> tuple[Any, ...]:
        return WordPiece, (self._text,)

    def encode(
        self, captions: Sequence[str], max_length: int, *, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 (n, max_length) and their mask bool. Captions that are too long are cut
        before [SEP]; with `strict` they raise ValueError."""
        encoded = self._tokenizer.encode_batch(list(captions))
        return _padded(captions, [one.ids for one in encoded], max_length, strict)


class SentencePiece:
    """T5's tokeniser from a `spiece.model`: the pieces, then </s>; padding is 0.

    Attributes:
      size: how many pieces there are.
    """

    END = 1

    def __init__(self, model: bytes):
        """`model`: of the file. Raises ValueError where it is not such a file."""
        try:
            import sentencepiece
        except ImportError as error:
            raise ValueError(
                "T5's tokeniser needs the library sentencepiece: pip install 'vdm_jax[text]'"
            ) from error
        self._model = model
        self.hash = hashlib.sha256(model).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"spiece.model cannot be read ({error})") from error
        self.size = self._processor.get_piece_size()
        if self._processor.eos_id() != self.END or self._processor.pad_id() != 0:
            raise ValueError(
                f"spiece.model: </s> is {self._processor.eos_id()} and padding "
                f"{self._processor.pad_id()}; T5 has </s> = {self.END} and padding = 0"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePiece, (self._model,)

    def encode(
        self, captions: Sequence[str], max_length: int, *, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 (n, max_length) and their mask bool. Captions that are too long are cut
        before </s>; with `strict` they raise ValueError."""
        ids = [[*self._processor.encode(caption), self.END] for caption in captions]
        return _padded(captions, ids, max_length, strict)


def _padded(
    captions: Sequence[str], ids: Sequence[list[int]], max_length: int, strict: bool
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((len(ids), max_length), np.int32)
    mask = np.zeros((len(ids), max_length), bool)
    for row, (caption, pieces) in enumerate(zip(captions, ids, strict=True)):
        if strict and len(pieces) > max_length:
            raise ValueError(
                f"prompt {caption!r}: {len(pieces)} tokens; at most text.max_length = {max_length} "
                "are allowed"
            )
        kept = pieces if len(pieces) <= max_length else [*pieces[: max_length - 1], pieces[-1]]
        tokens[row, : len(kept)] = kept
        mask[row, : len(kept)] = True
    return tokens, mask


def batches(
    mask: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, Callable[..., list[np.ndarray]]]]:
    """Rows of batches of tokens, sorted by length, and what cuts arrays to such a batch.

    A batch has the next power of two of its longest row's length, at least 8, and always
    `batch_size` rows, the last repeated, so that few programs are compiled.
    """
    lengths = mask.sum(-1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        longest = max(int(lengths[rows].max()), 8)
        length = min(1 << (longest - 1).bit_length(), mask.shape[1])
        padded = np.concatenate([rows, np.repeat(rows[-1:], batch_size - len(rows))])

        def cut(*arrays: np.ndarray, padded=padded, length=length) -> list[np.ndarray]:
            return [array[padded, :length] for array in arrays]

        yield rows, cut
