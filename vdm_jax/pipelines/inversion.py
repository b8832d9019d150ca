"""The noise z that a model makes videos of: inversion of its sampler (`diffusion/inversion.py`)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from vdm_jax.diffusion import inversion as inversions
from vdm_jax.diffusion.inversion import Inversion
from vdm_jax.parallel import host_memory
from vdm_jax.stage.sampler import Sampler
from vdm_jax.stage.space import from_uint8

Z = Float[np.ndarray, "n f2 h2 w2 c2"]


def invert(
    sampler: Sampler,
    params: PyTree,
    key: Key[Array, ""],
    videos: UInt8[np.ndarray, "n f h w c"],
    prompts: Sequence[str],
    inversion: Inversion,
    *,
    first: int = 0,
) -> Iterator[Z]:
    """Yields z where the sampler's grid begins, float32, a batch at a time.

    `sampler.stream(params, key, prompts, start=z)` samples the videos again.

    Args:
      sampler: whose grid, rule and guidance are inverted; on one device.
      params: of its stage.
      key: of conditions that draw noise, as in sampling.
      videos: of the sampler's size.
      prompts: one a video.
      inversion: how a step is done.
      first: number of the first video.

    Raises ValueError for a rule that draws noise or remembers earlier steps, for several devices,
    and for videos that do not fit; FloatingPointError where z is not finite.
    """
    yield from Inverter(sampler=sampler, inversion=inversion).stream(
        params, key, videos, prompts, first=first
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inverter:
    """`invert` of one sampler, compiled once for all parameters and videos."""

    sampler: Sampler
    inversion: Inversion

    @functools.cached_property
    def compiled(self) -> Callable:
        """(params, frozen, key, numbers of videos, videos, condition) -> z."""
        return _compile(self.sampler, self.inversion)

    def stream(
        self,
        params: PyTree,
        key: Key[Array, ""],
        videos: UInt8[np.ndarray, "n f h w c"],
        prompts: Sequence[str],
        *,
        first: int = 0,
    ) -> Iterator[Z]:
        """See `invert`."""
        sampler = self.sampler
        _check(sampler, videos, prompts)
        size = min(sampler.batch_size, len(videos))
        for at in range(0, len(videos), size):
            rows = np.minimum(np.arange(at, at + size), len(videos) - 1)
            cond = sampler.stage.encode([prompts[row] for row in rows])
            indices = np.arange(first + at, first + at + size, dtype=np.uint32)
            z = self.compiled(params, sampler.frozen, key, indices, videos[rows], cond)
            z = np.asarray(z[: len(videos) - at])
            if not np.isfinite(z).all():
                raise FloatingPointError(
                    f"z of videos {first + at}..{first + at + len(z) - 1} is not finite: the "
                    "parameters are beyond use, or the inversion needs more steps"
                )
            yield z


def _compile(sampler: Sampler, inversion: Inversion) -> Callable:
    stage = sampler.stage

    def one(params, frozen, key, index, video, cond):
        # As `Sampler.stream` does with the same number, so that conditions draw the same noise.
        key = jax.random.fold_in(key, index)
        video, cond = jax.tree.map(lambda leaf: leaf[None], (video, cond))
        cond = stage.begin(cond, 1, jax.random.fold_in(key, 2), sampler.settings, frozen)
        denoiser, rule = sampler.denoiser_and_rule(params, None, frozen)
        x = stage.space.encode(from_uint8(video), frozen)
        return inversions.invert(denoiser, inversion, rule, sampler.logsnrs(), x, cond)[0]

    def batch(params, frozen, *rest):
        frozen = host_memory.on_device(frozen, sampler.frozen)
        return jax.vmap(one, in_axes=(None, None, None, 0, 0, 0))(params, frozen, *rest)

    return jax.jit(batch)


def _check(sampler: Sampler, videos: UInt8[np.ndarray, "n f h w c"], prompts: Sequence[str]):
    if sampler.plan is not None and sampler.plan.mesh.size > 1:
        raise ValueError("invert: runs on one device; omit --mesh")
    inversions.check_rule(sampler.rule)
    if videos.shape[1:] != sampler.video_shape:
        raise ValueError(
            f"videos {list(videos.shape)}: must be {['n', *sampler.video_shape]}, the sampler's"
        )
    if len(prompts) != len(videos):
        raise ValueError(f"{len(prompts)} prompts, {len(videos)} videos: must be as many")
