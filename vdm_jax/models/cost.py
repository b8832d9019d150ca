"""Parameters and floating-point operations of a network, counted from shapes alone.

Operations are counted analytically, two for a multiply-add, for convolutions, linear maps and the
two products of attention. Normalisation, activations and resizing are left out. Nothing is computed
and no memory is taken, however large the network. Any linen module `(z, logsnr, cond, *,
num_images)` can be counted; a `network.Network` also names its parts.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.models import layers
from vdm_jax.models.condition import Cond
from vdm_jax.models.network import Network, Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelCost:
    """Size and cost of one part of a network, for one clip.

    Attributes:
      level: "condition", "input", "down 0", …, "middle", …, "up 0", "output".
      resolution: "height x width" of its features, empty if it has none.
      channels: of its features, 0 if they are not known.
      attention: the kinds of attention that it has.
      parameters: number of them.
      flops: floating-point operations of a forward pass.
    """

    level: str
    resolution: str
    channels: int
    attention: str
    parameters: int
    flops: int


def level_table(
    network: nn.Module, video_shape: Sequence[int], cond: Cond, num_images: int = 0
) -> list[LevelCost]:
    """One row for each part, in the order of computation, for a clip of `video_shape` (f, h, w, c).

    `cond` has the shapes of one clip's condition. The last `num_images` of the f frames are
    independent images.
    """
    if hasattr(network, "remat"):
        network = network.clone(remat="none")
    is_known = isinstance(network, Network)
    flops: dict[str, int] = collections.Counter()
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    stacked, traced = (network.stacked if is_known else {}), set()

    def part(submodule: str) -> str:
        return network.section(submodule) if is_known else submodule

    def count(call, args, kwargs, context):
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not module.path:
            return output
        name, times = part(module.path[0]), stacked.get(module.path[0], 1)
        if module.path[0] in stacked:
            # A scan traces its layer as often as it likes.
            times *= module.path not in traced
            traced.add(module.path)
        if isinstance(module, nn.Dense | nn.DenseGeneral | nn.Conv):
            flops[name] += times * 2 * math.prod(output.shape) * _fan_in(module, args[0].shape)
        elif hasattr(module, "attention_flops"):
            flops[name] += times * module.attention_flops(*args)
            kinds[name].append(module.LABEL)
        return output

    def forward(key, z, logsnr, cond):
        images = {"num_images": num_images} if num_images else {}
        with layers.shapes_only(), nn.intercept_methods(count):
            return network.init(key, z, logsnr, cond, **images)["params"]

    clip = jax.ShapeDtypeStruct((1, *video_shape), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = nn.meta.unbox(jax.eval_shape(forward, jax.random.key(0), clip, logsnr, cond))
    sizes: dict[str, int] = collections.Counter()
    for name, subtree in params.items():
        sizes[part(name)] += sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(subtree))
    sections = network.sections(video_shape) if is_known else None
    return [
        LevelCost(
            level=section.name,
            resolution=section.resolution,
            channels=section.channels,
            attention=" + ".join(dict.fromkeys(kinds[section.name])) or "-",
            parameters=sizes[section.name],
            flops=flops[section.name],
        )
        for section in sections or [Section(name=name) for name in {**sizes, **flops}]
    ]


def _fan_in(module: nn.Module, shape: Sequence[int]) -> int:
    if isinstance(module, nn.Conv):
        return math.prod(module.kernel_size) * shape[-1]
    axes = module.axis if isinstance(module, nn.DenseGeneral) else -1
    return math.prod(shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))
