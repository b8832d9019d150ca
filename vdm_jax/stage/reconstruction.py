"""The training of an autoencoder: what the training loop takes in the place of a stage."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Key, PyTree, Shaped, UInt8

from vdm_jax.models import layers
from vdm_jax.models.autoencoder import Autoencoder, Posterior
from vdm_jax.models.causal_autoencoder import CausalAutoencoder
from vdm_jax.stage.direct import Direct
from vdm_jax.stage.protocols import Batch, Frozen
from vdm_jax.stage.space import from_uint8, to_uint8
from vdm_jax.stage.stage import NO_FROZEN, matching
from vdm_jax.stage.view import View


class Reconstructed(NamedTuple):
    """What the terms of a loss compare: images, n h w c, with frames folded into the batch, or the
    clips, b f h w c, of an autoencoder of clips.

    Attributes:
      images: in [-1, 1].
      posterior: of the images' latents.
      decoded: the images decoded from latents that were drawn from the posterior.
      weights: of each pixel's errors; None = 1.
    """

    images: Float[Array, "*n h w c"]
    posterior: Posterior
    decoded: Float[Array, "*n h w c"]
    weights: Float[Array, "*n h w 1"] | None = None

    def mean(self, errors: Float[Array, "*n h w c"]) -> Float[Array, ""]:
        """The mean of weighted errors."""
        return (errors if self.weights is None else self.weights * errors).mean()


def absolute_error(seen: Reconstructed) -> Float[Array, ""]:
    """The mean absolute error of a pixel's value, weighted."""
    return seen.mean(jnp.abs(seen.decoded - seen.images))


def squared_error(seen: Reconstructed) -> Float[Array, ""]:
    """The mean squared error of a pixel's value, weighted."""
    return seen.mean(jnp.square(seen.decoded - seen.images))


def kl_divergence(seen: Reconstructed) -> Float[Array, ""]:
    """KL(posterior || N(0, 1)) in nats, summed over the latents of an image, or of a clip, and
    divided by the number of its pixels' values (Rombach et al. 2022, appendix G: both sums are over
    an image).

    Raises ValueError for an autoencoder whose posterior has no variance.
    """
    mean, log_variance = seen.posterior
    if log_variance is None:
        raise ValueError("the KL term: this autoencoder's latents have no variance; leave it out")
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
    return divergence.sum() / seen.images.size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One weighted part of the loss.

    Attributes:
      name: of its metric.
      function: to a scalar.
      weight: its factor in the loss.
    """

    name: str
    function: Callable[[Reconstructed], Float[Array, ""]]
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Direct):
    """An autoencoder, and the loss by which it is trained.

    It has the methods of `Stage` that training calls. Each frame of a clip is an example, or each
    clip where the network is one of clips.

    Attributes:
      network: one of `models.autoencoder`, or a `CausalAutoencoder`.
      view: how clips are made from the data's.
      terms: of the loss, which is their weighted sum.
      foreground: added to the weight of errors, 1, where the batch's "mask" is not 0: small objects
        else count little beside their background. 0 = the batch has no mask.
      train_only, new: as in `Stage`.
    """

    network: Autoencoder | CausalAutoencoder
    view: View
    terms: tuple[Term, ...]
    foreground: float = 0.0
    train_only: str = ""
    new: str = ""
    text_encoder = None
    noun = "an autoencoder"

    def __post_init__(self):
        factor, (_, height, width, channels) = self.network.factor, self.view.shape
        if height % factor or width % factor:
            raise ValueError(
                f"clips of {height} x {width} pixels: must be multiples of {factor}, the "
                "autoencoder's factor"
            )
        if channels != self.network.in_channels:
            raise ValueError(
                f"clips of {channels} channels: the autoencoder has {self.network.in_channels}"
            )
        if self.network.encodes_clips:
            self.network.check((1, *self.view.shape))
        if self.view.crop:
            raise ValueError(f"crop = {self.view.crop}: an autoencoder is trained on whole frames")

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Parameters (float32), drawn from `key`."""
        return nn.meta.unbox(layers.init(self.network, key, self.network.smallest))

    def abstract_params(self) -> PyTree:
        """As `Stage.abstract_params`."""
        return self.network.abstract_params()

    def trained(self, tree: PyTree) -> PyTree:
        """As `Stage.trained`."""
        return matching(tree, self.train_only)

    def abstract_batch(self, batch_size: int, image_frames: int = 0) -> Batch:
        """Shapes and dtypes of a training batch."""
        del image_frames
        batch = {"video": jax.ShapeDtypeStruct((batch_size, *self.clip_shape), np.uint8)}
        if self.foreground:
            shape = (batch_size, *self.clip_shape[:3], 1)
            batch["mask"] = jax.ShapeDtypeStruct(shape, np.uint8)
        return batch

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], frozen: Frozen = NO_FROZEN
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The training loss, averaged over the batch, and scalar metrics: each term, the PSNR in dB
        of the decoded images, and the latents' mean and deviation."""
        del frozen
        return self.measured(*self.seen(params, batch, key))

    def seen(
        self, params: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Reconstructed, Float[Array, "*n h2 w2 c2"]]:
        """A batch encoded and decoded, and the latents that were drawn."""
        images, posterior = self._images(batch["video"]), self.posterior(params, batch["video"])
        latents = posterior.sample(key)
        decoded = self._apply(params, latents, method="decode").astype(jnp.float32)
        return Reconstructed(images, posterior, decoded, self._weights(batch)), latents

    def measured(
        self, seen: Reconstructed, latents: Float[Array, "*n h2 w2 c2"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """What `loss` returns."""
        values = {term.name: term.function(seen) for term in self.terms}
        loss = sum(term.weight * values[term.name] for term in self.terms)
        # Of an error of all values together; a peak of 2, from -1 to 1.
        squares = jnp.square(seen.decoded - seen.images).mean()
        psnr = 10 * jnp.log10(4.0 / jnp.maximum(squares, 1e-10))
        moments = {"latent_mean": latents.mean(), "latent_std": latents.std()}
        return loss, {**values, "psnr": psnr, **moments}

    def posterior(self, params: PyTree, video: UInt8[Array, "b f h w c"]) -> Posterior:
        """The distribution of the latents of clips."""
        return self._apply(params, self._images(video), method="encode")

    def reconstruct(
        self, params: PyTree, video: UInt8[Array, "b f h w c"]
    ) -> tuple[UInt8[Array, "b f height width c"], UInt8[Array, "b f height width c"]]:
        """Clips of the data as the autoencoder sees them; and these encoded to their most likely
        latents and decoded."""
        latents = self.posterior(params, video).mode()
        decoded = to_uint8(self._apply(params, latents, method="decode"))
        if not self.network.encodes_clips:
            decoded = rearrange(decoded, "(b f) h w c -> b f h w c", b=len(video))
        return to_uint8(self.view.frames(from_uint8(video))), decoded

    def _weights(self, batch: Batch) -> Float[Array, "*n h w 1"] | None:
        if not self.foreground:
            return None
        if "mask" not in batch:
            raise ValueError(
                f"loss.foreground = {self.foreground}: the batch lacks 'mask'; set data.extras"
            )
        mask = (jnp.asarray(batch["mask"]) != 0).astype(jnp.float32)
        return 1.0 + self.foreground * self._examples(self.view.frames(mask))

    def _examples(self, video: Shaped[Array, "b f h w c"]) -> Shaped[Array, "*n h w c"]:
        """Clips as the network takes them."""
        if self.network.encodes_clips:
            return video
        return rearrange(video, "b f h w c -> (b f) h w c")

    def _images(self, video: UInt8[Array, "b f h w c"]) -> Float[Array, "*n height width c"]:
        if video.shape[1:] != self.clip_shape:
            raise ValueError(
                f"batch: video has shape {video.shape[1:]}, the autoencoder's is {self.clip_shape} "
                "(frames, height, width, channels)"
            )
        return self._examples(self.view.frames(from_uint8(video)))

    def _apply(self, params: PyTree, *args: Any, method: str) -> Any:
        if method == "decode" and not self.network.encodes_clips:
            args = (*args, self.view.shape[0])
        return self.network.apply({"params": params}, *args, method=method)
