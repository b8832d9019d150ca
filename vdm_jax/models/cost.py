"""Parameters and floating-point operations of a network, counted from shapes alone.

Operations are counted analytically, two a multiply-add, for convolutions, linear maps and the
two products of attention; normalisation, activations and resizing are left out. Nothing is
computed and no memory is taken, however large the network.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.models import attention
from vdm_jax.models.conditioning import Cond
from vdm_jax.models.unet3d import UNet3D


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelCost:
    """What one level of a U-Net holds and costs, for one clip.

    Attributes:
      level: "condition", "input", "down 0", …, "middle", …, "up 0", "output".
      resolution: "height x width" that it works at, empty for the condition.
      channels: of its features.
      attention: which kinds it has.
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
    network: UNet3D, video_shape: Sequence[int], cond: Cond, num_images: int = 0
) -> list[LevelCost]:
    """One row a level, in the order of computation, for a clip of `video_shape` (f, h, w, c).

    `cond` gives the shapes of the condition of one clip; of the f frames the last `num_images` are
    independent images.
    """
    network = network.clone(remat="none")
    cost: dict[str, int] = collections.Counter()
    kinds: dict[str, list[str]] = collections.defaultdict(list)

    def count(call, args, kwargs, context):
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not module.path:
            return output
        level = _level(module.path[0])
        if isinstance(module, nn.Dense | nn.DenseGeneral | nn.Conv):
            cost[level] += 2 * math.prod(output.shape) * _fan_in(module, args[0].shape)
        elif isinstance(module, attention.MODULES):
            cost[level] += module.attention_flops(*args)
            kinds[level].append(module.LABEL)
        return output

    def forward(key, z, logsnr, cond):
        with nn.intercept_methods(count):
            return network.init(key, z, logsnr, cond, num_images=num_images)["params"]

    clip = jax.ShapeDtypeStruct((1, *video_shape), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = nn.meta.unbox(jax.eval_shape(forward, jax.random.key(0), clip, logsnr, cond))
    sizes: dict[str, int] = collections.Counter()
    for name, subtree in params.items():
        sizes[_level(name)] += sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(subtree))
    return [
        LevelCost(
            level=level,
            resolution=_resolution(network, level, video_shape),
            channels=_channels(network, level),
            attention=" + ".join(dict.fromkeys(kinds[level])) or "-",
            parameters=sizes[level],
            flops=cost[level],
        )
        for level in _levels(network)
    ]


def _level(module: str) -> str:
    found = re.match(r"(down|up)_(\d+)", module)
    return f"{found[1]} {found[2]}" if found else module.split("_")[0]


def _levels(network: UNet3D) -> list[str]:
    numbers = range(len(network.channel_mult))
    down = [f"down {i}" for i in numbers]
    up = [f"up {i}" for i in reversed(numbers)]
    return ["condition", "input", *down, "middle", *up, "output"]


def _depth(network: UNet3D, level: str) -> int:
    if level == "middle":
        return len(network.channel_mult) - 1
    return int(level.split()[-1]) if " " in level else 0


def _resolution(network: UNet3D, level: str, video_shape: Sequence[int]) -> str:
    if level == "condition":
        return ""
    scale = network.patch_size * 2 ** _depth(network, level)
    return f"{video_shape[1] // scale} x {video_shape[2] // scale}"


def _channels(network: UNet3D, level: str) -> int:
    if level == "condition":
        return network.embedding_width
    if level in ("input", "output"):
        return network.channels
    depth = _depth(network, level)
    if level.startswith("up") and network.skips == "level":
        depth = max(depth - 1, 0)
    return network.channels * network.channel_mult[depth]


def _fan_in(module: nn.Module, shape: Sequence[int]) -> int:
    if isinstance(module, nn.Conv):
        return math.prod(module.kernel_size) * shape[-1]
    axes = module.axis if isinstance(module, nn.DenseGeneral) else -1
    return math.prod(shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))
