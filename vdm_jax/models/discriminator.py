"""A discriminator of patches of clips, for the training of decoders."""

import flax.linen as nn
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.causal import frame_convolution

_SLOPE = 0.2  # of the leaky ReLUs


class PatchDiscriminator(layers.Whole):
    """A score of each patch of a clip, higher where it looks real: 3D convolutions of 3 x 3 x 3
    (Video LDM, Blattmann et al. 2023, section 3.1.1; patches as Isola et al. 2017).

    Each level halves height and width. Frames stay.

    Attributes:
      channels: of each level.
      norm_groups: of the normalisations.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    norm_groups: int = 8

    @nn.compact
    def __call__(self, clips: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 1"]:
        x = clips
        for level, width in enumerate(self.channels):
            x = _convolved(x, width, f"conv_{level}")
            if level:
                norm = layers.group_norm(width, self.norm_groups, f"norm_{level}")
                x = norm(x.reshape(-1, *x.shape[2:])).reshape(x.shape)
            x = nn.leaky_relu(x, _SLOPE)
            x = reduce(x, "b f (h p) (w q) c -> b f h w c", "mean", p=2, q=2)
        return _convolved(x, 1, "conv_out")

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of it."""
        return 2 ** len(self.channels)


def _convolved(x: Float[Array, "b f h w c"], features: int, name: str) -> Float[Array, "b f h w _"]:
    x = jnp.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
    return frame_convolution(features, 3, dtype=jnp.float32, name=name)(x)
