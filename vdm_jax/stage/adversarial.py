"""An autoencoder that is trained against a discriminator of clips."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Key, PyTree

from vdm_jax.models import layers
from vdm_jax.models.discriminator import PatchDiscriminator
from vdm_jax.stage.protocols import Batch, Frozen
from vdm_jax.stage.reconstruction import Reconstruction
from vdm_jax.stage.stage import NO_FROZEN

DISCRIMINATOR = "discriminator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialReconstruction(Reconstruction):
    """An autoencoder whose decoded clips are to be taken for real ones by a discriminator of their
    patches (Rombach et al. 2022, appendix G; of clips: Blattmann et al. 2023, section 3.1.1).

    Both are trained by one update, each by its own loss: the discriminator by the hinge loss, the
    autoencoder by its terms and, with a weight, the negative score of what it decodes. Beside the
    autoencoder's parameters are those of the discriminator, by the name "discriminator".

    Attributes:
      discriminator: of clips.
      adversarial: the weight.
    """

    discriminator: PatchDiscriminator
    adversarial: float

    def __post_init__(self):
        super().__post_init__()
        multiple, size = self.discriminator.multiple, self.view.shape[1:3]
        if any(side % multiple for side in size):
            raise ValueError(
                f"clips of {size[0]} x {size[1]} pixels: must be multiples of {multiple} for "
                f"model.discriminator = {self.discriminator.channels}"
            )

    def init(self, key: Key[Array, ""]) -> PyTree:
        """As `Reconstruction.init`, with the discriminator's."""
        own_key, key = jax.random.split(key)
        params = layers.init(self.discriminator, own_key, self._smallest_clip)
        return {**super().init(key), DISCRIMINATOR: nn.meta.unbox(params)}

    def abstract_params(self) -> PyTree:
        """As `Stage.abstract_params`."""
        params = layers.abstract_params(self.discriminator, self._smallest_clip)
        return {**super().abstract_params(), DISCRIMINATOR: params}

    def network_params(self, params: PyTree, frozen: Frozen) -> PyTree:
        """The autoencoder's."""
        del frozen
        return {name: part for name, part in params.items() if name != DISCRIMINATOR}

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], frozen: Frozen = NO_FROZEN
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The sum of both losses, averaged over the batch, and scalar metrics: those of
        `Reconstruction`, both losses, and the mean scores of real and of decoded patches."""
        seen, latents = self.seen(params, batch, key)
        loss, metrics = self.measured(seen, latents)
        critic = params[DISCRIMINATOR]
        real, decoded = self._clips(seen.images), self._clips(seen.decoded)
        # The autoencoder's loss trains no discriminator, and the discriminator's no autoencoder.
        fools = -self._score(jax.lax.stop_gradient(critic), decoded).mean()
        real_score = self._score(critic, real)
        score = self._score(critic, jax.lax.stop_gradient(decoded))
        hinge = 0.5 * (nn.relu(1 - real_score).mean() + nn.relu(1 + score).mean())
        return loss + self.adversarial * fools + hinge, {
            **metrics,
            "adversarial": fools,
            "discriminator": hinge,
            "score_real": real_score.mean(),
            "score_decoded": score.mean(),
        }

    @property
    def _smallest_clip(self) -> Float[Array, "1 1 h w c"]:
        side = self.discriminator.multiple
        return jnp.zeros((1, 1, side, side, self.view.shape[-1]))

    def _score(self, params: PyTree, clips: Float[Array, "b f h w c"]) -> Array:
        return self.discriminator.apply({"params": params}, clips)

    def _clips(self, images: Float[Array, "*n h w c"]) -> Float[Array, "b f h w c"]:
        if self.network.encodes_clips:
            return images
        return rearrange(images, "(b f) h w c -> b f h w c", f=self.view.shape[0])
