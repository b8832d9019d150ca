"""A diffusion transformer on the spacetime patches of a clip (Peebles & Xie 2022; Brooks et al.
2024), as Wan 2.1 is published (Wan Team 2025, section 4.2).

Every patch is a token, and all tokens of a clip attend to one another. Durations, heights and
widths are free: positions are rotary, and samples of different sizes can be packed into one row.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vdm_jax.diffusion.schedules import alpha_sigma, flow_time
from vdm_jax.models import layers
from vdm_jax.models.blocks.positions import (
    frame_sines,
    grid_positions,
    place_sines,
    rotation,
)
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.blocks.token_ends import Output, TextEmbedding, TimeEmbedding
from vdm_jax.models.blocks.tokens import BlockPair, TokenBlock, TokenContext, level
from vdm_jax.models.condition import Cond
from vdm_jax.models.condition.base import Embedder, Inputs
from vdm_jax.models.network import Network, Section

Patches = Float[Array, "b n i j k c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowTime:
    """Rectified flow's t of a log-SNR in timesteps: the number that the network embeds.

    Attributes:
      num_timesteps: of t = 1.
      whole: whether fractions of a timestep are cut off, as published samplers do.
    """

    num_timesteps: int = 1000
    whole: bool = False

    def __call__(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        timestep = self.num_timesteps * flow_time(logsnr)
        return jnp.floor(timestep) if self.whole else timestep


class Packed(struct.PyTreeNode):
    """Rows of tokens that hold samples of any sizes one behind the other; see `packing.pack`.

    Attributes:
      patches: float (b, n, i, j, k, c), of z, see `to_patches`.
      positions: float (b, n, 3), frame, row and column of each patch in its sample.
      logsnr: float (b, samples), of the samples of each row.
      segments: int (b, n), the number of each patch's sample in its row; the row's padding has a
        number that none has.
      text: float (b, l, d), of all samples of a row, one behind the other.
      text_segments: int (b, l), the number of each text token's sample.
    """

    # Any, not Array: they are NumPy arrays on the host, and JAX rebuilds the class with whatever
    # its tree functions map leaves to.
    patches: Any
    positions: Any
    logsnr: Any
    segments: Any
    text: Any
    text_segments: Any


class VideoTransformer(Network):
    """z, log-SNR and text to a raw output. The defaults are Wan 2.1's of 1.3 billion parameters.

    The blocks are one scanned block, whose parameters are stacked along their first axis.

    Attributes:
      settings: the sizes that blocks share.
      depth: number of blocks.
      in_channels, out_channels: of z and of the output.
      patch: frames, rows and columns of a patch.
      time: converts log-SNR to the number whose sinusoids are embedded.
      time_features, time_period: the number of these sinusoids, and their longest period nearly,
        over 2π.
      flow: whether z enters as rectified flow's z / (alpha + sigma).
      text: the key of the condition that tokens attend to, (b, l, text_width). The text of images
        is at "image_" + key, (b, k, l, text_width). All tokens have weight.
      text_width: features of a token of the text; 0 = the network takes no text.
      conditions: embedders whose vectors are added to that of the noise level.
      dtype: of the computation. Parameters are always float32.
      remat: of each block, see `layers.remat`.
      layout: spreads the tokens of a row over devices. With factorised attention it is not used;
        activations then lie where the compiler puts them.
    """

    settings: TransformerSettings = TransformerSettings()
    depth: int = 30
    in_channels: int = 16
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    time: Callable[[Array], Array] = FlowTime()
    time_features: int = 256
    time_period: float = 10_000.0
    flow: bool = True
    text: str = "text_embeddings"
    text_width: int = 4096
    conditions: tuple[Embedder, ...] = ()
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    layout: layers.Layout = layers.ANYWHERE

    def setup(self):
        width, dtype = self.settings.width, self.dtype
        self.patch_embedding = layers.DenseGeneral(
            width,
            axis=(-4, -3, -2, -1),
            dtype=dtype,
            kernel_init=layers.named(
                nn.initializers.xavier_uniform(),
                *(None, None, None, layers.IN, layers.OUT),
                dtype=dtype,
            ),
            bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=dtype),
        )
        shared = self.settings.modulation == "shared"
        waves = (self.time_features, self.time_period)
        self.time_embedding = TimeEmbedding(width, *waves, shared, self.conditions)
        if self.text_width:
            self.text_embedding = TextEmbedding(width, dtype)
        factorised = self.settings.attention == "factorised"
        block = BlockPair if factorised else TokenBlock
        spread = {} if factorised else {"layout": self.layout}
        self.blocks = layers.remat(block, self.remat, block.STATIC)(self.settings, dtype, **spread)
        self.output = Output(self.out_channels, self.patch, self.settings)

    def __call__(
        self,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        *,
        num_images: int = 0,
        train: bool = False,
        origin: Sequence[float | int] = (0, 0, 0),
    ) -> Float[Array, "b f h w c2"]:
        """See `network.Network`. origin: the position of the first patch.

        Where `cond["mask"]` is 1 in all of a patch, the patch is that of `cond["masked_video"]` and
        its noise level is t = 0, whatever z and `logsnr` are: it is known. What is returned there
        means nothing. Raises ValueError for sizes and texts that do not fit.
        """
        self.check(z, cond, num_images)
        _, frames, height, width, _ = z.shape
        sizes = [size // p for size, p in zip((frames, height, width), self.patch, strict=True)]
        clip = grid_positions(sizes[0] - num_images, *sizes[1:], origin)
        images = [grid_positions(1, *sizes[1:], origin)] * num_images
        numbers = [number for number, part in enumerate([clip, *images]) for _ in part]
        positions = jnp.asarray(np.concatenate([clip, *images]))[None]
        inputs = Inputs(cond=cond, frames=sizes[0], num_images=num_images)
        segments = levels = None
        if num_images:  # the images are samples of their own
            segments = jnp.broadcast_to(jnp.asarray(numbers), (len(z), len(numbers)))
        if num_images and self.conditions:  # each sample has a vector of its own
            logsnr = jnp.repeat(logsnr[:, None], 1 + num_images, axis=1)
            levels = segments
        patches, logsnr = to_patches(z, self.patch), logsnr.reshape(len(z), -1)
        if "mask" in cond:
            patches, logsnr, levels = self._with_known(patches, logsnr, levels, cond)
        patches = self._tokens(
            patches,
            positions,
            logsnr,
            inputs=inputs,
            frames=sizes[0],
            levels=levels,
            segments=segments,
            **self._texts(inputs),
        )
        return from_patches(patches, sizes)

    def _texts(self, inputs: Inputs) -> dict[str, Array | None]:
        """The text of a clip and of its images one behind the other, and whose each token is."""
        if not self.text_width:
            return {"text": None, "text_segments": None}
        texts, count = inputs.items(self.text), 1 + inputs.num_images
        segments = None
        if inputs.num_images:
            places = jnp.repeat(jnp.arange(count), texts.shape[2])
            segments = jnp.broadcast_to(places, (len(texts), places.size))
        text = rearrange(texts, "b items l d -> b (items l) d")
        return {"text": text, "text_segments": segments}

    def _with_known(
        self,
        patches: Patches,
        logsnr: Float[Array, "b levels"],
        levels: Int[Array, "b n"] | None,
        cond: Cond,
    ) -> tuple[Patches, Float[Array, "b more"], Int[Array, "b n"]]:
        """Patches, noise levels and the level of each patch, with the known patches in place."""
        mask = to_patches(jnp.asarray(cond["mask"]), self.patch).min(axis=(2, 3, 4, 5)) != 0
        known = to_patches(jnp.asarray(cond["masked_video"]), self.patch)
        clean = jnp.full((len(patches), 1), jnp.inf, logsnr.dtype)
        own = jnp.zeros(mask.shape, jnp.int32) if levels is None else levels
        return (
            jnp.where(mask[..., None, None, None, None], known, patches),
            jnp.concatenate([logsnr, clean], axis=1),
            jnp.where(mask, logsnr.shape[1], own),
        )

    def packed(self, packed: Packed) -> Float[Array, "b n i j k c2"]:
        """The output's patches of packed samples: for each sample that of the sample alone.

        Raises ValueError for factorised attention, whose rows hold whole frames, and for networks
        with `conditions`.
        """
        if self.settings.attention == "factorised":
            raise ValueError("attention = 'factorised': packed rows need 'full'")
        if self.conditions:
            raise ValueError(f"conditions = {self.conditions}: packed rows have text alone")
        packed = jax.tree.map(jnp.asarray, packed)
        return self._tokens(
            packed.patches,
            packed.positions,
            packed.logsnr,
            text=packed.text,
            # Padding has some sample's noise level; nothing reads what comes of it.
            levels=jnp.clip(packed.segments, 0, packed.logsnr.shape[1] - 1),
            segments=packed.segments,
            text_segments=packed.text_segments,
        )

    def embed_noise(self, logsnr: Float[Array, "n"]) -> Float[Array, "n c"]:
        """What noise levels modulate the blocks by, before a block adds its own: two levels with
        almost equal embeddings have almost equal outputs (`diffusion.reuse`).

        Raises ValueError for a network with further `conditions`.
        """
        if self.conditions:
            raise ValueError(f"conditions = {self.conditions}: the noise level is not all")
        vector, shared = self.time_embedding(self.time(logsnr)[:, None])
        return (vector if shared is None else shared).reshape(len(logsnr), -1)

    def _tokens(
        self,
        patches: Patches,
        positions: Float[Array, "#b n 3"],
        logsnr: Float[Array, "b levels"],
        *,
        text: Float[Array, "b l d"] | None,
        inputs: Inputs | None = None,
        frames: int = 1,
        **further: Any,
    ) -> Float[Array, "b n i j k c2"]:
        settings = self.settings
        vector, shared = self.time_embedding(self.time(logsnr), inputs)
        context = TokenContext(
            vector=vector,
            modulation=shared,
            text=None if text is None else self.text_embedding(text),
            **further,
        )
        if settings.positions == "rotary":
            context = context._replace(rotation=rotation(positions, settings.head_dim))
        if self.flow:
            total = level(sum(alpha_sigma(logsnr))[..., None], context)
            patches = patches / total[..., None, None, None]
        x = self.patch_embedding(patches.astype(self.dtype))
        x, between = self._with_sines(x, positions, frames)
        x = x if settings.attention == "factorised" else self.layout.place_tokens(x)
        return self.output(self._blocks(x, context, frames, between), context)

    def _with_sines(
        self, x: Float[Array, "b n c"], positions: Float[Array, "#b n 3"], frames: int
    ) -> tuple[Float[Array, "b n c"], Float[Array, "#b n c"] | None]:
        """The tokens with their positions added, and what is added between the first two blocks of
        factorised attention: there the frames' positions come in."""
        if self.settings.positions != "sines":
            return x, None
        width = self.settings.width
        places, times = place_sines(positions, width), frame_sines(positions, width)
        if self.settings.attention == "factorised":
            # As published, an image has no position in time.
            return (x + places).astype(self.dtype), times if frames > 1 else None
        # The first frame's is 0, so that an image has none here either.
        added = places + times - frame_sines(jnp.zeros(3), width)
        return (x + added).astype(self.dtype), None

    def _blocks(self, x: Array, context: TokenContext, frames: int, between: Array | None) -> Array:
        """All blocks, of equal shapes, compiled once. between: see `BlockPair`, of the first."""

        def apply(block: nn.Module, x: Array, is_first: Array) -> tuple[Array, None]:
            further = () if between is None else (is_first * between,)
            return block(x, context, frames, *further), None

        scan = nn.scan(
            apply, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
        )
        return scan(self.blocks, x, jnp.arange(self.depth) == 0)[0]

    @property
    def reads(self) -> frozenset[str]:
        keys = [key for embedder in self.conditions for key in embedder.keys]
        return frozenset(["mask", "masked_video", *keys, *([self.text] * bool(self.text_width))])

    @property
    def multiple(self) -> int:
        return int(np.lcm(*self.patch[1:]))

    @property
    def stacked(self) -> Mapping[str, int]:
        return {"blocks": self.depth}

    @nn.nowrap
    def section(self, submodule: str) -> str:
        return _SECTIONS[submodule]

    @nn.nowrap
    def sections(self, video_shape: Sequence[int]) -> list[Section]:
        height, width = (n // p for n, p in zip(video_shape[1:3], self.patch[1:], strict=True))
        sizes = {"resolution": f"{height} x {width}", "channels": self.settings.width}
        names = dict.fromkeys(_SECTIONS.values())
        return [Section(name=name, **({} if name == "condition" else sizes)) for name in names]

    @nn.nowrap
    def check(self, z: Array, cond: Cond, num_images: int) -> None:
        """Raises ValueError if the shape of z or of the text does not fit the network."""
        if z.ndim != 5 or z.shape[-1] != self.in_channels:
            raise ValueError(
                f"z has shape {z.shape}: expected (batch, frames, height, width, "
                f"{self.in_channels})"
            )
        names = ("frames", "height", "width")
        for name, size, part in zip(names, z.shape[1:4], self.patch, strict=True):
            if size % part:
                raise ValueError(f"{name} = {size} must be a multiple of {part}")
        if not 0 <= num_images <= z.shape[1]:
            raise ValueError(f"num_images = {num_images}: the video has {z.shape[1]} frames")
        if num_images and self.patch[0] > 1:
            raise ValueError(
                f"num_images = {num_images}: patches of {self.patch[0]} frames hold no image"
            )
        if not self.text_width:
            return
        if self.text not in cond:
            raise ValueError(f"cond lacks {self.text}; it has: {', '.join(cond) or 'nothing'}")
        shape = cond[self.text].shape
        if len(shape) != 3 or shape[-1] != self.text_width:
            raise ValueError(
                f"cond: {self.text} {shape} must be (batch, tokens, {self.text_width}), the "
                "text_width that the network was made for"
            )


_SECTIONS = {
    "time_embedding": "condition",
    "text_embedding": "condition",
    "patch_embedding": "input",
    "blocks": "blocks",
    "output": "output",
}


def to_patches(
    z: Float[Array, "b f h w c"], patch: tuple[int, int, int]
) -> Float[Array, "b n i j k c"]:
    """The patches of clips, each i frames, j rows and k columns, in the order of frame, row and
    column."""
    i, j, k = patch
    return rearrange(z, "b (f i) (h j) (w k) c -> b (f h w) i j k c", i=i, j=j, k=k)


def from_patches(patches: Patches, sizes: Sequence[int]) -> Float[Array, "b f h w c"]:
    """The clips of patches; `sizes`: patches along frames, rows and columns."""
    f, h, w = sizes
    return rearrange(patches, "b (f h w) i j k c -> b (f i) (h j) (w k) c", f=f, h=h, w=w)
