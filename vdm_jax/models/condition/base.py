"""What all conditions share: the mapping they are read from, and the protocol of an embedder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers

Cond = Mapping[str, ArrayLike | jax.ShapeDtypeStruct]
"""The condition of a batch of b clips, each with k appended images. A network needs the keys that
its embedders and channel conditions read:

- tokens int32 (b, l) or text_embeddings float (b, l, width), and token_mask bool (b, l): the text,
  as numbers of words or as states of a frozen text encoder;
- label int32 (b,): the class;
- image_tokens (b, k, l) or image_text_embeddings (b, k, l, width), image_token_mask (b, k, l),
  image_label (b, k): the same for the images;
- keep_text, keep_label bool (b,): False where that condition is replaced by its null condition;
  all are kept if it is absent;
- guidance float (b,): the scale of classifier-free guidance that a distilled network imitates;
- low_res float (b, f, h, w, c): a coarser version of the video, noised, in z's shape, and
  low_res_logsnr float (b,): the log-SNR of that noise;
- low_res_residual float (b, f, h, w, 1): its distance from the video, for stages that need it;
- masked_video float (b, f, h, w, c) and mask float (b, f, h, w, 1): the known part of the video,
  and 1 where it is known; nothing is known if they are absent;
- fps float (b,): frames a second;
- structure float (b, f, h, w, c), of z's shape: the depth of a video, and structure_level float
  (b,): how often it was blurred and shrunk;
- HINT float (b, f, h2, w2, c) in [0, 1], of a name of the system's own, such as "edges": what a
  ControlNet takes, and keep_HINT bool (b,): False where it adds nothing.
"""


@runtime_checkable
class EmbeddingModule(Protocol):
    """The linen module in which embedders make their parameters: a `ConditionEmbedding`."""

    dim: int
    dtype: DTypeLike

    def param(self, name: str, init: Any, shape: tuple[int, ...]) -> Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What embedders read.

    Attributes:
      cond: the condition, and "logsnr" (b,).
      frames: frames of a clip, then `num_images` images.
    """

    cond: Cond
    frames: int
    num_images: int

    def items(self, key: str) -> Array:
        """`cond[key]` of the clip and `cond[image_key]` of its images along axis 1."""
        names = [key] + ([f"image_{key}"] if self.num_images else [])
        clip, *images = (jnp.asarray(value) for value in require(self.cond, *names))
        return jnp.concatenate([clip[:, None], *images], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """What an embedder returns.

    Attributes:
      vector: is added to the condition's vectors. It has one row for each item, that is the clip
        and its images, or one row for all of them. An embedder with `PER_FRAME` returns a row for
        each frame of the clip and for each image.
      tokens, mask: what pixels can attend to; None for most embedders.
    """

    vector: Float[Array, "#b rows dim"]
    tokens: Float[Array, "b items l width"] | None = None
    mask: Bool[Array, "b items l"] | None = None


@runtime_checkable
class Embedder(Protocol):
    """Embeds one condition. A new condition is a new class with this protocol.

    An embedder is a frozen dataclass. It makes its parameters in the module that it is given, so
    its names for them must differ from those of other embedders. `keys` are the keys of the
    condition that it reads.
    """

    PER_FRAME: ClassVar[bool]

    @property
    def keys(self) -> tuple[str, ...]: ...

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded: ...


def require(cond: Cond, *keys: str) -> list[Any]:
    """The values of `keys`. Raises ValueError naming those that `cond` lacks."""
    missing = [key for key in keys if key not in cond]
    if missing:
        raise ValueError(f"cond lacks {', '.join(missing)}; it has: {', '.join(cond) or 'nothing'}")
    return [cond[key] for key in keys]


def mlp(
    module: EmbeddingModule, name: str, h: Float[Array, "*b d"], *, zero: bool = False
) -> Float[Array, "*b dim"]:
    """Two linear maps with a swish between them. zero: the second starts at zero."""
    first, second = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
    h = layers.dense(module.dim, dtype=module.dtype, axes=first, name=f"{name}_in")(h)
    last = layers.dense(module.dim, dtype=module.dtype, zero=zero, axes=second, name=f"{name}_out")
    return last(nn.swish(h))


def lookup(module: EmbeddingModule, size: int, name: str) -> nn.Embed:
    """A table of `size` learned vectors."""
    normal = nn.initializers.normal(1.0)
    init = layers.named(normal, layers.VOCAB, layers.OUT, dtype=module.dtype)
    return layers.Embed(size, module.dim, embedding_init=init, dtype=module.dtype, name=name)


def or_null(
    module: EmbeddingModule, value: Float[Array, "b *n dim"], inputs: Inputs, name: str
) -> Float[Array, "b *n dim"]:
    """`value`, and a learned null vector where `cond["keep_NAME"]` is False."""
    init = layers.named(nn.initializers.normal(1.0), layers.CHANNELS)
    null = module.param(f"null_{name}", init, (module.dim,)).astype(value.dtype)
    keep = jnp.asarray(inputs.cond.get(f"keep_{name}", jnp.ones(value.shape[0], bool)))
    return jnp.where(jnp.expand_dims(keep, range(1, value.ndim)), value, null)
