"""Runs one stage on eight virtual devices in several meshes and on one; prints JSON of how the
results differ. A program of its own, because the number of devices is fixed when JAX starts."""

import concurrent.futures
import functools
import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)

import jax
import numpy as np
import optax

from vdm_jax import systems
from vdm_jax.parallel import sharding
from vdm_jax.stage import sampler as sampling
from vdm_jax.systems import distillation, vdm
from vdm_jax.training import optimizer, state, step

BATCH = 8


def make_config():
    config = vdm.default_config()
    config.model.channels = 8
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (0,)
    config.model.head_dim = 4
    config.model.norm_groups = 2
    config.model.embedding_dim = 16
    config.model.skips = "level"
    config.model.dtype = "float32"
    config.model.remat = "full"
    config.text.encoder = "words"
    config.text.vocabulary = ("left", "right")
    config.text.vocabulary_size = 2
    config.text.max_length = 2
    config.data.num_frames = 4
    config.data.image_frames = 4
    config.data.image_size = 4
    config.train.batch_size = BATCH
    config.train.warmup_steps = 0
    config.train.clip_norm = 0.0
    config.sample.sampler = "ancestral"  # noise too must not depend on the mesh
    config.sample.steps = 2
    config.sample.guidance = 2.0
    config.sample.batch_size = BATCH
    return config


def make_batch(stage, image_frames):
    random = np.random.default_rng(0)
    batch = {}
    for name, leaf in stage.abstract_batch(BATCH, image_frames).items():
        high = {"uint8": 256, "int32": 4, "bool": 2}[leaf.dtype.name]
        batch[name] = random.integers(0, high, leaf.shape).astype(leaf.dtype)
        if leaf.dtype == bool:
            batch[name][..., 0] = True  # attention to no token at all is undefined
    return batch


SINGLE = dict.fromkeys(("data", "fsdp", "tensor", "context"), 1)


@functools.cache
def new_params(*mesh):
    """What a run starts from, on one device or a mesh of (axis, size) pairs; compiling the random
    numbers takes its time."""
    config = make_config()
    stage = systems.build(config)
    tx = optimizer.make_optimizer(config.train)
    return jax.device_get(
        state.create_state(stage, tx, 0, make_plan(stage, dict(mesh or SINGLE.items()))).params
    )


def train(mesh, accumulate=1):
    """One update: its loss, gradients (Adam's first moment at step 1 over 0.1), and new state."""
    config = make_config()
    config.train.accumulate = accumulate
    stage = systems.build(config)
    plan = make_plan(stage, mesh)
    tx = optimizer.make_optimizer(config.train)
    current = state.from_params(stage, jax.device_put(new_params(), plan.params), tx, plan)
    update = step.make_train_step(stage, tx, config, plan)
    before = place(current.params)
    batch = make_batch(stage, config.data.image_frames)
    current, metrics = update(current, plan.put_batch(batch, BATCH))
    assert place(current.params) == before, "an update moved parameters"
    moments = optax.tree_utils.tree_get(current.opt_state, "mu")
    assert place(moments) == before, "moments do not lie beside their parameters"
    cut = sum(any(spec) for spec in before)
    return {
        "loss": metrics["loss"],
        "gradients": jax.tree.map(lambda m: np.asarray(m) * 10, moments),
        "params": current.params,
        "ema": current.ema,
        "cut": cut,
    }


def sample(mesh):
    config = make_config()
    stage = systems.build(config)
    plan = make_plan(stage, mesh)
    # Not the parameters that a network starts from: its output would be zero.
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.02), new_params())
    sampler = sampling.Sampler.from_config(stage, config.sample, plan=plan)
    prompts = ["left", "right", "left left", "right right", "left right"]  # padded to eight
    stream = sampler.stream(jax.device_put(params, plan.params), jax.random.key(1), prompts)
    return np.concatenate(list(stream))


def distill(mesh):
    """One update of a student: its loss and gradients. The teacher lies on the mesh too."""
    config = make_config()
    ladder = distillation.default_config()
    ladder.train.update(batch_size=BATCH, warmup_steps=0, clip_norm=0.0)
    this = distillation.rounds(ladder.distill)[0]
    config = distillation.round_config(config.lock(), ladder, this, "teacher", "sha256:0")
    teacher = systems.build(make_config())
    stage = distillation.build_round(teacher, config, this)
    random = np.random.default_rng(0)

    def filled(of, plan):
        shapes = jax.eval_shape(of.init, jax.random.key(0))
        return jax.device_put(
            jax.tree.map(lambda x: random.normal(0, 0.1, x.shape).astype(x.dtype), shapes),
            plan.params,
        )

    plan, teacher_plan = make_plan(stage, mesh), make_plan(teacher, mesh)
    tx = optimizer.make_optimizer(config.train)
    current = state.from_params(stage, filled(stage, plan), tx, plan)
    frozen = sharding.Frozen(params=filled(teacher, teacher_plan), plan=teacher_plan)
    cut = sum(any(spec) for spec in place(frozen.params))
    update = step.make_train_step(stage, tx, config, plan, {"teacher": frozen})
    current, metrics = update(current, plan.put_batch(make_batch(stage, 0), BATCH))
    moments = optax.tree_utils.tree_get(current.opt_state, "mu")
    return {"loss": metrics["loss"], "gradients": jax.tree.map(np.asarray, moments), "cut": cut}


def make_plan(stage, mesh):
    count = int(np.prod(list(mesh.values())))
    return sharding.make_plan(stage, {**mesh, "min_fsdp_size": 1}, jax.devices()[:count])


def place(tree):
    return [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]


def difference(one, other):
    """The largest difference of two trees, as a share of the largest value of each array."""

    def share(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-6)

    return float(max(jax.tree.leaves(jax.tree.map(share, one, other))))


def main(names):
    axes = ("data", "fsdp", "tensor", "context")
    meshes = [dict(zip(axes, map(int, name.split("x")), strict=True)) for name in names]
    new_params()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # compiling is most of it
        trained = [pool.submit(train, mesh) for mesh in (SINGLE, *meshes)]
        halves = [pool.submit(train, mesh, 2) for mesh in (SINGLE, meshes[2])]
        sampled = [pool.submit(sample, mesh) for mesh in (SINGLE, meshes[2], meshes[3])]
        students = [pool.submit(distill, mesh) for mesh in (SINGLE, meshes[2])]
        created = pool.submit(new_params, *meshes[2].items())
        one, *others = [future.result() for future in trained]
        report = {}
        for name, other in zip(names, others, strict=True):
            keys = ("loss", "gradients", "params", "ema")
            report[name] = {key: difference(other[key], one[key]) for key in keys}
            report[name]["cut"] = other["cut"]
        alone, spread = (future.result() for future in halves)
        report["created"] = difference(created.result(), new_params())
        report["accumulate"] = difference(spread["gradients"], alone["gradients"])
        alone, spread = (future.result() for future in students)
        keys = ("loss", "gradients")
        report["distillation"] = {key: difference(spread[key], alone[key]) for key in keys}
        report["distillation"]["cut"] = spread["cut"]
        alone, *spread = (future.result() for future in sampled)
        # In levels of 255: rounding to uint8 may fall either way.
        report["samples"] = [
            int(np.max(np.abs(videos.astype(int) - alone.astype(int)))) for videos in spread
        ]
        report["sample_shape"] = list(alone.shape)
        report["sample_range"] = int(alone.max()) - int(alone.min())
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
