"""A stage of latents that stand for groups of frames: shapes, masks, known frames, samples of other
sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax.diffusion.grids import Spaced
from vdm_jax.diffusion.measurements import Mask
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.models.causal_autoencoder import CausalAutoencoder
from vdm_jax.stage.causal_space import CausalLatentSpace
from vdm_jax.stage.sampler import Known, Sampler
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

SHAPE, KEY = (9, 8, 12, 3), jax.random.key(0)
NETWORK = CausalAutoencoder(
    channels=(2, 4, 4),
    halves_time=(True, True),
    layers_per_level=1,
    latent_channels=3,
    latent_mean=(0.1, -0.2, 0.3),
    latent_std=(1.5, 0.5, 2.0),
    at_once=2,
)


@pytest.fixture(scope="module")
def frozen():
    shapes = nn.meta.unbox(NETWORK.abstract_params())
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
        return (rng.normal(size=leaf.shape) * scale + (leaf.ndim == 1)).astype(np.float32)

    return {"autoencoder": jax.tree.map(draw, shapes)}


@pytest.fixture(scope="module")
def space():
    return CausalLatentSpace(data_shape=SHAPE, autoencoder=NETWORK)


def test_z_has_the_statistics_taken_out(space, frozen):
    video = jax.random.uniform(KEY, (2, *SHAPE), minval=-1.0)

    @jax.jit
    def run(video, frozen):
        z = space.encode(video, frozen)
        params = {"params": frozen["autoencoder"]}
        latents = NETWORK.apply(params, video, method="encode").mode()
        drawn = space.encode(video, frozen, KEY)
        return z, latents, drawn, space.decode(z, frozen), NETWORK.apply(params, video)

    z, latents, drawn, decoded, whole = run(video, frozen)
    assert z.shape == (2, *space.z_shape) == (2, 3, 2, 3, 3)
    wanted = (latents - np.array([0.1, -0.2, 0.3])) / np.array([1.5, 0.5, 2.0])
    np.testing.assert_allclose(z, wanted, atol=1e-5)
    np.testing.assert_allclose(decoded, whole, atol=1e-4)
    assert np.abs(drawn - z).max() > 0.01


def test_z_of_other_sizes(space):
    assert space.z_shape_for((1, 16, 8, 3)) == (1, 4, 2, 3)
    with pytest.raises(ValueError, match="frames = 10: must be 1 more than a multiple of 4"):
        space.z_shape_for((10, 8, 8, 3))
    with pytest.raises(ValueError, match="tile_overlap = 3: must be from 0 to 2, below tile"):
        dataclasses.replace(space, tile=3, tile_overlap=3)
    with pytest.raises(ValueError, match="frozen: lacks 'autoencoder'"):
        space.decode(jnp.zeros((1, *space.z_shape)), {})


def test_a_latent_is_known_where_all_of_its_pixels_are(space):
    mask = np.ones((1, *SHAPE[:3], 1), np.float32)
    mask[0, 3, 5, 6] = 0  # frames 1 to 4, rows 4 to 7, columns 4 to 7
    wanted = np.ones((1, 3, 2, 3, 1), np.float32)
    wanted[0, 1, 1, 1] = 0
    np.testing.assert_array_equal(space.encode_mask(jnp.asarray(mask)), wanted)


class Nothing(nn.Module):
    """Predicts x = bias: any z will do."""

    multiple, reach = 1, None
    layout: object = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        return jnp.zeros_like(z) + self.param("bias", nn.initializers.zeros, ())


def test_known_frames_and_other_sizes_are_sampled(space, frozen):
    stage = Stage(
        network=Nothing(), process=Process(prediction="x"), space=space, view=View(shape=SHAPE)
    )
    sampler = Sampler(
        stage=stage,
        rule=DDIM(),
        grid=Spaced(steps=2),
        threshold=None,
        frozen=frozen,
        batch_size=1,
        height=16,
        num_frames=5,
    )
    assert (sampler.video_shape, sampler.z_shape) == ((5, 16, 12, 3), (2, 4, 3, 3))
    video = np.asarray(jax.random.uniform(KEY, (1, *sampler.video_shape), minval=-1.0))
    known = np.zeros((1, 5, 1, 1, 1), bool)
    known[:, 0] = True
    measured = Known(measurement=Mask(known=known), y=video)
    params = {"bias": jnp.zeros(())}
    (found,) = sampler.stream(params, KEY, [""], known=measured)
    assert found.shape == (1, *sampler.video_shape)
    (free,) = sampler.stream(params, KEY, [""])
    assert (found[:, 0] != free[:, 0]).any()
    with pytest.raises(ValueError, match="width = 6: must be a multiple of 4"):
        dataclasses.replace(sampler, width=6)
