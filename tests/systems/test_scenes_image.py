"""The latent image model that ships, read from its published folder."""

import jax
import numpy as np
import pytest

import vdm_jax
from benchmarks import scenes_image
from vdm_jax import config as config_lib
from vdm_jax.evaluation import clips, judge
from vdm_jax.evaluation.scene_judge import SCENES
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.space import from_uint8, to_uint8
from vdm_jax.systems import latent_image
from vdm_jax.weights import controlnet

NAME = "scenes_image"


@pytest.fixture(scope="module")
def model():
    return vdm_jax.load(NAME)


@pytest.fixture(scope="module")
def frames(model):
    return scenes_image.held_out(model, 8)


def test_it_is_listed_once_and_is_what_its_configuration_describes(model):
    assert [name for name in pretrained.shipped_names() if name.startswith(NAME)] == [NAME]
    # Parts of models, such as an autoencoder, are none.
    assert not [name for name in pretrained.shipped_names() if name.startswith("dit_tiny")]
    described = config_lib.load_config("latent_image/scenes")
    stage, wanted = model.stage, latent_image.build(described)
    assert stage.network == wanted.network and stage.space == wanted.space
    assert (model.config.sample.steps, model.config.sample.guidance) == (
        described.sample.steps,
        described.sample.guidance,
    )
    assert model.sampler().rule_name == "ddim"
    assert model.config.data.name == "scenes" and model.config.text.encoder == "minilm"


def test_the_whole_folder_is_small():
    files = (pretrained.SHIPPED / NAME).rglob("*.safetensors")
    assert 5e6 < sum(file.stat().st_size for file in files) < 16 * 2**20


@pytest.mark.parametrize("source", ["edges", "depth"])
def test_its_controlnets_are_found_by_name_and_fit_it(model, source):
    network, params = controlnet.read_folder(f"{NAME}/controlnet_{source}")
    assert network.unet == model.stage.network.unet
    assert network.settings == model.stage.network.settings
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(params["residual_0"]))


def test_reconstructions_are_read_as_the_frames_are(model, frames):
    video, captions = frames
    space = model.stage.space

    @jax.jit
    def reconstruct(video):
        return to_uint8(space.decode(space.encode(from_uint8(video), model.frozen), model.frozen))

    decoded = np.asarray(reconstruct(video))
    assert judge.score(decoded, captions, SCENES)["all"] == 1.0
    error = np.square(decoded.astype(float) - video).mean()
    assert 10 * np.log10(255**2 / error) > 25


def test_latents_have_unit_deviation(model):
    video = clips.from_rendered("scenes", "64x64x16", "train", 32, frames=True).videos
    latents = jax.jit(lambda v: model.stage.space.encode(from_uint8(v), model.frozen))(video)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)
