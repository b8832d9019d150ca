"""Depth of videos by a frozen network: a source of depth for training and for editing."""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.models.vision.depth_anything import DepthAnything, DepthImages
from vdm_jax.stage.protocols import Frozen

DEPTH_ESTIMATOR = "depth_estimator"  # the name of its parameters in `Frozen`
_AT_ONCE = 4  # frames, whose attention is what takes memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthEstimator:
    """A frozen estimator of depth; its parameters are `frozen["depth_estimator"]`.

    Attributes:
      network: the estimator.
      prepare: what it is given of an image.
    """

    network: DepthAnything
    prepare: DepthImages = DepthImages()

    def __call__(
        self, video: Float[Array, "b f h w 3"], frozen: Frozen
    ) -> Float[Array, "b f h w 1"]:
        """The depth of videos in [-1, 1]: from 0, the farthest of each video, to 1, the nearest.
        Frames are estimated one by one. Raises ValueError where the parameters are missing."""
        if DEPTH_ESTIMATOR not in frozen:
            raise ValueError(
                f"frozen: lacks {DEPTH_ESTIMATOR!r}, the parameters of the depth estimator; it "
                f"has: {', '.join(sorted(frozen)) or 'none'}"
            )

        def one(frame: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
            images = self.prepare(frame[None])
            found = self.network.apply({"params": frozen[DEPTH_ESTIMATOR]}, images)[0]
            return jax.image.resize(found, frame.shape[:2], "linear")

        frames = rearrange(video, "b f h w c -> (b f) h w c")
        found = jax.lax.map(one, frames, batch_size=_AT_ONCE)
        if self.network.config.max_depth:  # metres
            found = 1 / jnp.maximum(found, 1e-3)
        return near_bright(rearrange(found, "(b f) h w -> b f h w 1", f=video.shape[1]))


def near_bright(inverse: Float[Array, "b f h w 1"]) -> Float[Array, "b f h w 1"]:
    """Inverse depth of any scale and shift, from 0, the farthest of each video, to 1, the nearest;
    0 where all is equally far."""
    axes = (1, 2, 3, 4)
    far, near = inverse.min(axes, keepdims=True), inverse.max(axes, keepdims=True)
    return (inverse - far) / jnp.where(near > far, near - far, 1.0)
