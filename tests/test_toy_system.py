"""A system of one's own, added only through the seams that docs/architecture.md names.

It makes clips of one grey level. Its space is an orthonormal change of pixel blocks whose matrix is
a frozen parameter, its condition is the grey level, and its guidance, its step rule and its network
are its own. Nothing of the package is changed or subclassed, but for `conditions.base.Base`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange, reduce

from tests.tiny_stage import _config as make_config
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Stateless
from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.models import layers
from vdm_jax.parallel import sharding
from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.sampler import Sampler
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.training import optimizer, state, step

SHAPE = (2, 4, 4, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:  # a space
    data_shape: tuple = SHAPE
    z_shape: tuple = (2, 2, 2, 12)
    pixels = False
    multiple = 2

    def abstract_params(self):  # of the frozen matrix, for its place on a mesh
        matrix = jax.ShapeDtypeStruct((12, 12), jnp.float32)
        return layers.Named(value=matrix, names=(None, None), dtype=jnp.float32)

    def z_shape_for(self, data_shape):
        return self.z_shape

    def encode(self, video, frozen, key=None):
        z = rearrange(video, "b f (h p) (w q) c -> b f h w (p q c)", p=2, q=2)
        return z @ frozen["space"]

    def encode_mask(self, mask):
        return reduce(mask, "b f (h p) (w q) 1 -> b f h w 1", "min", p=2, q=2)

    def decode(self, z, frozen):
        pixels = z @ frozen["space"].T
        return rearrange(pixels, "b f h w (p q c) -> b f (h p) (w q) c", p=2, q=2)

    preview = decode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grey(Base):  # a condition
    name = "grey"
    mechanism = "vector"
    settings = ("grey",)

    def cond_shapes(self, n, image_frames):
        return {"grey": shape(n, dtype=jnp.float32)}

    def example(self, example, key):
        return {"grey": example.clip.mean((1, 2, 3, 4))}

    def begin(self, cond, n, key, settings, encode):
        return {"grey": jnp.full(n, settings.get("grey", 0.0))}


class Constant(nn.Module):  # a network: x̂ is a learned multiple of the grey level
    layout: layers.Layout = layers.ANYWHERE
    multiple = 1
    reach = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        zeros = layers.named(nn.initializers.zeros, None, None)
        dense = nn.Dense(z.shape[-1], use_bias=False, kernel_init=zeros)
        return jnp.broadcast_to(dense(cond["grey"][:, None])[:, None, None, None], z.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled:  # a guidance
    by: float

    def check(self, stage):
        if stage.find(Grey) is None:
            raise ValueError("Scaled: the stage has no condition grey")

    def __call__(self, denoiser, stage, logsnrs):
        def scaled(z, logsnr, cond):
            prediction = denoiser(z, logsnr, cond)
            return prediction.with_x(self.by * prediction.x)

        return scaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jump(Stateless):  # a step rule
    def step(self, key, denoise, z, state, logsnr_t, logsnr_s):
        prediction = denoise(z, logsnr_t)
        alpha, sigma = alpha_sigma(logsnr_s)
        return alpha * prediction.x + sigma * prediction.eps, state


STAGE = Stage(
    network=Constant(),
    process=Process(prediction="x", loss_name="x_mse"),
    space=Blocks(),
    view=View(shape=SHAPE),
    conditions=(Grey(),),
)


@pytest.fixture(scope="module")
def trained():
    """The trained parameters, and the frozen ones."""
    rng = np.random.default_rng(0)
    space = jnp.asarray(np.linalg.qr(rng.normal(size=(12, 12)))[0], jnp.float32)
    one = jax.devices()[:1]
    plan = sharding.make_plan(STAGE, {"data": 1}, one)
    config = make_config(steps=300, learning_rate=0.05, weight_decay=0.0, clip_norm=0.0)
    tx = optimizer.make_optimizer(config.train)
    frozen = {"space": sharding.Frozen(params=space, plan=sharding.make_plan(Blocks(), {}, one))}
    update = step.make_train_step(STAGE, tx, config, plan, frozen)
    current = state.create_state(STAGE, tx, 0, plan)
    for _ in range(100):
        levels = rng.integers(0, 256, (4, 1, 1, 1, 1))
        video = np.broadcast_to(levels, (4, *SHAPE)).astype(np.uint8)
        current, metrics = update(current, {"video": video})
    assert metrics["x_mse"] < 1e-3
    return current.params, {"space": space}


def sample(trained, **fields):
    params, frozen = trained
    sampler = Sampler(stage=STAGE, rule=Jump(), threshold=None, frozen=frozen, **fields)
    stream = sampler.stream(params, jax.random.key(0), ["", ""])
    return np.concatenate(list(stream))


def test_a_toy_system_trains_and_samples_through_the_seams(trained):
    videos = sample(trained, settings={"grey": 0.5})
    assert videos.shape == (2, *SHAPE)
    np.testing.assert_allclose(videos, (0.5 + 1) * 127.5, atol=3)


def test_its_guidance_acts_and_is_checked(trained):
    videos = sample(trained, settings={"grey": 0.3}, guidance=(Scaled(by=-1.0),))
    np.testing.assert_allclose(videos, (-0.3 + 1) * 127.5, atol=6)
    bare = dataclasses.replace(STAGE, conditions=())
    with pytest.raises(ValueError, match="no condition grey"):
        Sampler(stage=bare, threshold=None, guidance=(Scaled(by=-1.0),))


def test_what_it_does_not_have_is_refused():
    with pytest.raises(ValueError, match="fps = 8.0: this model has no such setting; it has: grey"):
        Sampler(stage=STAGE, threshold=None, settings={"fps": 8.0})
    with pytest.raises(ValueError, match="negative: this model was trained without text"):
        STAGE.encode([""], negatives=["a"])
