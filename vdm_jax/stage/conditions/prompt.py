"""What a prompt says: text, or the number of a class. Guidance replaces it by a null condition."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vdm_jax.models.text.words import NULL, TextEncoder
from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.protocols import Cond, Example, Shapes

NEGATIVE = "negative"
"""The entry of `Cond` that holds what guidance leads away from, in the place of the null."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(Base, abc.ABC):
    """A condition of prompts with a learned null, and what text and labels have in common.

    `cond["keep_NAME"]` bool (b,) is False where the network puts its null condition.

    Attributes:
      drop: chance of the null condition in training.
    """

    drop: float = 0.1

    @property
    def dropout(self) -> float:
        return self.drop

    @property
    def keep(self) -> str:
        """The key of `Cond` that is False where the condition is dropped."""
        return f"keep_{self.name}"

    @abc.abstractmethod
    def rows(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The entries of `Cond` of prompts, without `keep`. Raises ValueError."""

    def batch_shapes(self, n: int, image_frames: int) -> Shapes:
        found = {}
        for key, leaf in self._row().items():
            found[key] = shape(n, *leaf.shape[1:], dtype=leaf.dtype)
            if image_frames:
                images = shape(n, image_frames, *leaf.shape[1:], dtype=leaf.dtype)
                found[f"image_{key}"] = images
        return found

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        return {**self.batch_shapes(n, image_frames), self.keep: shape(n, dtype=bool)}

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        wanted = self.batch_shapes(1, example.num_images)
        if missing := [name for name in wanted if name not in example.batch]:
            raise ValueError(
                f"batch lacks {', '.join(missing)}; it has: {', '.join(example.batch)}"
            )
        keep = jnp.ones(len(example.clip), bool)
        if self.drop:
            keep = jax.random.bernoulli(key, 1 - self.drop, keep.shape)
        return {**{name: example.batch[name] for name in wanted}, self.keep: keep}

    def input_shapes(self, n: int) -> Shapes:
        return self.cond_shapes(n, 0)

    def encode(self, given: Any, n: int) -> dict[str, Any]:
        prompts, negatives = given
        found = {**self.rows(prompts), self.keep: np.ones(n, bool)}
        if negatives is not None:
            found[NEGATIVE] = {**self.rows(negatives), self.keep: np.ones(n, bool)}
        return found

    def null(self, cond: Cond) -> Cond:
        if NEGATIVE in cond:
            return {**cond, **cond[NEGATIVE]}
        return {**cond, self.keep: jnp.zeros_like(cond[self.keep])}

    @abc.abstractmethod
    def _row(self) -> dict[str, np.ndarray]:
        """The entries of `Cond` of one example, for their shapes. Reads no weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Prompt):
    """Text, as the numbers of words or as the states of a frozen text encoder.

    `Cond`: tokens int32 (b, l) or text_embeddings (b, l, d), and token_mask bool (b, l); those of
    images beside a clip as image_tokens (b, k, l) and so on.
    """

    name = "text"
    mechanism = "tokens"

    encoder: TextEncoder

    def rows(self, prompts: Sequence[str]) -> dict[str, Any]:
        return dict(self.encoder.encode(prompts, strict=True))

    def _row(self) -> dict[str, np.ndarray]:
        return {key: np.asarray(leaf) for key, leaf in self.encoder.example().items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOrNull(Text):
    """Text whose null condition is a text too, `encoder.null_text`. In Stable Diffusion (Rombach et
    al. 2022) it is the empty text.

    The network learns no null and `Cond` has no keep_text: dropped text is replaced by the null's
    states. A training batch has these as null_text_embeddings and null_token_mask, a row an
    example.
    """

    def __post_init__(self):
        if self.encoder.null_text is None:
            raise ValueError("text: this encoder has no text that stands for no text; use Text")

    def batch_shapes(self, n: int, image_frames: int) -> Shapes:
        found = super().batch_shapes(n, image_frames)
        null = {f"{NULL}{key}": found[key] for key in self._row()}
        return {**found, **null}

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        return super().batch_shapes(n, image_frames)

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        entries = super().example(example, key)
        keep = entries.pop(self.keep)
        null = {key: jnp.asarray(entries.pop(f"{NULL}{key}")) for key in self._row()}
        for key, value in list(null.items()):
            if example.num_images:
                images = entries[f"image_{key}"]
                null[f"image_{key}"] = jnp.broadcast_to(value[:, None], images.shape)
        found = {key: jnp.where(_like(keep, null[key]), entries[key], null[key]) for key in entries}
        return {**found, NEGATIVE: null}

    def input_shapes(self, n: int) -> Shapes:
        shapes = self.cond_shapes(n, 0)
        return {**shapes, NEGATIVE: shapes}

    def encode(self, given: Any, n: int) -> dict[str, Any]:
        prompts, negatives = given
        null = [self.encoder.null_text] * n if negatives is None else negatives
        return {**self.rows(prompts), NEGATIVE: self.rows(null)}

    def null(self, cond: Cond) -> Cond:
        return {**cond, **cond[NEGATIVE]}


def _like(keep: Array, value: Array) -> Array:
    return jnp.expand_dims(keep, range(1, value.ndim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(Prompt):
    """A class, written as its number: `cond["label"]` int32 (b,), image_label (b, k)."""

    name = "label"
    mechanism = "vector"

    count: int

    def rows(self, prompts: Sequence[str]) -> dict[str, Any]:
        return {"label": np.array([self._number(prompt) for prompt in prompts])}

    def _number(self, prompt: str) -> np.int32:
        if not prompt.isdecimal() or int(prompt) >= self.count:
            raise ValueError(f"prompt {prompt!r}: this model knows classes, 0 to {self.count - 1}")
        return np.int32(prompt)

    def _row(self) -> dict[str, np.ndarray]:
        return {"label": np.zeros(1, np.int32)}
