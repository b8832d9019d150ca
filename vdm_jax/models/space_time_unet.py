"""The space-time U-Net of Lumiere (Bar-Tal et al. 2024, section 3.1): an image U-Net, inflated."""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from vdm_jax.models.blocks.inflation import FactorisedConvolution, TemporalAttentionBlock
from vdm_jax.models.blocks.resample import TemporalResize
from vdm_jax.models.blocks.temporal import apply_to_clip
from vdm_jax.models.condition import Cond, FramePositions
from vdm_jax.models.unet import Features
from vdm_jax.models.video_unet import VideoBlocks, VideoUNet


class SpaceTimeUNet(VideoUNet):
    """A `VideoUNet` whose frames are also halved and doubled, with Lumiere's blocks over time:
    factorised convolutions, and attention at the coarsest level.

    The image network is the `VideoUNet` of the same fields with `temporal = None`; its parameters
    have the same names here. At initialisation the network applied to a clip returns the image
    network's output for each frame. Where the network halves frames, it returns the output for the
    first of each group.

    Attributes:
      temporal_resize: the levels after which frames are halved, as height and width are.
      temporal_depth: layers of attention over time in a row.
    """

    temporal: None = None
    temporal_resize: tuple[int, ...] = ()
    temporal_depth: int = 1

    @nn.nowrap
    def make_blocks(
        self, logsnr: Array, cond: Cond, frames: int, num_images: int, train: bool
    ) -> "SpaceTimeBlocks":
        image = super().make_blocks(logsnr, cond, frames, num_images, train)
        # An image model has no use for words of motion, and its embedding hardly holds them. The
        # layers that mix frames embed the condition for themselves.
        positions = FramePositions()
        conditions = tuple(part for part in self.conditions if part != positions)
        embed = self.embedding((*conditions, positions), "condition_temporal")
        motion = [embed(logsnr, cond, frames, num_images)[0]]
        counts, vectors = [frames], [image.vectors[0]]

        def halved(folded: Array) -> Array:
            return apply_to_clip(self.layout, folded, frames, num_images, lambda clip: clip[:, ::2])

        for level in range(self.unet.last):
            parts = vectors[-1], motion[-1]
            if level in self.temporal_resize:
                parts = halved(parts[0]), halved(parts[1])
                frames = (frames - num_images) // 2 + num_images
            counts.append(frames)
            vectors.append(parts[0])
            motion.append(parts[1])
        fields = {field.name: getattr(image, field.name) for field in dataclasses.fields(image)}
        fields |= {"frames": tuple(counts), "vectors": tuple(vectors)}
        return SpaceTimeBlocks(**fields, motion=tuple(motion))

    @nn.nowrap
    def mixing_reach(self, level: int) -> int:
        return FactorisedConvolution.REACH if level < self.unet.last else 0

    @nn.nowrap
    def check(self, z: Array, num_images: int) -> None:
        super().check(z, num_images)
        last, halvings = self.unet.last, len(self.temporal_resize)
        if any(level not in range(last) for level in self.temporal_resize):
            raise ValueError(
                f"temporal_resize = {self.temporal_resize}: levels from 0 to {last - 1} can be "
                "followed by a coarser one"
            )
        clip = z.shape[1] - num_images
        if clip % 2**halvings:
            raise ValueError(
                f"frames = {clip} must be a multiple of {2**halvings} "
                f"(halved after each level of temporal_resize {self.temporal_resize})"
            )
        self.check_blocks({"frames and images, coarsest level": clip // 2**halvings + num_images})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceTimeBlocks(VideoBlocks):
    """The blocks of a `SpaceTimeUNet`.

    Attributes:
      motion: for each level the vector of each frame, folded, that layers which mix frames take.
    """

    network: SpaceTimeUNet
    motion: tuple[Float[Array, "_ _"], ...]

    def down(self, h: Features, level: int, features: int, name: str) -> Features:
        h = super().down(h, level, features, name)
        return self.resize_time(h, level, self.frames[level], name, doubles=False)

    def up(self, h: Features, level: int, features: int, name: str) -> Features:
        h = super().up(h, level, features, name)
        return self.resize_time(h, level - 1, self.frames[level], name, doubles=True)

    def resize_time(
        self, h: Features, level: int, frames: int, name: str, *, doubles: bool
    ) -> Features:
        """`frames` of a clip halved or doubled, if frames are halved after `level`."""
        network = self.network
        if level not in network.temporal_resize:
            return h
        resize = TemporalResize(doubles, network.dtype, network.layout, name=f"{name}_temporal")
        return resize(h, frames, self.num_images)

    def over_time(self, h: Features, level: int, name: str) -> Features:
        network, name = self.network, f"{name}_temporal"
        settings, places = network.settings, (network.dtype, network.layout)
        if level < network.unet.last:
            block = self.remat(FactorisedConvolution, (2, 4))(settings, *places, name=name)
        else:
            attention = self.remat(TemporalAttentionBlock, (2, 4))
            block = attention(settings, network.temporal_depth, *places, name=name)
        return block(h, self.frames[level], self.motion[level], self.num_images)
