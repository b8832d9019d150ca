"""A stage as small as one can be, with everything that training and sampling ask of a stage."""

import dataclasses
import math

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vdm_jax.diffusion.process import Process
from vdm_jax.models import layers
from vdm_jax.parallel import sharding
from vdm_jax.training import optimizer, step

WORDS = ("red", "green", "left", "right")


def spread(key, shape, dtype=jnp.float32):
    """Initial weights without random numbers, whose compilation would be most of these tests."""
    return jnp.linspace(-0.5, 0.5, math.prod(shape), dtype=dtype).reshape(shape)


class Network(nn.Module):
    """Mixes channels by a condition: a few hundred parameters."""

    @nn.compact
    def __call__(self, z, logsnr, cond):
        text = nn.Embed(len(WORDS) + 1, 8, embedding_init=spread)(cond["tokens"]).mean(axis=1)
        features = jnp.concatenate([text, logsnr[:, None] / 20], axis=-1)
        scale = nn.Dense(8, kernel_init=spread)(features)[:, None, None, None, :]
        hidden = nn.tanh(nn.Dense(8, kernel_init=spread)(z) + scale)
        return nn.Dense(3, kernel_init=spread)(hidden)


def unnamed(init):
    """The parameters that `init(key)` makes, as shapes whose axes have no names."""
    return jax.tree.map(
        lambda leaf: layers.Named(value=leaf, names=(None,) * leaf.ndim, dtype=jnp.float32),
        jax.eval_shape(init, jax.random.key(0)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyStage:
    network: Network = Network()
    process: Process = Process()
    video_shape: tuple[int, int, int, int] = (3, 4, 4, 3)
    takes_guidance: bool = False

    def init(self, key):
        cond = {"tokens": jnp.zeros((1, 2), jnp.int32)}
        return self.network.init(key, jnp.zeros((1, *self.video_shape)), jnp.zeros(1), cond)[
            "params"
        ]

    def abstract_params(self):
        return unnamed(self.init)

    def with_layout(self, layout):
        return self

    def trained(self, params):
        return params

    def _apply(self, params, z, logsnr, cond):
        return self.network.apply({"params": params}, z, logsnr, cond)

    def loss(self, params, batch, key):
        x = batch["video"].astype(jnp.float32) / 127.5 - 1
        cond = self.conditioning(batch)
        losses, metrics = self.process.loss(
            key, lambda z, logsnr: self._apply(params, z, logsnr, cond), x
        )
        return losses.mean(), metrics

    def conditioning(self, batch):
        return {"tokens": batch["tokens"]}

    def begin(self, cond, key, **_):
        return cond

    def null(self, cond):
        return {"tokens": jnp.zeros_like(cond["tokens"])}

    def denoiser(self, params):
        return self.process.denoiser(lambda z, logsnr, cond: self._apply(params, z, logsnr, cond))

    def encode_prompts(self, prompts):
        unknown = [word for prompt in prompts for word in prompt.split() if word not in WORDS]
        if unknown:
            raise ValueError(f"unknown word {unknown[0]!r}")
        rows = [[WORDS.index(word) + 1 for word in prompt.split()] for prompt in prompts]
        return {"tokens": np.array(rows, np.int32)}


class Clips:
    """Ten different clips, each with its number in it."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        video = np.random.default_rng(int(index)).integers(0, 256, (3, 4, 4, 3), np.uint8)
        return {"video": video, "tokens": np.array([index % 5, 1], np.int32), "index": index}


def _config(**train):
    return ml_collections.ConfigDict(
        {
            "system": "tiny",
            "device": "cpu",
            "train": {
                "steps": 6,
                "minutes": 0.0,
                "batch_size": 4,
                "seed": 3,
                "learning_rate": 1e-2,
                "warmup_steps": 2,
                "schedule": "constant",
                "beta1": 0.9,
                "beta2": 0.99,
                "weight_decay": 0.01,
                "moment_dtype": "float32",
                "skip_nonfinite": 0,
                "clip_norm": 1.0,
                "accumulate": 1,
                "ema_decay": 0.999,
                "log_every": 2,
                "sample_every": 0,
                "sample_prompts": ("red left",),
                **train,
            },
            "checkpoint": {"every": 2, "keep": 10, "fallback": False},
            "mesh": {"data": -1},
            "sample": {"sampler": "ddim", "steps": 2, "guidance": 2.0, "eta": 0.0, "gamma": 0.3},
        }
    )


def _dataset(batch_size=4, seed=0):
    return (
        grain.MapDataset.source(Clips())
        .shuffle(seed=seed)
        .repeat()
        .batch(batch_size)
        .to_iter_dataset()
    )


@pytest.fixture(scope="session")
def stage():
    return TinyStage()


@pytest.fixture(scope="session")
def make_config():
    """A function (field of train = value, ...) -> configuration."""
    return _config


@pytest.fixture(scope="session")
def make_dataset():
    """A function (batch_size, seed) -> endless grain data set of ten clips."""
    return _dataset


@pytest.fixture(scope="session")
def make_plan():
    """A function stage -> its plan on one device."""
    return lambda stage: sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])


@pytest.fixture(scope="session")
def train_step(stage, make_plan):
    """The compiled step of `make_config()`, and of every configuration with the same updates."""
    config = _config()
    tx = optimizer.make_optimizer(config.train)
    return step.make_train_step(stage, tx, config, make_plan(stage))


@pytest.fixture(scope="session")
def assert_trees_equal():
    """Bit for bit, dtypes and structure too."""

    def check(one, other):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
        ):
            name = jax.tree_util.keystr(path)
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)

    return check
