"""The structure of a video, its depth, of which a model is given more or less (Gen-1)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Key, UInt8

from vdm_jax.models.vision import resizing
from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.depth import DepthEstimator
from vdm_jax.stage.protocols import Cond, Encode, Encoding, Example, Shapes
from vdm_jax.stage.space import from_uint8

LEVELS = 8  # of structure: t_s from 0 to 7
# By how much a level's height and width are those of the level before; the paper does not give it.
_SHRINK = math.sqrt(0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure(Base):
    """The depth of a video, blurred and shrunk t_s times, encoded as a video is and concatenated to
    z (Esser et al. 2023, section 3.3).

    `Cond`: structure float (b, f, h, w, c), of z's shape; structure_level float (b,), t_s. It has
    no null: guidance keeps it.

    Attributes:
      shape: (f, h, w, c) of the video in pixels.
      z_shape: (f, h, w, c) of z.
      most: the highest t_s of training, which is drawn uniformly from 0 on.
      source: the batch's entry that holds the depth, uint8 (b, f, h, w, 1), near bright; of images
        "image_" + source.
      estimator: what estimates the depth of training's clips instead; None = `source` holds it.
    """

    name = "structure"
    mechanism = "channels"
    like_z = ("structure",)
    settings = ("structure",)

    shape: tuple[int, int, int, int]
    z_shape: tuple[int, int, int, int]
    most: int = LEVELS - 1
    source: str = "depth"
    estimator: DepthEstimator | None = None

    def __post_init__(self):
        if not 0 <= self.most < LEVELS:
            raise ValueError(f"most = {self.most}: must be from 0 to {LEVELS - 1}")

    @property
    def reach(self) -> None:
        """The depth is normalised and blurred over whole frames."""

    def batch_shapes(self, n: int, image_frames: int) -> Shapes:
        if self.estimator is not None:
            return {}
        frames, *size, _ = self.shape
        found = {self.source: shape(n, frames, *size, 1, dtype=jnp.uint8)}
        if image_frames:
            found[f"image_{self.source}"] = shape(n, image_frames, *size, 1, dtype=jnp.uint8)
        return found

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        frames, *rest = self.z_shape
        return {
            "structure": shape(n, frames + image_frames, *rest, dtype=jnp.float32),
            "structure_level": shape(n, dtype=jnp.float32),
        }

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        depth = self._depth(example)
        level = jax.random.randint(key, (len(depth),), 0, self.most + 1)
        return self._entries(depth, level, example.encode)

    def check(self, settings: Mapping[str, float]) -> None:
        level = settings.get("structure", 0.0)
        if level != int(level) or not 0 <= level <= self.most:
            raise ValueError(
                f"structure = {level:g}: must be a whole number from 0 to {self.most}, the levels "
                "that this model was trained with"
            )

    def input_shapes(self, n: int) -> Shapes:
        return {"structure": shape(n, *self.shape[:3], 1, dtype=jnp.uint8)}

    def encode(self, given: UInt8[np.ndarray, "n f h w 1"] | None, n: int) -> dict[str, Any]:
        if given is None:
            raise ValueError(
                "structure: this model follows the depth of a video, and none was given; use vdm "
                "edit restructure --input=VIDEO"
            )
        wanted = (*self.shape[:3], 1)
        if given.dtype != np.uint8 or given.shape[1:] != wanted:
            raise ValueError(
                f"structure: {given.dtype}{list(given.shape)} was given, this stage follows uint8 "
                f"[n, {', '.join(map(str, wanted))}]"
            )
        return {"structure": given}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        """The setting `structure` is t_s; the default is 0."""
        level = jnp.full(n, int(settings.get("structure", 0)))
        return self._entries(from_uint8(cond["structure"]), level, encode)

    def _depth(self, example: Example) -> Float[Array, "b f h w 1"]:
        """In [-1, 1], of the clips and then of their images."""
        if self.estimator is None:
            names = [self.source, *[f"image_{self.source}"] * bool(example.num_images)]
            if lacking := [name for name in names if name not in example.batch]:
                raise ValueError(
                    f"batch lacks {', '.join(lacking)}, the depth of its frames; set data.extras = "
                    f"('{self.source}',), or model.depth to the folder of an estimator"
                )
            read = [from_uint8(jnp.asarray(example.batch[name])) for name in names]
            return jnp.concatenate(read, axis=1)
        frozen = example.encode.frozen if isinstance(example.encode, Encoding) else {}
        depth = self.estimator(example.clip, frozen)
        if example.images is not None:
            # Each image has a nearest and a farthest point of its own.
            single = rearrange(example.images, "b k h w c -> (b k) 1 h w c")
            found = self.estimator(single, frozen)
            images = rearrange(found, "(b k) 1 h w c -> b k h w c", b=len(depth))
            depth = jnp.concatenate([depth, images], axis=1)
        return 2 * depth - 1

    def _entries(
        self, depth: Float[Array, "b f h w 1"], level: Int[Array, "b"], encode: Encode
    ) -> dict[str, Array]:
        coarse = coarsened(depth, level)
        grey = jnp.broadcast_to(coarse, (*coarse.shape[:-1], self.shape[-1]))
        return {"structure": encode(grey), "structure_level": level.astype(jnp.float32)}


def coarsened(
    depth: Float[Array, "b f h w c"], level: Int[Array, "b"]
) -> Float[Array, "b f h w c"]:
    """Videos blurred and shrunk `level` times, from 0 to 7, and enlarged to their size again.

    Each time a pixel becomes the mean of itself and its neighbours, by the weights 1/4, 1/2, 1/4
    along rows and columns, and both sides shrink by √2, with a pixel at least.
    """
    rows, columns = (jnp.asarray(_by_level(size))[level] for size in depth.shape[2:4])
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("bsh,brw,bfhwc->bfsrc", rows, columns, depth, precision=exact)


@functools.lru_cache(maxsize=16)
def _by_level(length: int) -> Float[np.ndarray, "levels {length} {length}"]:
    """The matrix of `coarsened` along one side, for each level."""
    found, so_far = [], np.eye(length)
    for level in range(LEVELS):
        if level:
            size = max(1, round(length * _SHRINK**level))
            so_far = resizing.matrix(len(so_far), size) @ _blur(len(so_far)) @ so_far
        found.append(resizing.matrix(len(so_far), length) @ so_far)
    return np.stack(found).astype(np.float32)


def _blur(length: int) -> Float[np.ndarray, "{length} {length}"]:
    """The mean of each pixel and its neighbours; the first and the last repeat beyond the ends."""
    found, place = np.zeros((length, length)), np.arange(length)
    for offset, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        np.add.at(found, (place, np.clip(place + offset, 0, length - 1)), weight)
    return found
