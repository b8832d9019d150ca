"""vdm evaluate with a network as small as it can be in the place of I3D; a program of its own,
because the number of devices, and of processes, is fixed when JAX starts."""

import dataclasses
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.cli import common, evaluate
from vdm_jax.evaluation import i3d, i3d_weights


class Tiny(nn.Module):
    """Takes and gives what I3D does, of clips of any length."""

    @nn.compact
    def __call__(self, video):
        x = nn.tanh(nn.Conv(8, (2, 8, 8), strides=(2, 8, 8), padding="VALID")(video))
        features = nn.tanh(nn.Dense(24)(jnp.concatenate([x.mean(1), x.std(1)], -1))).mean((1, 2))
        return nn.Dense(i3d.CLASSES)(features), features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small(i3d.I3DFeatures):
    """Of frames of 32 x 32."""

    size: int = 32


def params():
    """Of `Tiny`."""
    return Tiny().init(jax.random.key(0), jnp.zeros((1, 16, 32, 32, 3)))["params"]


def replace(set_attribute=setattr):
    """Makes `vdm evaluate` use it."""
    set_attribute(i3d, "I3D", Tiny)
    set_attribute(i3d, "I3DFeatures", Small)
    set_attribute(i3d_weights, "load_weights", lambda source=None: params())


if __name__ == "__main__":
    replace()
    common.run(evaluate.main, sys.argv[1:])
