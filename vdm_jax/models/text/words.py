"""Text on the host: captions to what a network takes.

A `TextEncoder` is what data pipelines and samplers call. The small word-level one gives token ids,
which the network embeds itself, and serves the embedded data sets; those of `frozen_text.py` give
embeddings.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

PAD, UNKNOWN = "<pad>", "<unk>"
NULL = "null_"
"""Before the names of a batch's entries of `TextEncoder.null_text`."""


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to what a network takes as its text condition, on the host.

    Attributes:
      max_length: tokens of a caption.
      vocab_size: of token ids; 0 where embeddings are given.
      embedding_width: of embeddings; 0 where token ids are given.
      null_text: the text that stands for no text; None = the network learns what stands for it.
    """

    max_length: int
    vocab_size: int
    embedding_width: int
    null_text: str | None

    def encode(self, captions: Sequence[str], *, strict: bool = False) -> dict[str, np.ndarray]:
        """`tokens` int32 (n, max_length), or `text_embeddings` float (n, max_length,
        embedding_width), and `token_mask` bool (n, max_length).

        With `strict`, a caption that cannot be represented raises ValueError.
        """

    def example(self) -> dict[str, np.ndarray]:
        """Something of the shapes and types of `encode` of one caption, at no cost."""


class WordEncoder:
    """One token a word, from a fixed vocabulary.

    `vocabulary_size` is the most words the vocabulary may have: it fixes the size of the
    network's table, whatever words the data turns out to hold.
    """

    embedding_width = 0
    null_text = None

    def __init__(self, words: Iterable[str], *, max_length: int, vocabulary_size: int):
        self.words = tuple(words)
        self.max_length = max_length
        self.vocab_size = vocabulary_size + 2
        self._ids = {word: i for i, word in enumerate((PAD, UNKNOWN, *self.words))}
        if len(self._ids) != len(self.words) + 2:
            raise ValueError("text.vocabulary: words must be distinct and not <pad> or <unk>")
        if len(self.words) > vocabulary_size:
            raise ValueError(
                f"text.vocabulary_size = {vocabulary_size}: text.vocabulary has "
                f"{len(self.words)} words"
            )

    @classmethod
    def from_texts(
        cls, captions: Iterable[str], *, max_length: int, vocabulary_size: int
    ) -> "WordEncoder":
        """The encoder of the most frequent words of `captions` (ties in alphabetical order)."""
        counts = collections.Counter(word for text in captions for word in split_words(text))
        words = sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary_size]
        return cls(words, max_length=max_length, vocabulary_size=vocabulary_size)

    def encode(self, captions: Sequence[str], *, strict: bool = False) -> dict[str, np.ndarray]:
        """See `TextEncoder`. Without `strict` unknown words become `<unk>` and long captions
        are cut; with it both raise ValueError, naming the word or the length."""
        tokens = np.zeros((len(captions), self.max_length), np.int32)
        mask = np.zeros((len(captions), self.max_length), bool)
        for row, caption in enumerate(captions):
            words = split_words(caption)
            if strict:
                self._check(caption, words)
            ids = [self._ids.get(word, 1) for word in words][: self.max_length]
            tokens[row, : len(ids)] = ids
            # An empty caption still attends to one (padding) token: attention over no token at
            # all is undefined.
            mask[row, : max(len(ids), 1)] = True
        return {"tokens": tokens, "token_mask": mask}

    def example(self) -> dict[str, np.ndarray]:
        """See `TextEncoder`."""
        return self.encode([""])

    def losses(self, captions: Iterable[str]) -> str:
        """What `encode` loses of these captions, a sentence for each kind; "" = nothing."""
        longest, cut, unknown, count = 0, 0, collections.Counter(), 0
        for caption in captions:
            words = split_words(caption)
            count, longest = count + 1, max(longest, len(words))
            cut += len(words) > self.max_length
            unknown.update(word for word in words if word not in self._ids)
        lines = []
        if cut:
            lines.append(
                f"{cut} of {count} captions are longer than text.max_length = {self.max_length} "
                f"words and are cut (the longest has {longest})"
            )
        if unknown:
            common = ", ".join(word for word, _ in unknown.most_common(5))
            lines.append(
                f"{len(unknown)} words of the captions are not in the vocabulary "
                f"(text.vocabulary_size = {self.vocab_size - 2}), and are all learned as one: "
                f"{common}"
            )
        return "; ".join(lines)

    def _check(self, caption: str, words: list[str]) -> None:
        for word in words:
            if word not in self._ids:
                raise ValueError(
                    f"prompt {caption!r}: the model does not know the word {word!r}; "
                    f"it knows: {', '.join(self.words)}"
                )
        if len(words) > self.max_length:
            raise ValueError(
                f"prompt {caption!r}: {len(words)} words; at most text.max_length = "
                f"{self.max_length} are allowed"
            )


def split_words(caption: str) -> list[str]:
    """The lower-case words of a caption, without punctuation."""
    return re.findall(r"[\w']+", caption.lower())
