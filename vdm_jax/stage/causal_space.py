"""z of a causal video autoencoder, whose latents stand for groups of frames."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float, Key, PyTree

from vdm_jax.models import autoencoder_tiling as tiling
from vdm_jax.models.causal_autoencoder import CausalAutoencoder
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.space import AUTOENCODER, bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLatentSpace:
    """z is (latents - mean) / std of a frozen causal video autoencoder.

    The first frame of a video has a latent frame of its own, and every further group of
    `autoencoder.frame_factor` frames one more. The parameters are `frozen["autoencoder"]`.

    Attributes:
      data_shape: (f, h, w, c) of a video in pixels.
      autoencoder: its `at_once` says how many latent frames are computed at once.
      tile: height and width in latents of the tiles that are encoded and decoded one after the
        other (`autoencoder_tiling.tiled`); 0 = frames are not cut.
      tile_overlap: of neighbouring tiles, in latents.
    """

    data_shape: tuple[int, int, int, int]
    autoencoder: CausalAutoencoder
    tile: int = 0
    tile_overlap: int = 0
    pixels = False

    def __post_init__(self):
        self.autoencoder.check((1, *self.data_shape))
        if not 0 <= self.tile_overlap < max(self.tile, 1):
            raise ValueError(
                f"tile_overlap = {self.tile_overlap}: must be from 0 to {max(self.tile - 1, 0)}, "
                "below tile"
            )

    @property
    def multiple(self) -> int:
        return self.autoencoder.factor

    @property
    def z_shape(self) -> tuple[int, int, int, int]:
        return self.z_shape_for(self.data_shape)

    def z_shape_for(self, data_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """See `Space`. Raises ValueError."""
        return self.autoencoder.latent_shape(data_shape)

    def encode(
        self,
        video: Float[Array, "b f h w c"],
        frozen: Frozen,
        key: Key[Array, ""] | None = None,
        num_images: int = 0,
    ) -> Float[Array, "b f2 h2 w2 c2"]:
        """See `Space`. Raises ValueError where the parameters are missing, or for frames that make
        no whole latents."""
        if num_images:
            # An image is a clip of one frame.
            clip_key, image_key = (None, None) if key is None else jax.random.split(key)
            clip, images = video[:, :-num_images], video[:, -num_images:]
            singles = rearrange(images, "b k h w c -> (b k) 1 h w c")
            encoded = self.encode(singles, frozen, image_key)
            encoded = rearrange(encoded, "(b k) 1 h w c -> b k h w c", k=num_images)
            return jnp.concatenate([self.encode(clip, frozen, clip_key), encoded], axis=1)
        self.autoencoder.check(video.shape)
        run = bound(self.autoencoder, AUTOENCODER, frozen, "encode")
        posterior = self._cut(run, video, shrinks=self.multiple)
        latents = posterior.mode() if key is None else posterior.sample(key)
        return (latents - self.autoencoder.shift_factor) * self.autoencoder.scaling_factor

    def encode_mask(self, mask: Float[Array, "b f h w 1"]) -> Float[Array, "b f2 h2 w2 1"]:
        """See `Space`."""
        rows, frames = self.multiple, self.autoencoder.frame_factor
        small = reduce(mask, "b f (h p) (w q) 1 -> b f h w 1", "min", p=rows, q=rows)
        groups = rearrange(small[:, 1:], "b (f k) ... -> b f k ...", k=frames)
        return jnp.concatenate([small[:, :1], groups.min(axis=2)], axis=1)

    def decode(self, z: Float[Array, "b f2 h2 w2 c2"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """See `Space`. Raises ValueError where the parameters are missing."""
        latents = z / self.autoencoder.scaling_factor + self.autoencoder.shift_factor
        run = bound(self.autoencoder, AUTOENCODER, frozen, "decode")
        return self._cut(run, latents, grows=self.multiple)

    def preview(
        self, z: Float[Array, "b f2 h2 w2 c2"], frozen: Frozen
    ) -> Float[Array, "b f h w c"]:
        """See `Space`: the decoded z."""
        return self.decode(z, frozen)

    def _cut(self, function: tiling.Function, video: Array, **scale: int) -> PyTree:
        """`function(video)`, in tiles where the space has them."""
        if not self.tile:
            return function(video)
        sizes = {"tile": self.tile, "overlap": self.tile_overlap}
        return tiling.tiled(function, video, **sizes, **scale)
