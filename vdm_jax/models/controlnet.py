"""ControlNet (Zhang et al. 2023): a copy of a latent U-Net's way down and middle, which takes an
image of edges, depth or poses and adds to the features of the U-Net."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.condition import Cond, require
from vdm_jax.models.latent_unet import LatentEncoder, LatentUNet
from vdm_jax.models.unet import Features

Residuals = tuple[Features, tuple[Features, ...]]


class ControlNet(LatentEncoder):
    """z, log-SNR, condition and a hint to what is added to the features of a latent U-Net.

    Its blocks have the names and shapes of the U-Net's, see `copy_encoder`. All outputs start at
    zero.

    Attributes:
      hint_channels: of the hint.
      hint_widths: channels of the layers that bring the hint to z's size. The hint is higher and
        wider than z by 2 to the power of their number less one.
      pools: whether outputs are averaged over pixels, so that the hint says what and not where.
    """

    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    pools: bool = False

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        hint: Float[Array, "b f h2 w2 hint"],
        *,
        num_images: int = 0,
        train: bool = False,
    ) -> Residuals:
        """What is added to the middle and to the skips, in `UNet.encode`'s order.

        hint: in [0, 1] for published ControlNets, an image for each frame and each image of z.
        """
        self.check(z, num_images)
        self.check_hint(z, hint)
        blocks = self.make_blocks(logsnr, cond, z.shape[1], num_images, train)
        embed = _HintEmbedding(self.unet.channels, self.hint_widths, self.dtype, name="hint")
        h = self.input_features(z, cond) + embed(self.layout.fold(hint))
        h, skips = self.unet.encode(h, blocks)
        residuals = (
            self.residual(h, "residual_middle"),
            tuple(self.residual(skip, f"residual_{i}") for i, skip in enumerate(skips)),
        )
        return residuals

    @nn.nowrap
    def residual(self, h: Features, name: str) -> Features:
        h = layers.dense(h.shape[-1], dtype=self.dtype, zero=True, name=name)(h)
        return h.mean((1, 2), keepdims=True) if self.pools else h

    @nn.nowrap
    def check_hint(self, z: Array, hint: Array) -> None:
        """Raises ValueError if the hint's shape does not fit z's."""
        batch, frames, height, width = z.shape[:4]
        factor = 2 ** (len(self.hint_widths) - 1)
        wanted = (batch, frames, factor * height, factor * width, self.hint_channels)
        if hint.shape != wanted:
            raise ValueError(f"hint {hint.shape}: must have the shape {wanted} for z {z.shape}")


class _HintEmbedding(nn.Module):
    """Convolutions that bring a hint to z's size. The last starts at zero."""

    features: int
    widths: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hint: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 _"]:
        def conv(width: int, name: str, **options: Any) -> nn.Conv:
            return layers.conv(width, dtype=self.dtype, name=name, **options)

        h = nn.swish(conv(self.widths[0], "conv_in")(hint.astype(self.dtype)))
        for i, (width, wider) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            h = nn.swish(conv(width, f"conv_{2 * i}")(h))
            h = nn.swish(conv(wider, f"conv_{2 * i + 1}", stride=2)(h))
        return conv(self.features, "conv_out", zero=True)(h)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """A ControlNet in a U-Net, as a `latent_unet.Control`. Its parameters are the U-Net's
    `control_HINT`.

    Attributes:
      network: the ControlNet.
      hint: the key of the condition that holds its hint. Where `cond["keep_" + hint]` (b,) is
        False, nothing is added; all are kept if it is absent.
      scale: of what is added.
      guess: whether the finer levels are scaled down, from 1 at the middle to 0.1 at the first
        features. With it, a network without a prompt guesses the content of the hint. The paper's
        guess mode also adds nothing to the branch without condition: its `keep_` is False.
    """

    network: ControlNet
    hint: str
    scale: float = 1.0
    guess: bool = False

    @property
    def name(self) -> str:
        return f"control_{self.hint}"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.hint,)

    def __call__(
        self,
        network: LatentUNet,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        *,
        num_images: int,
        train: bool,
    ) -> Residuals:
        (hint,) = require(cond, self.hint)
        places = {"layout": network.layout, "remat": network.remat, "dtype": network.dtype}
        controlnet = self.network.clone(parent=network, name=self.name, **places)
        middle, skips = controlnet(z, logsnr, cond, hint, num_images=num_images, train=train)
        scales = self.scales(len(skips))
        kept = jnp.asarray(cond.get(f"keep_{self.hint}", jnp.ones(z.shape[0], bool)))
        kept = repeat(kept.astype(network.dtype), "b -> b f 1 1 1", f=z.shape[1])
        kept = network.layout.fold(kept)

        def scaled(h: Features, scale: float) -> Features:
            return scale * kept * h

        return (
            scaled(middle, scales[-1]),
            tuple(scaled(skip, scale) for skip, scale in zip(skips, scales[:-1], strict=True)),
        )

    def scales(self, skips: int) -> list[float]:
        """The scale of each skip and, last, of the middle."""
        if not self.guess or self.network.pools:
            return [self.scale] * (skips + 1)
        return [self.scale * math.pow(10.0, i / skips - 1.0) for i in range(skips + 1)]


def copy_encoder(controlnet: Mapping[str, Any], unet: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a ControlNet with those of a U-Net in place of its copy of the way down and
    the middle. Training a ControlNet starts from them (Zhang et al. 2023, section 3.1)."""
    return {name: unet.get(name, params) for name, params in controlnet.items()}
