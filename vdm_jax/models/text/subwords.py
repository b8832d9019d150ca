"""Captions to the numbers of pieces of words, as published text encoders were trained with.

A tokeniser holds what it was made of, so that it can be sent to other processes, and a hash of it.
"""

import hashlib
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class WordPiece:
    """BERT's tokeniser from a `tokenizer.json`: [CLS], the pieces, [SEP]; padding is 0."""

    def __init__(self, text: str):
        """`text`: of the file. Raises ValueError where it is not such a file."""
        self._text = text
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        self._tokenizer = _from_json(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._text,)

    def encode(
        self, captions: Sequence[str], max_length: int, *, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 (n, max_length) and their mask bool. Captions that are too long are cut
        before [SEP]; with `strict` they raise ValueError."""
        encoded = self._tokenizer.encode_batch(list(captions))
        return _padded(captions, [one.ids for one in encoded], max_length, strict)


def _from_json(text: str) -> Any:
    """A tokeniser of the library tokenizers. Raises ValueError."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # what the library raises has no type of its own
        raise ValueError(f"tokenizer.json cannot be read ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Unigram(WordPiece):
    """T5's tokeniser from a `tokenizer.json`: the pieces, then </s>; padding is 0.

    Attributes:
      size: how many pieces there are.
    """

    END = 1

    def __init__(self, text: str):
        """`text`: of the file. Raises ValueError where it is not such a file."""
        super().__init__(text)
        self.size = self._tokenizer.get_vocab_size()
        ids, padding = self._tokenizer.encode("").ids, self._tokenizer.token_to_id("<pad>")
        if ids != [self.END] or padding != 0:
            raise ValueError(
                f"tokenizer.json: an empty text is {ids} and <pad> {padding}; T5 has "
                f"{[self.END]} and 0"
            )

    @classmethod
    def read(cls, path: Path) -> "Unigram":
        """The tokeniser of a file. Raises ValueError."""
        return cls(path.read_text(encoding="utf-8"))


class SentencePiece:
    """T5's tokeniser from a `spiece.model`: the pieces, then </s>; padding is 0.

    Attributes:
      size: how many pieces there are.
    """

    END = 1

    @classmethod
    def read(cls, path: Path) -> "SentencePiece":
        """The tokeniser of a file. Raises ValueError."""
        return cls(path.read_bytes())

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


class BytePairs:
    """CLIP's tokeniser (Radford et al. 2021, section 2.4): the start, the pieces, the end, padding.

    Text is put into Unicode's normal form C, letters become small, and white space only separates
    words. Words are encoded by byte pairs (Sennrich et al. 2016) over bytes. HTML entities and
    broken encodings stay as they are, as in the published tokeniser without the library ftfy.
    """

    START, END = "<|startoftext|>", "<|endoftext|>"
    _WORDS = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        padding: str = END,
    ):
        """The number of each piece, and the pairs that are merged, the first ones first.

        padding: the piece that fills a text up: `END` for Stable Diffusion 1, "!" for 2. As in the
        published tokeniser, it is read as this piece where a text has it. Raises ValueError where
        a piece is missing.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

        for piece in (self.START, self.END, padding):
            if piece not in vocabulary:
                raise ValueError(f"the vocabulary lacks {piece}")
        self._parts = (dict(vocabulary), [tuple(pair) for pair in merges], padding)
        self.hash = hashlib.sha256(json.dumps(self._parts, sort_keys=True).encode()).hexdigest()
        self.size = max(vocabulary.values()) + 1
        self._start, self._end, self._padding = (
            vocabulary[piece] for piece in (self.START, self.END, padding)
        )
        try:
            model = models.BPE(
                *self._parts[:2], unk_token=self.END, end_of_word_suffix="</w>", fuse_unk=False
            )
        except Exception as error:  # what the library raises has no type of its own
            raise ValueError(f"vocabulary and merges do not fit ({error})") from error
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(self._WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        special = dict.fromkeys((self.START, self.END, padding))
        self._tokenizer.add_special_tokens(
            [AddedToken(piece, special=True, normalized=False) for piece in special]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return BytePairs, self._parts

    def encode(
        self, captions: Sequence[str], max_length: int, *, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 (n, max_length), and a mask that is True everywhere: padding is part of the
        text. Captions that are too long are cut before the end; with `strict` they raise
        ValueError."""
        encoded = self._tokenizer.encode_batch(list(captions))
        ids = [[self._start, *one.ids, self._end] for one in encoded]
        tokens, mask = _padded(captions, ids, max_length, strict, self._padding)
        return tokens, np.ones_like(mask)


def plain(text: str) -> str:
    """The text with HTML entities replaced, white space as single spaces, and none at its ends.

    Wan's prompts are cleaned so. Its published code also repairs broken encodings.
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def _padded(
    captions: Sequence[str],
    ids: Sequence[list[int]],
    max_length: int,
    strict: bool,
    padding: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(ids), max_length), padding, np.int32)
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
