"""The layers over frames of Make-A-Video in an image U-Net, and what it attends to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.models import test_latent_unet
from tests.models.test_latent_unet import FRAMES, IMAGES, NETWORK, apply, close, make_inputs
from tests.models.test_latent_unet import random_params as drawn
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.condition import EmbeddingTokens, KnownFrames
from vdm_jax.models.pseudo_3d import FrameAttentions, FrameConvolutions

SLOTS = Slots(after_convolution=FrameConvolutions(), after_attention=FrameAttentions())
VIDEO = NETWORK.clone(slots=SLOTS)
EMBEDDED = NETWORK.clone(text="", conditions=(EmbeddingTokens(key="image", count=3, width=6),))


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def started():
    """A network's random image layers with its layers over frames as they are initialised."""
    params = test_latent_unet.started(VIDEO, NETWORK)
    added = flat(params).keys() - flat(drawn(NETWORK)).keys()
    assert all("_temporal/" in name for name in added)
    return params


def test_a_clip_starts_as_its_images(started):
    inputs = make_inputs()
    output, wanted = apply(inputs, VIDEO, started), apply(inputs, NETWORK)
    # To the rounding of sums in another order.
    np.testing.assert_allclose(output, wanted, atol=1e-5 * np.abs(wanted).max())
    norms = [np.square(x).sum(axis=(2, 3, 4)) for x in (output, wanted)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_a_convolution_over_frames_follows_each_convolution_over_space(started):
    names = flat(started)
    convolutions = [
        name.removesuffix("/kernel")
        for name, leaf in names.items()
        if leaf.ndim == 4 and leaf.shape[:2] == (3, 3)
    ]
    assert len(convolutions) == 2 * 8 + 2 + 2  # two a block, the resizes, the first and the last
    for name in convolutions:
        # A resize is a module of its own, around its convolution.
        follows = f"{name.removesuffix('/conv')}_temporal/conv"
        taps, bias = names.pop(f"{follows}/taps/kernel"), names.pop(f"{follows}/bias")
        np.testing.assert_array_equal(taps[:, 1], np.eye(len(taps)))
        assert not np.any(taps[:, ::2]) and not np.any(bias)
    left = {name.split("/")[0] for name in names if "_temporal/" in name}
    # Attention stands where the image network has it: level 0, and the middle.
    assert left == {
        f"{where}_temporal"
        for where in (
            "down_0_attention_0",
            "middle_attention",
            "up_0_attention_0",
            "up_0_attention_1",
        )
    }


def test_every_frame_depends_on_every_other_and_images_on_none():
    z, logsnr, cond = make_inputs(images=IMAGES)
    output = apply((z, logsnr, cond), VIDEO, num_images=IMAGES)
    for at in (0, FRAMES - 1):
        other = z.copy()
        other[:, at] += 1.0
        change = np.abs(apply((other, logsnr, cond), VIDEO, num_images=IMAGES) - output)
        change = change.max((0, 2, 3, 4))
        assert change[:FRAMES].min() > 1e-3 and change[FRAMES:].max() < 1e-5
    # Layers over frames leave images to the image network.
    image = {k: v for k, v in flat(drawn(VIDEO)).items() if "_temporal" not in k}
    alone = {**cond, "text_embeddings": cond["image_text_embeddings"][:, 0]}
    alone.pop("image_text_embeddings")
    clip = np.repeat(z[:, FRAMES : FRAMES + 1], FRAMES, axis=1)
    wanted = apply((clip, logsnr, alone), NETWORK, traverse_util.unflatten_dict(image, sep="/"))
    close(output[:, FRAMES], wanted[:, 0])


def test_an_embedding_takes_the_place_of_a_text():
    z, logsnr, cond = make_inputs()
    embedding = np.random.default_rng(1).normal(size=(len(z), 1, 5)).astype(np.float32)
    cond = {"image": embedding}
    boxed = jax.eval_shape(EMBEDDED.init, jax.random.key(0), z, logsnr, cond)["params"]
    fresh = flat(jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "names")))
    rng = np.random.default_rng(0)
    params = flat(drawn(NETWORK))
    added = {n: rng.normal(size=leaf.shape) for n, leaf in fresh.items() if n not in params}
    added = {name: leaf.astype(np.float32) for name, leaf in added.items()}
    kernel, bias = (added[f"condition/embedding_tokens/{n}"] for n in ("kernel", "bias"))
    tokens = (embedding[:, 0] @ kernel + bias).reshape(len(z), 3, 6)
    for name in ("kernel", "bias"):  # as it starts
        added[f"condition/embedding_vector/{name}"][...] = 0
    given = traverse_util.unflatten_dict({**params, **added}, sep="/")
    output = apply((z, logsnr, cond), EMBEDDED, given)
    close(output, apply((z, logsnr, {"text_embeddings": jnp.asarray(tokens)}), NETWORK))
    added["condition/embedding_vector/kernel"][...] = 1
    changed = traverse_util.unflatten_dict({**params, **added}, sep="/")
    assert np.abs(apply((z, logsnr, cond), EMBEDDED, changed) - output).max() > 1e-3


def test_known_frames_enter_by_a_convolution_that_starts_at_zero():
    z, logsnr, cond = make_inputs()
    network = NETWORK.clone(videos=(KnownFrames(),))
    assert {"mask", "masked_video"} <= network.reads
    mask = np.zeros((*z.shape[:-1], 1), np.float32)
    mask[:, 0] = 1
    known = {**cond, "masked_video": z[:, ::-1], "mask": mask}
    params = flat(drawn(NETWORK))
    kernel = np.zeros((3, 3, 5, 8), np.float32)
    more = {"masked_video_conv/kernel": kernel, "masked_video_conv/bias": np.zeros(8, np.float32)}
    start = traverse_util.unflatten_dict({**params, **more}, sep="/")
    plain = apply((z, logsnr, cond), NETWORK)
    close(apply((z, logsnr, known), network, start), plain)
    kernel[...] = 0.1
    change = np.abs(apply((z, logsnr, known), network, start) - plain).max((0, 2, 3, 4))
    assert change[0] > 1e-2 and change[1:].max() < 1e-5  # an image network: only the known frame
    assert network.section("masked_video_conv") == "input"


def test_a_network_without_tokens_is_refused():
    with pytest.raises(ValueError, match="text = '': must name a condition"):
        jax.eval_shape(NETWORK.clone(text="").init, jax.random.key(0), *make_inputs())
