"""The latent U-Net of Stable Diffusion 1 and 2 (Rombach et al. 2022): an image model, applied to
each frame, with slots for layers over frames. Many video systems start from it."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.diffusion.schedules import LinearBetaSchedule, ScaledLinearBetaSchedule
from vdm_jax.models import layers
from vdm_jax.models.blocks.latent_residual import LatentResidual, over_clip
from vdm_jax.models.blocks.resample import Downsample, Upsample
from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import ClipContext, Place, Slot, Slots, fill
from vdm_jax.models.blocks.transformer import SpatialTransformer
from vdm_jax.models.condition import Cond, Embedder, VideoInput
from vdm_jax.models.condition.base import Inputs, mlp
from vdm_jax.models.condition.embedding import add_embedders
from vdm_jax.models.network import Network, Section
from vdm_jax.models.unet import Features, Input, UNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timestep:
    """The discrete timestep of a log-SNR: the number that networks of a discrete grid embed.

    Attributes:
      schedule: of the timesteps.
      rounded: whether a log-SNR between two timesteps has the nearer one.
    """

    schedule: LinearBetaSchedule | ScaledLinearBetaSchedule = ScaledLinearBetaSchedule()
    rounded: bool = False

    def __call__(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        timestep = self.schedule.timestep(logsnr)
        return timestep.round() if self.rounded else timestep


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseTime:
    """c_noise = log σ / 4 in EDM's σ (Karras et al. 2022, table 1)."""

    def __call__(self, logsnr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return -0.125 * logsnr


@runtime_checkable
class Control(Protocol):
    """What adds to the features of the way down and of the middle, such as a ControlNet.

    Attributes:
      name: of its parameters, which the network holds; begins with "control".
      keys: of the condition that it reads.
    """

    @property
    def name(self) -> str: ...

    @property
    def keys(self) -> tuple[str, ...]: ...

    def __call__(
        self,
        network: "LatentUNet",
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        *,
        num_images: int,
        train: bool,
    ) -> tuple[Features, tuple[Features, ...]]:
        """What is added to the features of the middle and to the skips, in `UNet.encode`'s order.

        Arrays of height and width 1 are added at every pixel. Called inside of `network`.
        """
        ...


class LatentEncoder(Network):
    """What a latent U-Net and a ControlNet share: the input, the condition and the blocks.

    Attributes:
      unet: levels and skips.
      settings: the sizes that blocks share.
      in_channels: of the input: z and the videos that are concatenated to it.
      time: converts log-SNR to the number whose sinusoids are embedded.
      text: the key of the condition that pixels attend to, (b, l, settings.text_width). The text of
        images is at "image_" + key, (b, k, l, text_width). All tokens have weight. "" = pixels
        attend to the tokens of an embedder in `conditions`.
      conditions: embedders of further conditions; their vectors are added to that of time.
      videos: conditions that are concatenated to z, or enter by a convolution of their own.
      slots: layers of others, see `Slots`.
      dtype: of the computation. Parameters are always float32.
      remat: see `layers.remat`.
      layout: the order of clips in folded arrays, and their placement on devices.
    """

    unet: UNet = UNet(channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=2)
    settings: LatentSettings = LatentSettings()
    in_channels: int = 4
    time: Callable[[Array], Array] = Timestep()
    text: str = "text_embeddings"
    conditions: tuple[Embedder, ...] = ()
    videos: tuple[VideoInput, ...] = ()
    slots: Slots = Slots()
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    layout: layers.Layout = layers.ANYWHERE

    @nn.nowrap
    def input_features(self, z: Float[Array, "b f h w c"], cond: Cond) -> Features:
        """The output of the first convolution, batch and frames folded. Raises ValueError if the
        channels do not fit."""
        videos = [z, *(video(cond, z) for video in self.videos if not video.ADDED)]
        channels = [video.shape[-1] for video in videos]
        if sum(channels) != self.in_channels:
            raise ValueError(
                f"in_channels = {self.in_channels}: must be the sum of the channels of z and of "
                f"the videos concatenated to it, {channels}"
            )
        patches = [self.unet.patches(video, self.layout) for video in videos]
        added = {
            video.name: self.unet.patches(video(cond, z), self.layout)
            for video in self.videos
            if video.ADDED
        }
        return Input()(patches, added, self.unet.channels, self.dtype)

    @nn.nowrap
    def make_blocks(
        self, logsnr: Array, cond: Cond, frames: int, num_images: int, train: bool
    ) -> "LatentBlocks":
        """The blocks given to the skeleton, with the embedded condition. `frames` counts images."""
        inputs = Inputs(cond={**cond, "logsnr": logsnr}, frames=frames, num_images=num_images)
        embed = _TimeEmbedding(
            dim=4 * self.unet.channels,
            channels=self.unet.channels,
            time=self.time,
            embedders=self.conditions,
            dtype=self.dtype,
            name="condition",
        )
        vectors, tokens = embed(inputs)
        if self.text:
            tokens = inputs.items(self.text)
        if tokens is None:
            raise ValueError("text = '': must name a condition, because no embedder has tokens")
        if tokens.ndim != 4 or tokens.shape[-1] != self.settings.text_width:
            raise ValueError(
                f"cond: {self.text} {tokens.shape[:1] + tokens.shape[2:]} must be (batch, tokens, "
                f"{self.settings.text_width}), the text_width that the network was made for"
            )
        context = ClipContext(
            vectors=self.layout.fold(vectors),
            tokens=tokens.astype(self.dtype),
            frames=frames,
            num_images=num_images,
            train=train,
        )
        return LatentBlocks(network=self, context=context)

    @property
    def reads(self) -> frozenset[str]:
        parts = (*self.conditions, *self.videos)
        text = [self.text] if self.text else []
        return frozenset([*text, *(key for part in parts for key in part.keys)])

    @property
    def multiple(self) -> int:
        return self.unet.multiple

    @nn.nowrap
    def check(self, z: Array, num_images: int) -> None:
        """Raises ValueError if a video of z's shape, or a field, does not fit the network."""
        levels = len(self.unet.widths)
        if len(self.settings.heads) != levels:
            raise ValueError(
                f"heads = {self.settings.heads}: must be one number for each of {levels} levels"
            )
        for width, heads in zip(self.unet.widths, self.settings.heads, strict=True):
            if width % heads:
                raise ValueError(f"heads = {heads} must divide {width}, the channels of its level")
        if z.ndim != 5:
            raise ValueError(f"z has shape {z.shape}: expected (batch, frames, height, width, c)")
        for name, size in zip(("height", "width"), z.shape[2:4], strict=True):
            if size % self.multiple:
                raise ValueError(f"{name} = {size} must be a multiple of {self.multiple}")
        if not 0 <= num_images <= z.shape[1]:
            raise ValueError(f"num_images = {num_images}: the video has {z.shape[1]} frames")
        pixels = z.shape[2] * z.shape[3] // self.multiple**2
        for name, size in {"frames and images": z.shape[1], "pixels": pixels}.items():
            if size % self.layout.blocks:
                raise ValueError(
                    f"{name} = {size} must be a multiple of {self.layout.blocks}, the number of "
                    "blocks in which they are spread over devices"
                )


class LatentUNet(LatentEncoder):
    """z, log-SNR and condition to a raw output of z's height and width.

    With empty slots the network is an image model: it treats each frame as an image. The defaults
    are Stable Diffusion 1.5's.

    Attributes:
      out_channels: of the output.
      controls: what adds to the features of the way down, see `Control`; several are summed.
    """

    out_channels: int = 4
    controls: tuple[Control, ...] = ()

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
        blocks = self.make_blocks(logsnr, cond, z.shape[1], num_images, train)
        h = blocks.after_convolution(self.input_features(z, cond), 0, "input_conv")
        h, skips = self.unet.encode(h, blocks)
        for control in self.controls:
            middle, added = control(self, z, logsnr, cond, num_images=num_images, train=train)
            h = h + middle
            skips = [skip + residual for skip, residual in zip(skips, added, strict=True)]
        h = self.unet.decode(h, skips, blocks)
        h = blocks.output(h, self.out_channels)
        return self.unet.video(h, z.shape[1], self.layout)

    @property
    def reads(self) -> frozenset[str]:
        return super().reads.union(*(control.keys for control in self.controls))

    @nn.nowrap
    def sections(self, video_shape: Sequence[int]) -> list[Section]:
        unet, numbers = self.unet, range(len(self.unet.widths))

        def section(name: str, level: int) -> Section:
            scale = unet.patch_size * 2**level
            resolution = f"{video_shape[1] // scale} x {video_shape[2] // scale}"
            return Section(name=name, resolution=resolution, channels=unet.widths[level])

        return [
            Section(name="condition", channels=4 * unet.channels),
            section("input", 0),
            *(section(f"down {i}", i) for i in numbers),
            section("middle", unet.last),
            *(Section(name=control.name) for control in self.controls),
            *(section(f"up {i}", i) for i in reversed(numbers)),
            section("output", 0),
        ]

    @nn.nowrap
    def section(self, submodule: str) -> str:
        if submodule in {control.name for control in self.controls}:
            return submodule
        if submodule in {f"{video.name}_conv" for video in self.videos if video.ADDED}:
            return "input"
        if match := re.match(r"(down|up)_(\d+)", submodule):
            return f"{match[1]} {match[2]}"
        return submodule.split("_")[0]


class _TimeEmbedding(nn.Module):
    """The sinusoids of time, cosines first, and a two-layer MLP; plus further embedders.

    Returns the vectors, and the tokens of an embedder that has some.
    """

    dim: int
    channels: int
    time: Callable[[Array], Array]
    embedders: tuple[Embedder, ...] = ()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Inputs
    ) -> tuple[Float[Array, "b f dim"], Float[Array, "b items l d"] | None]:
        waves = layers.sinusoidal_embedding(self.time(inputs.cond["logsnr"]), self.channels)
        waves = jnp.roll(waves, self.channels // 2, axis=-1)
        vector = mlp(self, "time", waves.astype(self.dtype))[:, None]
        return add_embedders(self, vector, self.embedders, inputs)[:2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentBlocks:
    """The blocks of a latent U-Net with the context that they take: an `unet.Blocks`."""

    network: LatentEncoder
    context: ClipContext

    def residual(self, h: Features, level: int, features: int, name: str) -> Features:
        network, settings = self.network, self.network.settings
        epsilon = settings.residual_epsilon(name.split("_")[0], level)
        block = layers.remat(LatentResidual, network.remat)(
            features,
            dataclasses.replace(settings, epsilon=epsilon),
            network.dtype,
            network.layout,
            network.slots.after_convolution,
            self.place(name, level, h, settings.depth[level]),
            name=name,
        )
        h = network.layout.place(block(h, self.context))
        place = self.place(f"{name}_temporal", level, h, settings.depth[level])
        return self.fill(network.slots.after_residual, place, h)

    def mix(self, h: Features, level: int, name: str) -> Features:
        return self.attend(h, self.place(name, level, h, self.network.settings.depth[level]))

    def middle(self, h: Features, level: int, name: str) -> Features:
        return self.attend(h, self.place(name, level, h, self.network.settings.middle_depth))

    def down(self, h: Features, level: int, features: int, name: str) -> Features:
        h = Downsample(features, self.network.dtype, name=name)(h)
        return self.after_convolution(h, level, name)

    def up(self, h: Features, level: int, features: int, name: str) -> Features:
        h = Upsample(features, self.network.dtype, name=name)(h)
        return self.after_convolution(h, level, name)

    def after_convolution(self, h: Features, level: int, name: str) -> Features:
        """The output of a convolution outside of residual blocks after what follows it."""
        slot = self.network.slots.after_convolution
        place = dataclasses.replace(self.place(f"{name}_temporal", level, h, 0), dtype=h.dtype)
        return self.fill(slot, place, h)

    def output(self, h: Features, channels: int) -> Float[Array, "n h w {channels}"]:
        """The last normalisation and convolution, in float32 and zero at first."""
        network, settings = self.network, self.network.settings
        norm = layers.group_norm(
            h.shape[-1], settings.norm_groups, "output_norm", epsilon=settings.epsilon
        )
        if settings.norm_over_frames:
            norm = over_clip(norm, network.layout, self.context)
        conv = layers.conv(channels, dtype=jnp.float32, zero=True, name="output_conv")
        return self.after_convolution(conv(nn.swish(norm(h))), 0, "output_conv")

    def attend(self, h: Features, place: Place) -> Features:
        """The transformer at a place, if there is one, and what follows it."""
        network = self.network
        if place.depth:
            transformer = layers.remat(SpatialTransformer, network.remat)
            block = transformer(place, network.settings, network.slots, name=place.name)
            h = block(h, self.context)
        place = dataclasses.replace(place, name=f"{place.name}_temporal")
        return self.fill(network.slots.after_attention, place, h)

    def fill(self, slot: Slot | None, place: Place, h: Features) -> Features:
        return fill(slot, place, h, self.context, remat=self.network.remat)

    def place(self, name: str, level: int, h: Features, depth: int) -> Place:
        """The place called `name`, with `depth` transformer blocks."""
        network, part = self.network, name.split("_")[0]
        return Place(
            name=name,
            part=part,
            level=level,
            channels=h.shape[-1],
            heads=network.settings.heads[level],
            depth=depth,
            norm_groups=network.settings.norm_groups,
            epsilon=network.settings.residual_epsilon(part, level),
            dtype=network.dtype,
            layout=network.layout,
        )
