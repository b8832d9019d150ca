"""What callers of a model or a cascade give, checked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_prompts(prompt: Any, prompts: Any, num_samples: Any) -> list[str]:
    """The prompt of each sample, in order. Raises ValueError."""
    if (prompt is None) == (prompts is None):
        raise ValueError("give either prompt (one text) or prompts (a list of texts)")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples = {num_samples!r}: must be an integer of at least 1")
    if prompts is None and not isinstance(prompt, str):
        raise ValueError(f"prompt = {prompt!r}: must be one text; a list of texts is prompts")
    texts = [prompt] if prompts is None else prompts
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts = {texts!r}: must be a list of one text or more")
    return [text for text in texts for _ in range(num_samples)]


def check_key(key: Any) -> None:
    """Raises ValueError where `key` is not one key of JAX."""
    is_new = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    is_old = isinstance(key, jax.Array) and key.dtype == np.uint32 and key.ndim == 1
    if not (is_old or (is_new and key.ndim == 0)):
        shown = repr(key) if isinstance(key, int) else type(key).__name__
        raise ValueError(f"key = {shown}: must be one key of JAX, such as jax.random.key(0)")
