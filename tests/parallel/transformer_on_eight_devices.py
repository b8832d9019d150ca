"""Runs a video transformer, whose blocks are stacked, on eight virtual devices and on one, and
attention of rows that are spread over devices; prints JSON of how results and gradients differ. A
program of its own, because the number of devices is fixed when JAX starts."""

import functools
import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.video_transformer import VideoTransformer
from vdm_jax.parallel import sharding
from vdm_jax.parallel.mesh import make_mesh

NETWORK = VideoTransformer(
    settings=TransformerSettings(heads=2, head_dim=12, hidden=32),
    depth=3,
    in_channels=4,
    out_channels=4,
    time_features=8,
    text_width=8,
    remat="full",
)
BATCH = 4


class Part:
    """What a plan is made of."""

    def abstract_params(self):
        z, text = jnp.zeros((1, 1, 2, 2, 4)), {NETWORK.text: jnp.zeros((1, 1, 8))}
        return jax.eval_shape(NETWORK.init, jax.random.key(0), z, jnp.zeros(1), text)["params"]


def difference(found, wanted):
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def spread_attention(rng):
    """How attention of packed rows of 16 tokens over `context` differs from that on one device, in
    its outputs or gradients, by the way that the number of heads leads to."""
    segments = np.repeat([[0, 1, 2], [0, 0, 3]], [5, 7, 4], axis=1).astype(np.int32)
    report = {}
    for name, sizes, heads in (("ulysses", (2, 2, 2), 4), ("ring", (2, 1, 4), 2)):
        rows = rng.normal(size=(3, 2, 16, heads, 6)).astype(np.float32)
        axes = dict(zip(("fsdp", "tensor", "context"), sizes, strict=True))
        layout = sharding.MeshLayout(mesh=make_mesh({"data": 1, **axes}))

        def total(rows, layout):
            attended = layout.attend(*rows, segments)
            return (attended**2 * jnp.arange(6)).sum(), attended

        found, wanted = (
            jax.device_get(run(rows))
            for run in (
                jax.jit(jax.grad(functools.partial(total, layout=one), has_aux=True))
                for one in (layout, layers.ANYWHERE)
            )
        )
        report[name] = max(map(difference, found, wanted))
    return report


def main():
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(Part().abstract_params())
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    batch = {
        "z": rng.normal(size=(BATCH, 2, 4, 4, 4)).astype(np.float32),
        "logsnr": rng.normal(size=BATCH).astype(np.float32),
        "text": rng.normal(size=(BATCH, 3, 8)).astype(np.float32),
    }

    def loss(params, batch, plan=None):
        gathered = params if plan is None else plan.gather(params)
        network = NETWORK if plan is None else NETWORK.clone(layout=plan.layout())
        cond = {NETWORK.text: batch["text"]}
        return jnp.mean(network.apply({"params": gathered}, batch["z"], batch["logsnr"], cond) ** 2)

    wanted = jax.device_get(jax.jit(jax.value_and_grad(loss))(params, batch))
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    plan = sharding.Plan(
        mesh=mesh, parameters=sharding.plan_parameters(Part(), dict(mesh.shape), 0)
    )
    run = jax.jit(
        jax.value_and_grad(lambda params, batch: loss(params, batch, plan)),
        in_shardings=(plan.params, plan.batch),
        out_shardings=(plan.everywhere, plan.params),
    )
    found = jax.device_get(run(params, batch))

    cut = sum(
        plan.spec != plan.gathered
        for plan in jax.tree.leaves(plan.parameters, is_leaf=sharding.is_plan)
    )
    report = {
        "loss": difference(found[0], wanted[0]),
        "gradients": max(jax.tree.leaves(jax.tree.map(difference, found[1], wanted[1]))),
        "cut": cut,
        **spread_attention(rng),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
