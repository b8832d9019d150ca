"""The 3D U-Net of Video Diffusion Models (Ho & Salimans et al. 2022, section 3), factorised over
space and time: space-only convolutions, attention over space, then attention over time."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vdm_jax.models import attention, layers, temporal
from vdm_jax.models.conditioning import Cond, ConditionEmbedding

SKIPS = ("block", "level")
TEMPORAL = ("attention", "convolution", "space_time", "none")


class UNet3D(nn.Module):
    """z, log-SNR and condition to a raw output of z's shape.

    Level i works at height and width / (patch_size * 2^i), with `channels * channel_mult[i]`
    channels and `num_res_blocks` residual blocks on the way down. At the levels named in
    `attention_levels` each residual block is followed by spatial attention, attention to the
    text's tokens if there is text, and a layer over time. Images appended to a clip
    (`num_images`) are untouched by temporal layers.

    With `temporal = "space_time"` it is Lumiere's space-time U-Net (Bar-Tal et al. 2024): the
    parameters of the same network with `temporal = "none"`, an image model, have the same names,
    and with all others as they are initialised it says of a clip's frames what the image model
    says of each, where frames are resized, of the first of each group that becomes one.

    Attributes:
      skips: what the way up is given from the way down. block: every block's output, and one
        block more a level to take them (Ho et al. 2020). level: each level's last output, with
        attention after a level's last block only, each level going up in the channels of the
        next finer one, and a last block that also takes the first features.
      num_res_blocks: the same number at every level, or one a level.
      spatial_attention: softmax, linear, or none: with norm_groups 0 the network is then fully
        convolutional, and what it computes at a pixel depends on a neighbourhood only.
      temporal: what mixes frames: attention, convolution over three frames, none, or space_time:
        convolutions over space and time, and at the coarsest level attention over time.
      temporal_levels: the levels that have it, None = those of `attention_levels`.
      temporal_resize: the levels after which frames are halved, as height and width are.
      temporal_depth: of space_time, layers of attention over time in a row.
      low_res: whether a conditioning video of z's shape, `cond["low_res"]`, is concatenated to z,
        and the log-SNR of the noise on it embedded.
      masked_video: whether what is known of the video, `cond["masked_video"]` and `cond["mask"]`,
        enters, by a convolution of its own beside z's that starts at zero.
      head_dim: features of an attention head; there are channels / head_dim heads.
      heads: if not 0, that number of heads at every level instead.
      coordinates: whether the input also holds each pixel's place (CoordConv).
      output_skip: whether the input, each of its channels times a gain learned from the
        condition, is added to the output. Taking noise off flat regions is then linear work that
        needs no features, as in EDM's preconditioning (Karras et al. 2022, eq. 7), with the
        coefficient learned.
      output_gate: 0, or how many gains a pixel has that are functions of the features and added
        to those of output_skip: 1 for all channels, or `out_channels`. Where a region is known to
        be flat all of the noise can go, and elsewhere detail is kept.
      initial_kernel: size of the first convolution.
      initial_temporal: whether a layer over time follows the first convolution too.
      embedding_dim: width of the condition's embedding; 0 is 4 * channels.
      vocab_size, max_length, text_width, text_kernel, num_labels, null_condition, frame_positions,
        fps_embedding, guidance_embedding: see `ConditionEmbedding`.
      dtype: of the computation; parameters are float32 always.
      remat: see `layers.remat`.
      layout: how clips lie in folded arrays, and on devices.
    """

    channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    num_res_blocks: int | tuple[int, ...] = 2
    attention_levels: tuple[int, ...] = (1, 2, 3)
    head_dim: int = 64
    heads: int = 0
    patch_size: int = 1
    out_channels: int = 3
    norm_groups: int = 32
    dropout: float = 0.0
    spatial_attention: str = "softmax"
    temporal: str = "attention"
    temporal_levels: tuple[int, ...] | None = None
    temporal_resize: tuple[int, ...] = ()
    temporal_depth: int = 1
    low_res: bool = False
    masked_video: bool = False
    fps_embedding: bool = False
    skips: str = "block"
    coordinates: bool = False
    output_skip: bool = False
    output_gate: int = 0
    initial_kernel: int = 3
    initial_temporal: bool = False
    embedding_dim: int = 0
    vocab_size: int = 0
    max_length: int = 0
    text_width: int = 0
    text_kernel: int = 0
    num_labels: int = 0
    null_condition: str = "learned"
    frame_positions: bool = False
    guidance_embedding: bool = False
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

        Raises ValueError where the shape does not fit the levels or `cond` lacks something.
        """
        self._check(z, num_images)
        frames = z.shape[1]
        space_time = self.temporal == "space_time"

        def condition(name, frame_positions):
            embed = ConditionEmbedding(
                dim=self.embedding_width,
                vocab_size=self.vocab_size,
                max_length=self.max_length,
                text_width=self.text_width,
                text_kernel=self.text_kernel,
                num_labels=self.num_labels,
                null_condition=self.null_condition,
                frame_positions=frame_positions,
                guidance_embedding=self.guidance_embedding,
                low_res_embedding=self.low_res,
                fps_embedding=self.fps_embedding,
                dtype=self.dtype,
                layout=self.layout,
                name=name,
            )
            return embed(logsnr, cond, frames, num_images)

        embedding, tokens, token_mask = condition("condition", self.frame_positions)
        # An image model has no use for words that say how things move, and what it makes of a text
        # hardly holds them: the layers that mix frames embed the condition for themselves.
        of_motion = condition("condition_temporal", True)[0] if space_time else embedding

        block_type = layers.remat(layers.ResidualBlock, self.remat, static_argnums=(3,))
        spatial_type = layers.remat(attention.SpatialAttention, self.remat)
        attention_type = layers.remat(
            attention.TemporalAttention, self.remat, static_argnums=(2, 3)
        )
        convolution_type = layers.remat(
            temporal.TemporalConvolution, self.remat, static_argnums=(2, 3)
        )
        factorised_type = layers.remat(
            temporal.FactorisedConvolution, self.remat, static_argnums=(2, 4)
        )
        in_a_row_type = layers.remat(
            temporal.TemporalAttentionBlock, self.remat, static_argnums=(2, 4)
        )
        cross_type = layers.remat(attention.CrossAttention, self.remat, static_argnums=(4,))
        widths = [self.channels * m for m in self.channel_mult]
        last = len(widths) - 1

        by_block = self.skips == "block"
        blocks_down = self._blocks()
        temporal_levels = (
            self.attention_levels if self.temporal_levels is None else self.temporal_levels
        )

        # Of each level the number of frames, images included, and each one's condition: for the
        # image layers, and for those that mix frames.
        counts, conditions = [frames], [(embedding, of_motion)]
        for level in range(last):
            count, both = counts[-1], conditions[-1]
            if level in self.temporal_resize:
                both = tuple(
                    temporal.of_clip(
                        self.layout, vectors, count, num_images, lambda clip: clip[:, ::2]
                    )
                    for vectors in both
                )
                count = (count - num_images) // 2 + num_images
            counts.append(count)
            conditions.append(both)

        def block(h, width, level, name):
            make = block_type(width, self.norm_groups, self.dropout, self.dtype, name=name)
            return self.layout.place(make(h, conditions[level][0], not train))

        def attend(h, name, kind=self.spatial_attention):
            sizes = self._heads(h.shape[-1])
            if self.spatial_attention != "none":
                spatial = spatial_type(
                    *sizes, kind, self.norm_groups, self.dtype, name=f"{name}_spatial"
                )
                h = spatial(h)
            if tokens is None:
                return h
            cross = cross_type(
                *sizes, self.norm_groups, self.dtype, self.layout, name=f"{name}_text"
            )
            return cross(h, tokens, token_mask, num_images)

        def over_time(h, level, name):
            settings, name = (self.norm_groups, self.dtype, self.layout), f"{name}_temporal"
            sizes = self._heads(h.shape[-1])
            if self.temporal == "none":
                return h
            if self.temporal == "convolution":
                make = convolution_type(*settings, name=name)
            elif self.temporal == "attention":
                make = attention_type(*sizes, *settings, name=name)
            elif level < last:
                make = factorised_type(*settings, name=name)
            else:
                make = in_a_row_type(*sizes, self.temporal_depth, *settings, name=name)
            if space_time:
                return make(h, counts[level], conditions[level][1], num_images)
            return make(h, counts[level], num_images)

        def resize_time(h, level, doubles, name):
            if level not in self.temporal_resize:
                return h
            name = f"{name}_temporal"
            layer = temporal.TemporalResize(doubles, self.dtype, self.layout, name=name)
            return layer(h, counts[level + doubles], num_images)

        def mix(h, level, name):
            if level in self.attention_levels:
                h = attend(h, name)
            return over_time(h, level, name) if level in temporal_levels else h

        p = self.patch_size
        patches = [self._patches(z)]
        if self.low_res:
            patches.append(self._patches(self._low_res(cond, z)))
        h = jnp.concatenate(patches, axis=-1).astype(self.dtype)
        if self.coordinates:
            grid = jnp.broadcast_to(layers.coordinate_grid(*h.shape[1:3]), (*h.shape[:3], 2))
            h = jnp.concatenate([h, grid.astype(self.dtype)], axis=-1)
        h = layers.conv(self.channels, self.initial_kernel, dtype=self.dtype, name="input_conv")(h)
        if self.masked_video:
            known = self._patches(self._masked_video(cond, z)).astype(self.dtype)
            enter = layers.conv(
                self.channels,
                self.initial_kernel,
                dtype=self.dtype,
                zero=True,
                name="masked_video_conv",
            )
            h = h + enter(known)
        if self.initial_temporal:
            h = over_time(h, 0, "input")
        first = h

        skips = [h] if by_block else []
        for level, width in enumerate(widths):
            for i in range(blocks_down[level]):
                h = block(h, width, level, f"down_{level}_block_{i}")
                if by_block or i == blocks_down[level] - 1:
                    h = mix(h, level, f"down_{level}_attention_{i}")
                    skips.append(h)
            if level < last:
                name = f"down_{level}_resize"
                h = layers.Downsample(width, self.dtype, name=name)(h)
                h = resize_time(h, level, False, name)
                if by_block:
                    skips.append(h)

        h = block(h, widths[-1], last, "middle_block_0")
        h = over_time(attend(h, "middle_attention", kind="softmax"), last, "middle_attention")
        h = block(h, widths[-1], last, "middle_block_1")

        for level in reversed(range(len(widths))):
            width = widths[level] if by_block else widths[max(level - 1, 0)]
            blocks = blocks_down[level] + by_block
            for i in range(blocks):
                if by_block or i == 0:
                    h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, width, level, f"up_{level}_block_{i}")
                if by_block or i == blocks - 1:
                    h = mix(h, level, f"up_{level}_attention_{i}")
            if level:
                name = f"up_{level}_resize"
                h = layers.Upsample(width, self.dtype, name=name)(h)
                h = resize_time(h, level - 1, True, name)
        if not by_block:
            h = block(jnp.concatenate([h, first], axis=-1), widths[0], 0, "output_block")

        h = nn.swish(layers.group_norm(h.shape[-1], self.norm_groups, "output_norm")(h))
        # The last layer runs in float32 and starts at zero: the output is what the loss sees.
        features = self.out_channels * p * p
        out = functools.partial(layers.conv, dtype=jnp.float32, zero=True)
        found, h = h, out(features, name="output_conv")(h)
        if self.output_skip:
            gain = layers.dense(
                features * len(patches), dtype=jnp.float32, zero=True, name="output_gain"
            )
            gains = gain(nn.swish(embedding))[:, None, None]
            if self.output_gate:
                gates = out(p * p * self.output_gate * len(patches), name="output_gate")(found)
                gains = gains + jnp.repeat(gates, self.out_channels // self.output_gate, axis=-1)
            for part, of in zip(jnp.split(gains, len(patches), axis=-1), patches, strict=True):
                h = h + part * of
        h = self.layout.unfold(h, frames)
        return rearrange(h, "b f h w (p q c) -> b f (h p) (w q) c", p=p, q=p)

    @nn.nowrap
    def apply(self, variables: PyTree, *args: Any, mutable: Any = False, **kwargs: Any) -> Any:
        """As every module's, without drawing parameters that are there."""
        with layers.shapes_only(not mutable):
            return super().apply(variables, *args, mutable=mutable, **kwargs)

    @property
    def embedding_width(self) -> int:
        return self.embedding_dim or 4 * self.channels

    def _blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        if isinstance(self.num_res_blocks, int):
            return (self.num_res_blocks,) * len(self.channel_mult)
        return tuple(self.num_res_blocks)

    def _patches(self, video: Float[Array, "b f h w c"]) -> Float[Array, "bf h2 w2 pqc"]:
        p = self.patch_size
        return self.layout.fold(rearrange(video, "b f (h p) (w q) c -> b f h w (p q c)", p=p, q=p))

    def _low_res(self, cond: Cond, z: Array) -> Array:
        if "low_res" not in cond:
            raise ValueError(f"cond lacks low_res; it has: {', '.join(cond) or 'nothing'}")
        if cond["low_res"].shape != z.shape:
            raise ValueError(f"cond: low_res {cond['low_res'].shape} must have z's shape {z.shape}")
        return cond["low_res"]

    def _masked_video(self, cond: Cond, z: Array) -> Float[Array, "b f h w c1"]:
        """What is known of the video, zeros elsewhere, and, as a last channel, where."""
        if "mask" not in cond:
            return jnp.zeros((*z.shape[:-1], z.shape[-1] + 1), z.dtype)
        video, mask = cond["masked_video"], cond["mask"]
        if video.shape != z.shape or mask.shape != (*z.shape[:-1], 1):
            raise ValueError(
                f"cond: masked_video {video.shape} must have z's shape {z.shape}, and mask "
                f"{mask.shape} the same with one channel"
            )
        return jnp.concatenate([video * mask, mask], axis=-1).astype(z.dtype)

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def reach(self) -> int | None:
        """How many pixels away an output may depend on an input; None = anywhere in the frame."""
        if self.spatial_attention != "none" or self.norm_groups or self.coordinates:
            return None
        by_block, last = self.skips == "block", len(self.channel_mult) - 1
        steps = self.initial_kernel // 2 + 1 + (0 if by_block else 2) + 4 * 2**last
        for level, blocks in enumerate(self._blocks()):
            # Two convolutions a block, on both ways, and those of the resizing below this level.
            convolutions = 2 * (blocks + blocks + by_block) + 2 * (level < last)
            if self.temporal == "space_time" and level < last:
                convolutions += blocks + blocks + by_block
            steps += convolutions * 2**level
        return self.patch_size * (steps + 2**last)

    def _heads(self, channels: int) -> tuple[int, int]:
        if self.heads:
            return self.heads, self.head_dim
        return max(1, channels // self.head_dim), min(channels, self.head_dim)

    def _check(self, z: Array, num_images: int) -> None:
        if self.skips not in SKIPS:
            raise ValueError(f"skips = {self.skips!r}: allowed are {SKIPS}")
        if self.temporal not in TEMPORAL:
            raise ValueError(f"temporal = {self.temporal!r}: allowed are {TEMPORAL}")
        if len(self._blocks()) != len(self.channel_mult):
            raise ValueError(
                f"num_res_blocks = {self.num_res_blocks}: must be one number, or one for each of "
                f"the {len(self.channel_mult)} levels of channel_mult"
            )
        if z.ndim != 5:
            raise ValueError(f"z has shape {z.shape}: expected (batch, frames, height, width, c)")
        multiple = self.multiple
        for name, size in zip(("height", "width"), z.shape[2:4], strict=True):
            if size % multiple:
                raise ValueError(
                    f"{name} = {size} must be a multiple of {multiple} "
                    f"(patch_size {self.patch_size} x 2^{len(self.channel_mult) - 1} levels)"
                )
        if self.output_skip and z.shape[-1] != self.out_channels:
            raise ValueError(
                f"output_skip needs as many input channels ({z.shape[-1]}) as out_channels "
                f"({self.out_channels})"
            )
        if self.output_gate not in (0, 1, self.out_channels):
            raise ValueError(
                f"output_gate = {self.output_gate}: must be 0, 1 or out_channels "
                f"({self.out_channels})"
            )
        if self.output_gate and not self.output_skip:
            raise ValueError(
                f"output_gate = {self.output_gate}: is part of output_skip, which is False"
            )
        if not 0 <= num_images <= z.shape[1]:
            raise ValueError(f"num_images = {num_images}: the video has {z.shape[1]} frames")
        last = len(self.channel_mult) - 1
        if any(level not in range(last) for level in self.temporal_resize):
            raise ValueError(
                f"temporal_resize = {self.temporal_resize}: levels from 0 to {last - 1} can be "
                "followed by a coarser one"
            )
        clip = z.shape[1] - num_images
        if clip % 2 ** len(self.temporal_resize):
            raise ValueError(
                f"frames = {clip} must be a multiple of {2 ** len(self.temporal_resize)} "
                f"(halved after each level of temporal_resize {self.temporal_resize})"
            )
        pixels = z.shape[2] * z.shape[3] // multiple**2
        coarsest = clip // 2 ** len(self.temporal_resize) + num_images
        sizes = {
            "frames and images": z.shape[1],
            "frames and images, coarsest level": coarsest,
            "pixels, coarsest level": pixels,
        }
        for name, size in sizes.items():
            if size % self.layout.blocks:
                raise ValueError(
                    f"{name} = {size} must be a multiple of {self.layout.blocks}, the number of "
                    "blocks in which they are spread over devices"
                )
