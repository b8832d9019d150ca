"""A newly inflated space-time U-Net returns what the image network returns for each frame."""

import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.condition import Words
from vdm_jax.models.condition.channels import KNOWN_FRAMES
from vdm_jax.models.space_time_unet import SpaceTimeUNet
from vdm_jax.models.unet import UNet
from vdm_jax.models.video_unet import VideoUNet

IMAGE = VideoUNet(
    unet=UNet(channels=8, channel_mult=(1, 2), num_res_blocks=1, skips="level"),
    settings=BlockSettings(head_dim=4, norm_groups=2),
    attention_levels=(1,),
    temporal=None,
)
SPACE_TIME = SpaceTimeUNet(
    unet=IMAGE.unet,
    settings=IMAGE.settings,
    attention_levels=(1,),
    videos=(KNOWN_FRAMES,),
    temporal_levels=(0, 1),
    temporal_resize=(0,),
    temporal_depth=2,
)
FRAMES = 4
LOGSNR = jnp.zeros(1)
VIDEO = jax.random.normal(jax.random.key(0), (1, FRAMES, 4, 4, 3))


def drawn(network, frames=FRAMES, scale=0.3, cond=None):
    """Parameters without zeros."""
    rng = np.random.default_rng(0)
    z = jax.ShapeDtypeStruct((1, frames, 4, 4, 3), jnp.float32)
    init = functools.partial(network.init, jax.random.key(0))
    shapes = nn.meta.unbox(jax.eval_shape(init, z, LOGSNR, cond or {}))
    return jax.tree.map(lambda a: jnp.float32(scale * rng.normal(size=a.shape)), shapes)


def inflated(network, image_params):
    """As initialised, with the image network's parameters in their places."""
    image = traverse_util.flatten_dict(image_params)

    @jax.jit
    def draw():  # what the image network has not: compiling all would take most of the time
        drawn = nn.meta.unbox(network.init(jax.random.key(1), VIDEO, LOGSNR, {}))
        drawn = traverse_util.flatten_dict(drawn)
        assert image.keys() < drawn.keys()
        return {path: leaf for path, leaf in drawn.items() if path not in image}

    return traverse_util.unflatten_dict({**image, **draw()})


@pytest.fixture(scope="module", params=["level", "block"])
def networks(request):
    """The image network and the inflated one, compiled, each with its parameters."""
    unet = dataclasses.replace(IMAGE.unet, skips=request.param)
    image, network = IMAGE.clone(unet=unet), SPACE_TIME.clone(unet=unet)
    image_params = drawn(image)
    params = inflated(network, image_params)
    known = {"masked_video": VIDEO[:, ::-1], "mask": jnp.ones((*VIDEO.shape[:-1], 1))}
    on_image = jax.jit(lambda z: image.apply(image_params, z, LOGSNR, {}))
    on_clip = jax.jit(lambda z: network.apply(params, z, LOGSNR, known))
    return on_image, on_clip


def test_frames_that_are_kept_are_those_of_the_image_network(networks):
    on_image, on_clip = networks
    chex.assert_trees_all_close(on_clip(VIDEO)[:, ::2], on_image(VIDEO)[:, ::2], atol=1e-6)


def test_repeated_frames_are_those_of_the_image_network(networks):
    on_image, on_clip = networks
    repeated = jnp.repeat(VIDEO[:, ::2], 2, axis=1)
    chex.assert_trees_all_close(on_clip(repeated), on_image(repeated), atol=1e-6)
    # Other frames have their own fine features and the coarse ones of the frame before.
    assert jnp.abs(on_clip(VIDEO) - on_image(VIDEO))[:, 1::2].max() > 1e-3


def test_its_new_layers_mix_frames_and_take_known_frames():
    params = drawn(SPACE_TIME)
    apply = jax.jit(lambda z, known: SPACE_TIME.apply(params, z, LOGSNR, known))
    known = {"masked_video": VIDEO, "mask": jnp.ones((*VIDEO.shape[:-1], 1))}
    nothing = jax.tree.map(jnp.zeros_like, known)
    out = apply(VIDEO, nothing)
    changed = apply(VIDEO.at[:, -1].add(1.0), nothing)
    assert (jnp.abs(changed - out).max((0, 2, 3, 4)) > 1e-4).all()
    assert jnp.abs(apply(VIDEO, known) - out).max() > 1e-3
    hidden = {**known, "mask": nothing["mask"]}  # unknown frames have no effect
    chex.assert_trees_all_equal(apply(VIDEO, hidden), out)
    chex.assert_trees_all_close(apply(VIDEO, {}), out, atol=1e-6)


def test_layers_that_mix_frames_embed_the_text_for_themselves():
    network = SPACE_TIME.clone(conditions=(Words(vocab_size=4, max_length=2),))
    text = {"tokens": jnp.array([[1, 2]]), "token_mask": jnp.ones((1, 2), bool)}
    params = drawn(network, cond=text)

    def without(pattern):
        def changed(path, leaf):
            name = "/".join(key.key for key in path)
            return jnp.zeros_like(leaf) if re.search(pattern, name) else leaf

        return jax.tree_util.tree_map_with_path(changed, params)

    @jax.jit
    def difference(params):
        """The effect of another word on a clip of four frames and on an image."""
        image_text = {f"image_{name}": value[:, None] for name, value in text.items()}
        z = jnp.concatenate([VIDEO, VIDEO[:, :1]], axis=1)
        one, other = (
            network.apply(params, z, LOGSNR, {**text, **image_text, "tokens": tokens}, num_images=1)
            for tokens in (text["tokens"], jnp.array([[1, 3]]))
        )
        return jnp.abs(one - other).max((0, 2, 3, 4))

    image_routes = r"attention(_\d)?_text/|condition/pooled_text"  # what the image network has
    known = difference(without(image_routes))
    assert (known[:FRAMES] > 1e-4).all() and known[FRAMES] < 1e-6
    assert difference(without(f"{image_routes}|_temporal/scale_shift/")).max() < 1e-6


def test_images_are_left_alone_and_unseen():
    params = drawn(SPACE_TIME)
    images = jax.random.normal(jax.random.key(2), (1, 3, 4, 4, 3))
    together = jax.jit(lambda z: SPACE_TIME.apply(params, z, LOGSNR, {}, num_images=3))(
        jnp.concatenate([VIDEO, images], axis=1)
    )
    clip = jax.jit(lambda z: SPACE_TIME.apply(params, z, LOGSNR, {}))(VIDEO)
    chex.assert_trees_all_close(together[:, :FRAMES], clip, atol=1e-5)
    alone = jax.jit(lambda z: SPACE_TIME.apply(params, z, LOGSNR, {}, num_images=3))(images)
    chex.assert_trees_all_close(together[:, FRAMES:], alone, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    def shapes(network, frames):
        z = jax.ShapeDtypeStruct((1, frames, 4, 4, 3), jnp.float32)
        jax.eval_shape(network.init, jax.random.key(0), z, LOGSNR, {})

    with pytest.raises(ValueError, match="frames = 3 must be a multiple of 2"):
        shapes(SPACE_TIME, 3)
    with pytest.raises(ValueError, match=r"temporal_resize = \(1,\): levels from 0 to 0"):
        shapes(SPACE_TIME.clone(temporal_resize=(1,)), 4)
    z = jnp.zeros((1, 4, 4, 4, 3))
    with pytest.raises(ValueError, match=r"masked_video .* must have z's shape"):
        cond = {"masked_video": z[:, :2], "mask": z[..., :1]}
        jax.eval_shape(SPACE_TIME.init, jax.random.key(0), z, LOGSNR, cond)
