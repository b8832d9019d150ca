"""What z is. Training and sampling know no other way from clips to z and back."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float, Key, PyTree, UInt8

from vdm_jax.models import autoencoder_tiling as tiling
from vdm_jax.stage.protocols import Frozen

AUTOENCODER, PREVIEWER = "autoencoder", "previewer"  # the names of their parameters in `Frozen`


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSpace:
    """z is the video itself.

    Attributes:
      data_shape: (f, h, w, c) of a video, and of z.
    """

    data_shape: tuple[int, int, int, int]
    pixels = True
    multiple = 1

    @property
    def z_shape(self) -> tuple[int, int, int, int]:
        return self.data_shape

    def z_shape_for(self, data_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """See `Space`."""
        frames, height, width, channels = data_shape
        return frames, height, width, channels

    def encode(
        self,
        video: Float[Array, "b f h w c"],
        frozen: Frozen,
        key: Key[Array, ""] | None = None,
        num_images: int = 0,
    ) -> Float[Array, "b f h w c"]:
        """See `Space`."""
        return video

    def encode_mask(self, mask: Float[Array, "b f h w 1"]) -> Float[Array, "b f h w 1"]:
        """See `Space`."""
        return mask

    def decode(self, z: Float[Array, "b f h w c"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """See `Space`."""
        return z

    def preview(self, z: Float[Array, "b f h w c"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """See `Space`."""
        return z


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """z is (latents − shift) · scale of a frozen autoencoder, each frame an image of its own.

    Its parameters are `frozen["autoencoder"]`, those of a `previewer` `frozen["previewer"]`.

    Attributes:
      data_shape: (f, h, w, c) of a video in pixels.
      autoencoder: a linen module with the methods and properties of `models.autoencoder`.
      encode_frames, decode_frames: of each video how many frames are encoded, and decoded, at once.
      decode_overlap: frames that are decoded with both of two neighbouring chunks, for autoencoders
        whose decoder mixes frames (`autoencoder_tiling.in_chunks`).
      tile: height and width in latents of the tiles that are encoded and decoded one after the
        other (`autoencoder_tiling.tiled`); 0 = frames are not cut.
      tile_overlap: of neighbouring tiles, in latents.
      previewer: a small autoencoder of the same z, such as `AutoencoderTiny`, by which previews are
        decoded; None = `autoencoder`.
    """

    data_shape: tuple[int, int, int, int]
    autoencoder: Any
    encode_frames: int = 8
    decode_frames: int = 8
    decode_overlap: int = 0
    tile: int = 0
    tile_overlap: int = 0
    previewer: Any = None
    pixels = False

    def __post_init__(self):
        _, height, width, channels = self.data_shape
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"videos of {height} x {width} pixels: must be multiples of {self.multiple}, the "
                "autoencoder's factor"
            )
        if channels != self.autoencoder.in_channels:
            raise ValueError(
                f"videos of {channels} channels: the autoencoder has {self.autoencoder.in_channels}"
            )
        for name in ("encode_frames", "decode_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        most = self.decode_frames - 1 if self.autoencoder.frame_reach else 0
        if not 0 <= self.decode_overlap <= most:
            reason = "below decode_frames" if most else "this autoencoder decodes each frame alone"
            raise ValueError(
                f"decode_overlap = {self.decode_overlap}: must be from 0 to {most}, {reason}"
            )
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
        """See `Space`."""
        frames, height, width, _ = data_shape
        factor = self.multiple
        return (frames, height // factor, width // factor, self.autoencoder.latent_channels)

    def encode(
        self,
        video: Float[Array, "b f h w c"],
        frozen: Frozen,
        key: Key[Array, ""] | None = None,
        num_images: int = 0,
    ) -> Float[Array, "b f2 h2 w2 c2"]:
        """See `Space`. Raises ValueError where the parameters are missing."""
        run = _over_frames(self.autoencoder, AUTOENCODER, frozen, "encode")
        posterior = tiling.in_slices(
            lambda frames: self._cut(run, frames, shrinks=self.multiple), video, self.encode_frames
        )
        latents = posterior.mode() if key is None else posterior.sample(key)
        return (latents - self.autoencoder.shift_factor) * self.autoencoder.scaling_factor

    def encode_mask(self, mask: Float[Array, "b f h w 1"]) -> Float[Array, "b f2 h2 w2 1"]:
        """See `Space`."""
        p = self.multiple
        return reduce(mask, "b f (h p) (w q) 1 -> b f h w 1", "min", p=p, q=p)

    def decode(self, z: Float[Array, "b f2 h2 w2 c2"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """See `Space`. Raises ValueError where the parameters are missing."""
        latents = _latents(self.autoencoder, z)
        run = _over_frames(self.autoencoder, AUTOENCODER, frozen, "decode")

        def decode(part: Array) -> Array:
            return self._cut(run, part, grows=self.multiple)

        if not (reach := self.autoencoder.frame_reach):
            return tiling.in_slices(decode, latents, self.decode_frames)
        overlap = self.decode_overlap
        return tiling.in_chunks(
            decode, latents, at_once=self.decode_frames, overlap=overlap, reach=reach
        )

    def preview(
        self, z: Float[Array, "b f2 h2 w2 c2"], frozen: Frozen
    ) -> Float[Array, "b f3 h3 w3 c"]:
        """See `Space`. Raises ValueError where the parameters are missing."""
        if self.previewer is None:
            return self.decode(z, frozen)
        run = _over_frames(self.previewer, PREVIEWER, frozen, "decode")
        return tiling.in_slices(run, _latents(self.previewer, z), self.decode_frames)

    def _cut(self, function: tiling.Function, video: Array, **scale: int) -> PyTree:
        """`function(video)`, in tiles where the space has them."""
        if not self.tile:
            return function(video)
        sizes = {"tile": self.tile, "overlap": self.tile_overlap}
        return tiling.tiled(function, video, **sizes, **scale)


def _latents(autoencoder: Any, z: Array) -> Array:
    return z / autoencoder.scaling_factor + autoencoder.shift_factor


def bound(autoencoder: Any, name: str, frozen: Frozen, method: str) -> Callable[..., PyTree]:
    """A method of an autoencoder with its parameters, `frozen[name]`. Raises ValueError."""
    if name not in frozen:
        raise ValueError(
            f"frozen: lacks {name!r}, the parameters of this stage's space; it has: "
            f"{', '.join(sorted(frozen)) or 'none'}"
        )
    return functools.partial(autoencoder.apply, {"params": frozen[name]}, method=method)


def _over_frames(autoencoder: Any, name: str, frozen: Frozen, method: str) -> tiling.Function:
    """An image autoencoder's method as a function of videos. Raises ValueError."""
    apply = bound(autoencoder, name, frozen, method)

    def run(video: Array) -> PyTree:
        frames = video.shape[1]
        folded = rearrange(video, "b f h w c -> (b f) h w c")
        result = apply(folded, *((frames,) if method == "decode" else ()))
        return jax.tree.map(lambda leaf: rearrange(leaf, "(b f) ... -> b f ...", f=frames), result)

    return run


def from_uint8(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to [-1, 1], float32."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] to 0..255; values outside are clipped."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
