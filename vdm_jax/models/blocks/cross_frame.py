"""Self-attention that takes its keys and values from other frames of the clip.

The attention has the parameters of the image network, so that an image model is switched at
sampling time: `network.clone(slots=Slots(self_attention=CrossFrame(frames="first")))`, or
`attending` for a U-Net together with its ControlNets.
"""

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Int

from vdm_jax.models.blocks.slots import ClipContext, Place
from vdm_jax.models.blocks.temporal import apply_to_clip
from vdm_jax.models.blocks.transformer import Heads, SelfAttention
from vdm_jax.models.ops import attention

OWN, FIRST, FIRST_AND_PREVIOUS, ALL = "own", "first", "first_and_previous", "all"
KINDS = (OWN, FIRST, FIRST_AND_PREVIOUS, ALL)
# Up to so many frames are copied for each frame of queries, and all frames attend at once.
_COPIED = 2

Network = TypeVar("Network", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossFrame:
    """A slot for `Slots.self_attention`: the frames whose pixels a frame attends to.

    Attributes:
      frames: own: the frame itself, as in the image network. first: the first frame
        (Text2Video-Zero, Khachatryan et al. 2023, eq. 5). first_and_previous: the first and the one
        before, which are the same for the first two frames (Tune-A-Video, Wu et al. 2023, eq. 4).
        all: every frame of the clip (ControlVideo, Zhang et al. 2023, eq. 3). A tuple: the frames
        of these numbers, negative ones from the end, such as (0, -1).
    """

    frames: str | tuple[int, ...] = FIRST

    def __post_init__(self):
        if isinstance(self.frames, str):
            if self.frames not in KINDS:
                raise ValueError(
                    f"frames = {self.frames!r}: allowed are {', '.join(KINDS)}, or a tuple of "
                    "numbers of frames"
                )
        elif not self.frames:
            raise ValueError("frames = (): needs at least one frame to attend to")

    def __call__(self, place: Place) -> SelfAttention:
        """The attention at a place."""
        if self.frames == OWN:
            return SelfAttention.at(place)
        return CrossFrameAttention(
            place.heads, place.dtype, place.layout, cross_frame=self, name=place.name
        )

    def table(self, frames: int) -> Int[np.ndarray, "f k"]:
        """The numbers of the frames that each of `frames` frames attends to.

        Raises ValueError where the clip has no frame of such a number.
        """
        every = np.arange(frames)
        if self.frames == OWN:
            return every[:, None]
        if self.frames == FIRST:
            return np.zeros((frames, 1), int)
        if self.frames == FIRST_AND_PREVIOUS:
            return np.stack([np.zeros(frames, int), np.maximum(every - 1, 0)], axis=1)
        keys = every if self.frames == ALL else np.array(self.frames)
        if outside := [int(key) for key in keys if not -frames <= key < frames]:
            raise ValueError(
                f"frames = {self.frames}: {', '.join(map(str, outside))}: a clip of {frames} "
                f"frames has the numbers {-frames} to {frames - 1}"
            )
        return np.tile(keys % frames, (frames, 1))


class CrossFrameAttention(SelfAttention):
    """Self-attention whose keys and values are those of the frames in `cross_frame`. Images that
    are appended to a clip attend to themselves.

    The memory is linear in the number of frames, also where every frame attends to all.
    """

    cross_frame: CrossFrame = CrossFrame()
    LABEL = "frames"

    def attention_flops(self, h: Array, context: ClipContext) -> int:
        """Operations of the two products for `h` (n, p, c), without the projections."""
        images = context.num_images
        clip = context.frames - images
        attended = self.cross_frame.table(clip).size + images  # pairs of frames in a clip
        return 4 * (h.shape[0] // context.frames) * attended * h.shape[1] ** 2 * h.shape[2]

    @nn.nowrap
    def attend(self, q: Heads, k: Heads, v: Heads, context: ClipContext) -> Heads:
        """Attention of all queries; a row of `q`, `k` and `v` is a frame."""
        stacked = jnp.stack([q, k, v], axis=1)

        def clips(stacked: Array) -> Array:
            q, k, v = (stacked[:, :, i] for i in range(3))
            return attend_across(q, k, v, self.cross_frame.table(q.shape[1]))

        def images(stacked: Array) -> Array:
            batch = len(stacked)
            q, k, v = (rearrange(stacked[:, :, i], "b f ... -> (b f) ...") for i in range(3))
            return rearrange(attention.attend_pixels(q, k, v), "(b f) ... -> b f ...", b=batch)

        frames, num_images = context.frames, context.num_images
        return apply_to_clip(self.layout, stacked, frames, num_images, clips, images)


def attend_across(q: Array, k: Array, v: Array, table: Int[np.ndarray, "f k"]) -> Array:
    """Attention of the pixels of each frame to those of the frames in its row of `table`.

    Args:
      q, k, v: (b, f, pixels, heads, d).
      table: numbers of frames, the same number for each.
    """
    frames, attended = table.shape

    def joined(x: Array) -> Array:
        return rearrange(x, "... k p h d -> ... (k p) h d")

    if attended <= _COPIED:
        keys, values = (joined(x[:, table]) for x in (k, v))
        folded = (rearrange(x, "b f ... -> (b f) ...") for x in (q, keys, values))
        return rearrange(attention.attend_tokens(*folded), "(b f) ... -> b f ...", f=frames)

    def frame(row: tuple[Array, Array]) -> Array:  # one after the other: linear memory
        q, numbers = row
        return attention.attend_pixels(q, joined(k[:, numbers]), joined(v[:, numbers]))

    return jnp.moveaxis(jax.lax.map(frame, (jnp.moveaxis(q, 1, 0), jnp.asarray(table))), 0, 1)


def attending(
    network: Network, frames: CrossFrame, *, controls: CrossFrame | None = None
) -> Network:
    """A latent U-Net, or a ControlNet, with the same parameters whose frames attend across frames.

    Args:
      network: a `LatentUNet` or a `ControlNet`.
      frames: what the frames of the network attend to.
      controls: the same for its ControlNets; None = they stay as they are.
    """
    changes: dict[str, Any] = {
        "slots": dataclasses.replace(network.slots, self_attention=frames),
    }
    if controls is not None:
        changes["controls"] = tuple(
            dataclasses.replace(control, network=attending(control.network, controls))
            for control in network.controls
        )
    return network.clone(**changes)
