"""Layers over frames that take an image as a clip of one frame, in an image U-Net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from tests.models.test_latent_unet import (
    FRAMES,
    IMAGES,
    NETWORK,
    apply,
    close,
    make_inputs,
    started,
)
from tests.models.test_latent_unet import random_params as drawn
from vdm_jax.models import layers
from vdm_jax.models.blocks.slots import ClipContext, Place, Slots
from vdm_jax.models.motion_module import MotionModules
from vdm_jax.models.pseudo_3d import FrameConvolutions
from vdm_jax.models.single_frames import EncodedFrameAttentions, SingleFrames

SLOTS = Slots(
    after_convolution=SingleFrames(slot=FrameConvolutions()),
    in_transformer=SingleFrames(slot=EncodedFrameAttentions(max_frames=FRAMES)),
)
VIDEO = NETWORK.clone(slots=SLOTS)
PLACE = Place(name="layer", part="down", level=0, channels=8, heads=2, depth=1)


def test_a_clip_starts_as_its_images():
    inputs = make_inputs()
    params = started(VIDEO, NETWORK)
    names, image = (traverse_util.flatten_dict(p, sep="/") for p in (params, drawn(NETWORK)))
    assert all("temporal" in name for name in names.keys() - image.keys())
    wanted = apply(inputs, NETWORK)
    close(apply(inputs, VIDEO, params), wanted, atol=1e-5 * np.abs(wanted).max())


def test_an_image_beside_a_clip_is_a_clip_of_one_frame():
    z, logsnr, cond = make_inputs(images=IMAGES)
    output = apply((z, logsnr, cond), VIDEO, num_images=IMAGES)
    for image in range(IMAGES):
        text = {**cond, "text_embeddings": cond["image_text_embeddings"][:, image]}
        del text["image_text_embeddings"]
        at = FRAMES + image
        close(output[:, at : at + 1], apply((z[:, at : at + 1], logsnr, text), VIDEO))
    # No frame depends on the images, and every frame on every other.
    del cond["image_text_embeddings"]
    close(output[:, :FRAMES], apply((z[:, :FRAMES], logsnr, cond), VIDEO))
    other = z[:, :FRAMES].copy()
    other[:, 0] += 1
    change = np.abs(apply((other, logsnr, cond), VIDEO) - output[:, :FRAMES]).max((0, 2, 3, 4))
    assert change.min() > 1e-3


def run(h, params, frames=FRAMES):
    context = ClipContext(
        vectors=jnp.zeros((len(h), 4)),
        tokens=jnp.zeros((len(h) // frames, 1, 1, 4)),
        frames=frames,
        num_images=0,
        train=False,
    )
    module = EncodedFrameAttentions(max_frames=FRAMES)(PLACE)
    if params is None:
        return jax.eval_shape(module.init, jax.random.key(0), h, context)["params"]
    return module.apply({"params": params}, h, context)


def test_frames_are_told_apart_by_learned_encodings():
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(FRAMES, 2, 8)), jnp.float32)
    shapes = nn.meta.unbox(run(h, None))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    assert params["encodings"].shape == (FRAMES, 8)
    output = run(h, params)
    assert np.abs(run(h[::-1], params)[::-1] - output).max() > 1e-2
    without = {**params, "encodings": jnp.zeros((FRAMES, 8))}
    np.testing.assert_allclose(run(h[::-1], without)[::-1], run(h, without), atol=1e-5)
    with pytest.raises(ValueError, match="4 frames: the attention over frames has encodings of 3"):
        run(jnp.zeros((4, 2, 8)), params, frames=4)


def test_what_cannot_be_is_refused_and_empty_slots_stay_empty():
    z, logsnr, cond = jax.tree.map(jnp.asarray, make_inputs(frames=2, images=2))

    def init(network):
        def run():
            return network.init(jax.random.key(0), z, logsnr, cond, num_images=2)["params"]

        return jax.eval_shape(run)

    with pytest.raises(ValueError, match="mesh.context = 2: a clip of one frame cannot be spread"):
        init(VIDEO.clone(layout=layers.Layout(blocks=2)))
    motion = SingleFrames(slot=MotionModules(heads=2, norm_groups=4))  # has none in the middle
    names = init(NETWORK.clone(slots=Slots(after_attention=motion)))
    assert "up_0_attention_0_temporal" in names and "middle_attention_temporal" not in names
