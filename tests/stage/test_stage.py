"""A stage: what is trained, and what its loss depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.process import Process
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.condition import Words
from vdm_jax.models.text.words import WordEncoder
from vdm_jax.models.unet import UNet
from vdm_jax.models.video_unet import VideoUNet
from vdm_jax.stage.conditions.prompt import Label, Text
from vdm_jax.stage.space import PixelSpace, from_uint8, to_uint8
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

STAGE = Stage(
    network=VideoUNet(
        unet=UNet(channels=4, channel_mult=(1,), num_res_blocks=1),
        settings=BlockSettings(head_dim=4, norm_groups=2),
        conditions=(Words(vocab_size=5, max_length=3),),
        attention_levels=(0,),
    ),
    process=Process(),
    space=PixelSpace(data_shape=(2, 4, 4, 3)),
    view=View(shape=(2, 4, 4, 3)),
    conditions=(
        Text(encoder=WordEncoder(["a", "b", "c"], max_length=3, vocabulary_size=3), drop=0.0),
    ),
)


def dropping(chance):
    """The stage with this chance of the null condition."""
    (text,) = STAGE.conditions
    return dataclasses.replace(STAGE, conditions=(dataclasses.replace(text, drop=chance),))


def make_batch(images=0, seed=0):
    rng = np.random.default_rng(seed)
    batch = {
        "video": rng.integers(256, size=(4, 2, 4, 4, 3), dtype=np.uint8),
        **STAGE.text_encoder.encode(["a b", "c", "b", "a b c"]),
    }
    if images:
        batch["images"] = rng.integers(256, size=(4, images, 4, 4, 3), dtype=np.uint8)
        text = STAGE.text_encoder.encode(["a", "b", "c", "a c"] * images)
        batch |= {f"image_{k}": v.reshape(4, images, 3) for k, v in text.items()}
    return batch


@pytest.fixture(scope="module")
def params():
    """Parameters with no zeros."""
    shapes = jax.eval_shape(STAGE.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), a.dtype), shapes)


loss = jax.jit(lambda stage, *args: stage.loss(*args)[0], static_argnums=0)
KEY = jax.random.key(3)


def test_the_loss_hears_the_text(params):
    batch = make_batch()
    other = batch | {"tokens": batch["tokens"][::-1].copy()}
    assert loss(STAGE, params, batch, KEY) != loss(STAGE, params, other, KEY)


def test_a_dropped_condition_is_not_heard(params):
    stage = dropping(1.0)
    batch = make_batch()
    other = batch | {"tokens": batch["tokens"][::-1].copy()}
    # The padding masks travel along, so only texts of the same lengths are told apart.
    other["token_mask"] = batch["token_mask"]
    np.testing.assert_allclose(
        loss(stage, params, batch, KEY), loss(stage, params, other, KEY), rtol=1e-5
    )


def test_images_take_part_with_their_own_text(params):
    batch = make_batch(images=2)
    value = loss(STAGE, params, batch, KEY)
    for name in ("images", "image_tokens"):
        other = batch | {name: batch[name][::-1].copy()}
        assert loss(STAGE, params, other, KEY) != value, name
    assert jnp.isfinite(value)


def test_a_batch_of_another_shape_is_refused(params):
    batch = make_batch()
    batch["video"] = batch["video"][:, :1]
    with pytest.raises(ValueError, match=r"video has shape \(1, 4, 4, 3\).*wants \(2, 4, 4, 3\)"):
        STAGE.loss(params, batch, KEY)


def test_the_null_condition_is_the_same_for_every_prompt(params):
    z = jax.random.normal(KEY, (2, *STAGE.video_shape))
    cond = STAGE.encode(["a b", "c c"])

    @jax.jit
    def x(cond):
        return STAGE.denoiser(params)(z, jnp.zeros(2), cond).x

    other = STAGE.encode(["b c", "a a"])
    assert np.abs(x(cond) - x(other)).max() > 1e-3
    np.testing.assert_allclose(x(STAGE.null(cond)), x(STAGE.null(other)), atol=1e-5)


def test_prompts_the_model_cannot_hear_are_refused():
    with pytest.raises(ValueError, match="does not know the word 'dog'"):
        STAGE.encode(["a dog"])
    with pytest.raises(ValueError, match="trained without text"):
        dataclasses.replace(STAGE, conditions=()).encode(["a"])
    classes = dataclasses.replace(STAGE, conditions=(Label(count=3),))
    with pytest.raises(ValueError, match="'3': this model knows classes, 0 to 2"):
        classes.encode(["3"])
    np.testing.assert_array_equal(classes.encode(["2", "0"])["label"], [2, 0])


def test_a_model_without_condition_takes_empty_prompts():
    bare = dataclasses.replace(STAGE, conditions=())
    assert bare.encode(["", ""]) == {}


def test_logical_axes_fit_the_parameters():
    def fits(leaf, named):
        assert named.value.shape == leaf.shape and len(named.names) == leaf.ndim
        assert named.dtype in (jnp.float32, STAGE.network.dtype)

    jax.tree.map(fits, jax.eval_shape(STAGE.init, jax.random.key(0)), dict(STAGE.abstract_params()))


@pytest.mark.parametrize("images", [0, 2])
def test_an_abstract_batch_is_what_the_loss_takes(images):
    batch = STAGE.abstract_batch(3, images)
    assert batch["video"].shape == (3, *STAGE.video_shape)
    assert ("image_tokens" in batch) == bool(images)
    loss, _ = jax.eval_shape(
        STAGE.loss, jax.eval_shape(STAGE.init, jax.random.key(0)), batch, jax.random.key(0)
    )
    assert loss.shape == ()
    assert STAGE.train_flops(images) >= 3 * sum(level.flops for level in STAGE.cost())


def test_bytes_survive_the_round_trip():
    levels = jnp.arange(256, dtype=jnp.uint8)
    scaled = from_uint8(levels)
    assert scaled.min() == -1 and scaled.max() == 1
    np.testing.assert_array_equal(to_uint8(scaled), levels)
    np.testing.assert_array_equal(to_uint8(jnp.array([-7.0, 7.0])), [0, 255])
