"""A stage as small as one can be, with everything that training and sampling ask of a stage."""

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
from vdm_jax.models.text.words import WordEncoder
from vdm_jax.parallel import sharding
from vdm_jax.stage.conditions.prompt import Text
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.training import optimizer, step

WORDS = ("red", "green", "left", "right")


def spread(key, shape, dtype=jnp.float32):
    """Initial weights without random numbers, whose compilation would be most of these tests."""
    return jnp.linspace(-0.5, 0.5, math.prod(shape), dtype=dtype).reshape(shape)


def named(axes):
    """`spread` as an initialiser of parameters whose axes have no names."""
    return layers.named(spread, *(None,) * axes)


class Network(nn.Module):
    """Mixes channels by a condition: a few hundred parameters."""

    layout: layers.Layout = layers.ANYWHERE
    remat: str = "none"
    multiple = 1
    reach = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        zeros = layers.named(nn.initializers.zeros, None)

        def dense(x, features):
            return nn.Dense(features, kernel_init=named(2), bias_init=zeros)(x)

        embed = nn.Embed(ENCODER.vocab_size, 8, embedding_init=named(2))
        text = embed(cond["tokens"]).mean(axis=1) * cond["keep_text"][:, None]
        features = jnp.concatenate([text, logsnr[:, None] / 20], axis=-1)
        scale = dense(features, 8)[:, None, None, None, :]
        return dense(nn.tanh(dense(z, 8) + scale), 3)


SHAPE = (3, 4, 4, 3)
ENCODER = WordEncoder(list(WORDS), max_length=2, vocabulary_size=len(WORDS))
STAGE = Stage(
    network=Network(),
    process=Process(),
    space=PixelSpace(data_shape=SHAPE),
    view=View(shape=SHAPE),
    conditions=(Text(encoder=ENCODER, drop=0.0),),
)


class Clips:
    """Ten different clips, each with its number in it."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        video = np.random.default_rng(int(index)).integers(0, 256, (3, 4, 4, 3), np.uint8)
        tokens = np.array([index % 5, 1], np.int32)
        return {"video": video, "tokens": tokens, "token_mask": tokens > -1, "index": index}


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
                "optimizer": "adamw",
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
            "sample": {"sampler": "ddim", "steps": 2, "guidance": 2.0},
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
    return STAGE


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
