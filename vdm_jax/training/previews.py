"""What a run shows while it trains: samples of a diffusion model, reconstructions of an
autoencoder, nothing of an image-text pair."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from vdm_jax.parallel import sharding
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.contrast import Contrast
from vdm_jax.stage.reconstruction import Reconstruction
from vdm_jax.training import state

Preview = Callable[[state.TrainState, Any], UInt8[np.ndarray, "n f h w c"] | None]
"""`(state, batch) -> videos`, of the averaged parameters; None = nothing is shown."""
_MOST_CLIPS = 8  # of a batch whose reconstructions are shown


def make_preview(
    stage, config, plan: sharding.Plan, frozen: Mapping[str, sharding.Frozen]
) -> Preview:
    """The preview of a run. Raises ValueError where a setting is not allowed or a word of
    train.sample_prompts is not known."""
    if isinstance(stage, Reconstruction):
        return _reconstructions(stage)
    if isinstance(stage, Contrast):
        return lambda current, batch: None
    return _samples(stage, config, plan, frozen)


def _samples(stage, config, plan: sharding.Plan, frozen: Mapping[str, sharding.Frozen]) -> Preview:
    """Samples of train.sample_prompts."""
    prompts = list(config.train.sample_prompts)
    if config.train.sample_every and prompts:
        try:
            stage.check_prompts(prompts)
        except ValueError as error:
            raise ValueError(f"train.sample_prompts: {error}") from None
    sampler = sampling.Sampler.from_config(
        stage,
        config.sample,
        batch_size=max(len(prompts), 1),
        frozen={name: part.params for name, part in frozen.items()},
        plan=plan,
    )

    def preview(current: state.TrainState, batch: Any) -> UInt8[np.ndarray, "n f h w c"] | None:
        del batch
        if not prompts:
            return None
        key = state.derive_key(config.train.seed, int(current.step), state.SAMPLE)
        return np.concatenate(list(sampler.stream(current.ema, key, prompts)))

    return preview


def _reconstructions(stage: Reconstruction) -> Preview:
    """The first clips of the batch, each with its reconstruction below it."""
    reconstruct = jax.jit(stage.reconstruct)

    def preview(current: state.TrainState, batch: Any) -> UInt8[np.ndarray, "n f h w c"]:
        found = reconstruct(current.ema, batch["video"][:_MOST_CLIPS])
        return np.concatenate([np.asarray(videos) for videos in found], axis=2)

    return preview
