"""The program of a sampler: z from noise, step by step, and videos from z."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from vdm_jax.diffusion.measurements import Mask
from vdm_jax.parallel import host_memory, sharding
from vdm_jax.stage.protocols import Frozen, Space
from vdm_jax.stage.space import from_uint8, to_uint8
from vdm_jax.stage.watching import Callback, Preview

PREVIEWS = 8  # a batch


def compile_sampler(
    sampler: Any, callback: Callback | None = None, preview: Preview | None = None
) -> Callable:
    """The jitted function that draws a batch of n samples.

    Args:
      sampler: a `stage.sampler.Sampler`.
      callback, preview: see its `stream`.

    Returns (params, frozen, key, indices [n], cond, start, known) -> (samples [n, ...],
    finite [n]). cond has n rows; start and known too, or are None. Samples are uint8 videos, or
    what the stage makes. finite says of each whether its values are finite.
    """
    stage, space = sampler.stage, sampler.stage.space

    def draw(
        params: PyTree,
        frozen: PyTree,
        key: Key[Array, ""],
        index: Array,
        cond: PyTree,
        start: PyTree,
        known: PyTree,
    ) -> Array:
        key = jax.random.fold_in(key, index)
        start_key, steps_key = jax.random.split(key)
        cond, start, known = jax.tree.map(lambda leaf: leaf[None], (cond, start, known))
        if start is not None and jnp.issubdtype(start.dtype, jnp.floating):
            z = start
        elif start is not None:
            clean = space.encode(from_uint8(start), frozen)
            z = dataclasses.replace(sampler.noise, scale=1.0).draw(start_key, clean.shape)
            z = stage.process.add_noise(clean, z, sampler.logsnrs()[:1])
        else:
            z = sampler.noise.draw(start_key, (1, *sampler.z_shape))
        cond = stage.begin(cond, 1, jax.random.fold_in(key, 2), sampler.settings, frozen)
        if known is not None and not space.pixels:
            known = _known_in_z(space, known, frozen)
        denoiser, rule = sampler.denoiser_and_rule(params, known, frozen)
        watch = None
        if preview is not None:
            watch = _watch(preview, sampler.steps, sampler.plan, space, frozen)
        return sampler.run(steps_key, denoiser, rule, z, cond, callback, watch)

    def decode(frozen: PyTree, z: Array) -> tuple[Array, Array]:
        video = space.decode(z, frozen)[0]
        return stage.samples(video), jnp.all(jnp.isfinite(video))

    spread = {} if sampler.plan is None else {"spmd_axis_name": sharding.BATCH_AXES}
    draw_many = jax.vmap(draw, in_axes=(None, None, None, 0, 0, 0, 0), **spread)
    decode_all = jax.vmap(decode, in_axes=(None, 0), **spread)

    def draw_all(params: PyTree, frozen: PyTree, key: Array, index: Array, *rows: PyTree) -> Array:
        if len(index) > 1:
            return draw_many(params, frozen, key, index, *rows)
        # Mapping traces all steps a second time, which takes as long as sampling one small clip.
        alone = jax.tree.map(lambda leaf: leaf[0], (index, *rows))
        return draw(params, frozen, key, *alone)[None]

    def sample(params: PyTree, frozen: PyTree, *rest: PyTree) -> tuple[Array, Array]:
        z = draw_all(params, host_memory.on_device(frozen, sampler.frozen), *rest)
        if not host_memory.is_stored(sampler.frozen):
            return decode_all(frozen, z)
        return _decode_late(decode_all, frozen, sampler.frozen, z)

    if (plan := sampler.plan) is None:
        return jax.jit(sample, compiler_options=_compiler_options(jax.default_backend()))
    batch = (plan.batch,) * 4
    return jax.jit(
        sample,
        in_shardings=(plan.params, None, plan.everywhere, *batch),
        # Whole on every process: whichever writes files has what it needs.
        out_shardings=plan.everywhere,
        compiler_options=sharding.compiler_options(plan.mesh)
        or _compiler_options(plan.mesh.devices.flat[0].platform),
    )


def _compiler_options(platform: str) -> dict[str, str] | None:
    """Options of the compiler for a sampler on one platform; the user's XLA_FLAGS go before."""
    level = "xla_backend_optimization_level"
    if platform != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    # Convolutions and products are calls into libraries. LLVM's further effort with the loops
    # between them takes a quarter to a third of the compile time, and no step gets faster.
    return {level: "1"}


def _decode_late(decode: Callable, frozen: PyTree, stored: PyTree, z: Array) -> tuple[Array, Array]:
    """`decode(frozen, z)` with copies of the parameters on the device that do not exist before z.

    They are made in a branch: elsewhere XLA starts to copy at once, and the copies would take
    memory during all steps. Where no z is finite, nothing is decoded.
    """

    def finite(frozen: PyTree, z: Array) -> tuple[Array, Array]:
        return decode(host_memory.on_device(frozen, stored), z)

    def not_finite(frozen: PyTree, z: Array) -> tuple[Array, Array]:
        shapes = jax.eval_shape(finite, frozen, z)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(jnp.isfinite(z).any(), finite, not_finite, frozen, z)


def _known_in_z(space: Space, known: Any, frozen: Frozen) -> Any:
    """What is known of latents where pixels of a video are known, a `stage.sampler.Known` each.
    Raises ValueError."""
    mask = known.measurement
    if not isinstance(mask, Mask) or jnp.shape(mask.known)[-1] != 1:
        raise ValueError(
            f"known: a {type(mask).__name__}: this stage's z are latents, of which only masks of "
            "whole pixels or frames can be known"
        )
    pixels = jnp.broadcast_to(jnp.asarray(mask.known) != 0, (*known.y.shape[:-1], 1))
    in_z = space.encode_mask(pixels.astype(jnp.float32)) != 0
    z = space.encode(jnp.where(pixels, known.y, 0.0), frozen)
    return dataclasses.replace(known, measurement=Mask(known=in_z), y=jnp.where(in_z, z, 0.0))


def _watch(
    preview: Preview,
    steps: int,
    plan: sharding.Plan | None,
    space: Space,
    frozen: Frozen,
) -> Callable[[Array, Array], None]:
    """What `samplers.sample` calls to have `preview` called."""
    every = -(-steps // PREVIEWS)

    def tell(step: Array, z: Array, frozen: Frozen) -> None:
        pixels = to_uint8(space.preview(z, frozen))
        if plan is not None:
            pixels = jax.lax.with_sharding_constraint(pixels, plan.everywhere)
        jax.debug.callback(
            lambda step, pixels: preview(int(step), steps, np.asarray(pixels)), step, pixels
        )

    # Samples are mapped over; a callback that is mapped is called for each, this for all at once.
    # The frozen parameters are an argument: a function with its own mapping cannot capture them.
    @jax.custom_batching.custom_vmap
    def report(step: Array, x: Array, frozen: Frozen) -> Array:
        tell(step, x, frozen)
        return step

    @report.def_vmap
    def report_all(
        size: int, batched: Any, step: Array, x: Array, frozen: Frozen
    ) -> tuple[Array, bool]:
        tell(step, x[:, 0], frozen)
        return step, False

    def watch(step: Array, x: Array) -> None:
        jax.lax.cond(step % every == 0, report, lambda step, *_: step, step, x, frozen)

    return watch
