"""The video U-Net of Video Diffusion Models (Ho & Salimans et al. 2022, section 3) and Imagen Video
(Ho et al. 2022): convolutions and attention over space, and a layer that mixes frames."""

import dataclasses
import re
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.cross import CrossAttention
from vdm_jax.models.blocks.resample import Downsample, Upsample
from vdm_jax.models.blocks.residual import ResidualBlock
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.spatial import SpatialAttention
from vdm_jax.models.blocks.temporal import TemporalAttention
from vdm_jax.models.condition import (
    Concatenated,
    Cond,
    ConditionEmbedding,
    Embedder,
    KnownFrames,
    Label,
)
from vdm_jax.models.network import Network, Section
from vdm_jax.models.unet import Features, Input, Output, UNet


class VideoUNet(Network):
    """z, log-SNR and condition to a raw output of z's shape.

    At the levels of `attention_levels` a residual block is followed by attention over space and, if
    there is text, attention to its tokens; at those of `temporal_levels` by a block that mixes
    frames. Images appended to a clip pass by that block. Without it the network is an image model,
    applied to each frame.

    Attributes:
      unet: levels and skips.
      settings: the sizes that blocks share.
      input, output: the first and the last layers.
      conditions: embedders of conditions, see `condition.Embedder`.
      embedding_dim: width of the condition's embedding; 0 = 4 * channels.
      videos: conditions that are further channels of the input.
      attention_levels: the levels with attention over space and to text.
      spatial: the class of the block that mixes a frame's pixels, called with (settings, dtype);
        None = no such block.
      temporal: the class of the block that mixes frames, called with (settings, dtype, layout), its
        instances with (x, frames, num_images); None = no such block.
      temporal_levels: the levels with that block; None = `attention_levels`.
      dtype: of the computation. Parameters are always float32.
      remat: see `layers.remat`.
      layout: the order of clips in folded arrays, and their placement on devices.
    """

    unet: UNet = UNet()
    settings: BlockSettings = BlockSettings()
    input: Input = Input()
    output: Output = Output()
    conditions: tuple[Embedder, ...] = ()
    embedding_dim: int = 0
    videos: tuple[Concatenated | KnownFrames, ...] = ()
    attention_levels: tuple[int, ...] = (1, 2, 3)
    spatial: type[nn.Module] | None = SpatialAttention
    temporal: type[nn.Module] | None = TemporalAttention
    temporal_levels: tuple[int, ...] | None = None
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        *,
        num_images: int = 0,
        train: bool = False,
    ) -> Float[Array, "b f h w out"]:
        """`f` counts the clip's frames and, last, `num_images` independent images.

        Raises ValueError if the shape does not fit the levels or `cond` lacks a key.
        """
        self.check(z, num_images)
        frames = z.shape[1]
        blocks = self.make_blocks(logsnr, cond, frames, num_images, train)
        patches, added = [self.patches(z)], {}
        for video in self.videos:
            if video.ADDED:
                added[video.name] = self.patches(video(cond, z))
            else:
                patches.append(self.patches(video(cond, z)))
        h = self.input(patches, added, self.unet.channels, self.dtype)
        h = self.unet(h, blocks)
        h = self.output(h, patches, blocks.vectors[0], self.unet.patch_size, self.settings)
        return self.unet.video(h, frames, self.layout)

    @nn.nowrap
    def make_blocks(
        self, logsnr: Array, cond: Cond, frames: int, num_images: int, train: bool
    ) -> "VideoBlocks":
        """The blocks given to the skeleton, with the embedded condition. `frames` counts images."""
        embed = self.embedding(self.conditions, "condition")
        vectors, tokens, mask = embed(logsnr, cond, frames, num_images)
        levels = len(self.unet.widths)
        return VideoBlocks(
            network=self,
            frames=(frames,) * levels,
            vectors=(vectors,) * levels,
            tokens=tokens,
            mask=mask,
            num_images=num_images,
            train=train,
        )

    @nn.nowrap
    def embedding(self, conditions: tuple[Embedder, ...], name: str) -> ConditionEmbedding:
        return ConditionEmbedding(
            self.embedding_width, conditions, self.dtype, self.layout, name=name
        )

    @nn.nowrap
    def patches(self, video: Float[Array, "b f h w c"]) -> Features:
        return self.unet.patches(video, self.layout)

    @property
    def embedding_width(self) -> int:
        return self.embedding_dim or 4 * self.unet.channels

    @property
    def out_channels(self) -> int:
        return self.output.channels

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(key for part in (*self.conditions, *self.videos) for key in part.keys)

    @property
    def num_labels(self) -> int:
        labels = [part.num_labels for part in self.conditions if isinstance(part, Label)]
        return labels[0] if labels else 0

    @property
    def multiple(self) -> int:
        return self.unet.multiple

    @property
    def reach(self) -> int | None:
        if self.spatial is not None or self.settings.norm_groups or self.input.coordinates:
            return None
        return self.unet.reach(self.mixing_reach, ends=self.input.kernel // 2 + 1)

    @nn.nowrap
    def mixing_reach(self, level: int) -> int:
        """How many positions away what follows a residual block reaches."""
        return 0

    @nn.nowrap
    def sections(self, video_shape: Sequence[int]) -> list[Section]:
        unet, numbers = self.unet, range(len(self.unet.widths))

        def section(name: str, level: int, channels: int) -> Section:
            scale = unet.patch_size * 2**level
            resolution = f"{video_shape[1] // scale} x {video_shape[2] // scale}"
            return Section(name=name, resolution=resolution, channels=channels)

        return [
            Section(name="condition", channels=self.embedding_width),
            section("input", 0, unet.channels),
            *(section(f"down {i}", i, unet.widths[i]) for i in numbers),
            section("middle", unet.last, unet.widths[-1]),
            *(section(f"up {i}", i, unet.width_up(i)) for i in reversed(numbers)),
            section("output", 0, unet.channels),
        ]

    @nn.nowrap
    def section(self, submodule: str) -> str:
        if match := re.match(r"(down|up)_(\d+)", submodule):
            return f"{match[1]} {match[2]}"
        inputs = {f"{video.name}_conv" for video in self.videos if video.ADDED}
        return "input" if submodule in inputs else submodule.split("_")[0]

    @nn.nowrap
    def check(self, z: Array, num_images: int) -> None:
        """Raises ValueError if a video of z's shape does not fit the network."""
        if z.ndim != 5:
            raise ValueError(f"z has shape {z.shape}: expected (batch, frames, height, width, c)")
        for name, size in zip(("height", "width"), z.shape[2:4], strict=True):
            if size % self.multiple:
                raise ValueError(
                    f"{name} = {size} must be a multiple of {self.multiple} "
                    f"(patch_size {self.unet.patch_size} x 2^{self.unet.last} levels)"
                )
        if self.output.skip and z.shape[-1] != self.out_channels:
            raise ValueError(
                f"output_skip needs as many input channels ({z.shape[-1]}) as out_channels "
                f"({self.out_channels})"
            )
        if not 0 <= num_images <= z.shape[1]:
            raise ValueError(f"num_images = {num_images}: the video has {z.shape[1]} frames")
        pixels = z.shape[2] * z.shape[3] // self.multiple**2
        self.check_blocks({"frames and images": z.shape[1], "pixels, coarsest level": pixels})

    @nn.nowrap
    def check_blocks(self, sizes: dict[str, int]) -> None:
        """Raises ValueError if one of the sizes does not divide into the blocks of the layout."""
        for name, size in sizes.items():
            if size % self.layout.blocks:
                raise ValueError(
                    f"{name} = {size} must be a multiple of {self.layout.blocks}, the number of "
                    "blocks in which they are spread over devices"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoBlocks:
    """The blocks of a `VideoUNet` with the condition that they take: an `unet.Blocks`.

    Attributes:
      network: the network, whose parameters the blocks are.
      frames: for each level the frames of a clip, images included.
      vectors: for each level the condition's vector of each frame, folded.
      tokens, mask: of the text.
      num_images: the number of images after the clip.
      train: whether dropout acts.
    """

    network: VideoUNet
    frames: tuple[int, ...]
    vectors: tuple[Float[Array, "_ _"], ...]
    tokens: Float[Array, "b items l d"] | None
    mask: Bool[Array, "b items l"] | None
    num_images: int
    train: bool

    def residual(self, h: Features, level: int, features: int, name: str) -> Features:
        network = self.network
        block = self.remat(ResidualBlock)(features, network.settings, network.dtype, name=name)
        return network.layout.place(block(h, self.vectors[level], not self.train))

    def mix(self, h: Features, level: int, name: str) -> Features:
        network = self.network
        if level in network.attention_levels:
            h = self.attend(h, name)
        levels = network.temporal_levels
        levels = network.attention_levels if levels is None else levels
        return self.over_time(h, level, name) if level in levels else h

    def middle(self, h: Features, level: int, name: str) -> Features:
        return self.over_time(self.attend(h, name), level, name)

    def down(self, h: Features, level: int, features: int, name: str) -> Features:
        return Downsample(features, self.network.dtype, name=name)(h)

    def up(self, h: Features, level: int, features: int, name: str) -> Features:
        return Upsample(features, self.network.dtype, name=name)(h)

    def attend(self, h: Features, name: str) -> Features:
        """Attention over space, and to the text."""
        network = self.network
        if network.spatial is not None:
            spatial = self.remat(network.spatial)
            h = spatial(network.settings, network.dtype, name=f"{name}_spatial")(h)
        if self.tokens is None:
            return h
        cross = self.remat(CrossAttention)(
            network.settings, network.dtype, network.layout, name=f"{name}_text"
        )
        return cross(h, self.tokens, self.mask, self.num_images)

    def over_time(self, h: Features, level: int, name: str) -> Features:
        """The block that mixes frames."""
        network = self.network
        if network.temporal is None:
            return h
        temporal = self.remat(network.temporal, (2, 3))
        block = temporal(network.settings, network.dtype, network.layout, name=f"{name}_temporal")
        return block(h, self.frames[level], self.num_images)

    def remat(
        self, block: type[nn.Module], static: tuple[int, ...] | None = None
    ) -> type[nn.Module]:
        """The class of blocks under the network's remat policy."""
        static = getattr(block, "STATIC", ()) if static is None else static
        return layers.remat(block, self.network.remat, static_argnums=static)
