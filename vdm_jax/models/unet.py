"""The skeleton of a U-Net: levels, skips, input and output. Its blocks are passed in."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import BlockSettings

SKIPS = ("block", "level")

Features = Float[Array, "_ _ _ _"]  # n h w c, with batch and frames folded into n


@runtime_checkable
class Blocks(Protocol):
    """The blocks of a U-Net. Each method applies a block to features and returns features.

    level counts from 0, the finest. name is unique within the network; a block uses it as the name,
    or as the start of the names, of its parameters.
    """

    def residual(self, h: Features, level: int, features: int, name: str) -> Features:
        """A residual block with `features` output channels."""
        ...

    def mix(self, h: Features, level: int, name: str) -> Features:
        """What follows a residual block: attention, layers over time, or nothing."""
        ...

    def middle(self, h: Features, level: int, name: str) -> Features:
        """What stands between the two residual blocks of the coarsest level."""
        ...

    def down(self, h: Features, level: int, features: int, name: str) -> Features:
        """From `level` to the next coarser one."""
        ...

    def up(self, h: Features, level: int, features: int, name: str) -> Features:
        """From `level` to the next finer one."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """Levels and skips of a U-Net. Level i works at height and width / (patch_size * 2^i), with
    `channels * channel_mult[i]` channels.

    Attributes:
      channels: of the first convolution's output.
      channel_mult: one number for each level; a fraction where widths are no multiples.
      num_res_blocks: residual blocks of a level on the way down: one number, or one for each level.
      skips: which features the way up takes from the way down. block: the output of every block;
        each level then has one block more on the way up (Ho et al. 2020). level: the last output of
        each level. `mix` then follows only the last block of a level, each level on the way up has
        the channels of the next finer one, and a last block also takes the first features.
      patch_size: side of the squares of pixels that become the channels of one position.
    """

    channels: int = 64
    channel_mult: tuple[int | float, ...] = (1, 2, 4, 8)
    num_res_blocks: int | tuple[int, ...] = 2
    skips: str = "block"
    patch_size: int = 1

    def __post_init__(self):
        if self.skips not in SKIPS:
            raise ValueError(f"skips = {self.skips!r}: allowed are {SKIPS}")
        if len(self.num_blocks) != len(self.channel_mult):
            raise ValueError(
                f"num_res_blocks = {self.num_res_blocks}: must be one number, or one for each of "
                f"the {len(self.channel_mult)} levels of channel_mult"
            )

    def __call__(self, h: Features, blocks: Blocks) -> Features:
        """Applies all levels to `h`, which has `channels` channels, as the output has."""
        return self.decode(*self.encode(h, blocks), blocks)

    def encode(self, h: Features, blocks: Blocks) -> tuple[Features, tuple[Features, ...]]:
        """The way down and the middle.

        Returns the features of the middle and those that `decode` takes from the way down, in the
        order in which they are computed: the input first, the coarsest last.
        """
        skips = [h]
        for level, width in enumerate(self.widths):
            for i in range(self.num_blocks[level]):
                h = blocks.residual(h, level, width, f"down_{level}_block_{i}")
                if self.by_block or i == self.num_blocks[level] - 1:
                    h = blocks.mix(h, level, f"down_{level}_attention_{i}")
                    skips.append(h)
            if level < self.last:
                h = blocks.down(h, level, width, f"down_{level}_resize")
                if self.by_block:
                    skips.append(h)

        h = blocks.residual(h, self.last, self.widths[-1], "middle_block_0")
        h = blocks.middle(h, self.last, "middle_attention")
        return blocks.residual(h, self.last, self.widths[-1], "middle_block_1"), tuple(skips)

    def decode(self, h: Features, skips: Sequence[Features], blocks: Blocks) -> Features:
        """The way up, from what `encode` returns."""
        skips = list(skips)
        for level in reversed(range(len(self.widths))):
            width, count = self.width_up(level), self.num_blocks[level] + self.by_block
            for i in range(count):
                if self.by_block or i == 0:
                    h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = blocks.residual(h, level, width, f"up_{level}_block_{i}")
                if self.by_block or i == count - 1:
                    h = blocks.mix(h, level, f"up_{level}_attention_{i}")
            if level:
                h = blocks.up(h, level, width, f"up_{level}_resize")
        if not self.by_block:
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = blocks.residual(h, 0, self.widths[0], "output_block")
        return h

    @property
    def by_block(self) -> bool:
        return self.skips == "block"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(self.channels * multiple) for multiple in self.channel_mult)

    def width_up(self, level: int) -> int:
        """Channels of a level on the way up."""
        return self.widths[level if self.by_block else max(level - 1, 0)]

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        if isinstance(self.num_res_blocks, int):
            return (self.num_res_blocks,) * len(self.channel_mult)
        return tuple(self.num_res_blocks)

    @property
    def last(self) -> int:
        """The coarsest level."""
        return len(self.channel_mult) - 1

    @property
    def multiple(self) -> int:
        """Height and width of a video must be multiples of it."""
        return self.patch_size * 2**self.last

    def reach(self, mixing: Callable[[int], int], ends: int = 2) -> int:
        """Pixels between an output and the furthest input that it depends on, if blocks consist of
        3 x 3 convolutions.

        Args:
          mixing: a level to the reach, in positions, of what follows a residual block.
          ends: the reach of the first and the last convolution together.
        """
        by_block = self.by_block
        steps = ends + (0 if by_block else 2) + 4 * 2**self.last
        for level, blocks in enumerate(self.num_blocks):
            # Both ways. A residual block has two convolutions, a resize to or from a coarser level
            # one.
            both = blocks + blocks + by_block
            convolutions = 2 * both + 2 * (level < self.last) + mixing(level) * both
            steps += convolutions * 2**level
        return self.patch_size * (steps + 2**self.last)

    def patches(
        self, video: Float[Array, "b f h w c"], layout: layers.Layout
    ) -> Float[Array, "bf h2 w2 pqc"]:
        """The patches of a video as channels, batch and frames folded."""
        p = self.patch_size
        return layout.fold(rearrange(video, "b f (h p) (w q) c -> b f h w (p q c)", p=p, q=p))

    def video(
        self, patches: Float[Array, "bf h2 w2 pqc"], frames: int, layout: layers.Layout
    ) -> Float[Array, "b f h w c"]:
        """The inverse of `patches`."""
        p, h = self.patch_size, layout.unfold(patches, frames)
        return rearrange(h, "b f h w (p q c) -> b f (h p) (w q) c", p=p, q=p)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """The first convolution.

    Attributes:
      coordinates: whether the input also holds each position (Liu et al. 2018, CoordConv).
    """

    coordinates: bool = False
    kernel: ClassVar[int] = 3

    def __call__(
        self,
        patches: list[Features],
        added: dict[str, Features],
        features: int,
        dtype: DTypeLike,
    ) -> Features:
        """The features of `patches`, which are concatenated, and of those `added` by convolutions
        of their own, "<name>_conv", that start at zero."""
        h = jnp.concatenate(patches, axis=-1).astype(dtype)
        if self.coordinates:
            grid = jnp.broadcast_to(layers.coordinate_grid(*h.shape[1:3]), (*h.shape[:3], 2))
            h = jnp.concatenate([h, grid.astype(dtype)], axis=-1)
        conv = functools.partial(layers.conv, features, self.kernel, dtype=dtype)
        h = conv(name="input_conv")(h)
        for name, further in added.items():
            h = h + conv(zero=True, name=f"{name}_conv")(further.astype(dtype))
        return h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """The last convolution, in float32 and zero at first: the loss sees its output.

    Attributes:
      channels: of the output.
      skip: whether the input, with a gain for each channel learned from the condition, is added to
        the output. Removing noise from flat regions is then linear and needs no features, as in
        EDM's preconditioning (Karras et al. 2022, eq. 7) with a learned coefficient.
      gate: whether a gain for each pixel, a function of the features, is added to those of `skip`:
        where a region is flat all noise can go, and elsewhere detail is kept.
    """

    channels: int = 3
    skip: bool = False
    gate: bool = False

    def __post_init__(self):
        if self.gate and not self.skip:
            raise ValueError(f"output_gate = {self.gate}: is part of output_skip, which is False")

    def __call__(
        self,
        h: Features,
        patches: list[Features],
        embedding: Float[Array, "n d"],
        patch_size: int,
        settings: BlockSettings,
    ) -> Float[Array, "n h w pqc"]:
        """The patches of the output. `patches` are those of the input, z first."""
        h = nn.swish(layers.group_norm(h.shape[-1], settings.norm_groups, "output_norm")(h))
        conv = functools.partial(layers.conv, dtype=jnp.float32, zero=True)
        positions = patch_size**2
        output = conv(positions * self.channels, name="output_conv")(h)
        if not self.skip:
            return output
        count = len(patches)
        gains = layers.dense(
            positions * self.channels * count, dtype=jnp.float32, zero=True, name="output_gain"
        )(nn.swish(embedding))[:, None, None]
        if self.gate:
            gates = conv(positions * count, name="output_gate")(h)
            gains = gains + jnp.repeat(gates, self.channels, axis=-1)
        for gain, part in zip(jnp.split(gains, count, axis=-1), patches, strict=True):
            output = output + gain * part
        return output
