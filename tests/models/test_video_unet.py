"""The video U-Net by its invariants, on random parameters, so that no zero hides a mistake."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.condition import FramePositions, Label, Words
from vdm_jax.models.unet import Output, UNet
from vdm_jax.models.video_unet import VideoUNet

NETWORK = VideoUNet(
    unet=UNet(channels=8, channel_mult=(1, 2), num_res_blocks=1),
    settings=BlockSettings(head_dim=4, norm_groups=4),
    conditions=(Words(vocab_size=7, max_length=4), Label(num_labels=3), FramePositions()),
    attention_levels=(1,),
)
SMALL = VideoUNet(
    unet=UNet(channels=4, channel_mult=(1,), num_res_blocks=1),
    settings=BlockSettings(head_dim=4, norm_groups=2),
    output=Output(skip=True),
    attention_levels=(),
)
BATCH, FRAMES, IMAGES, SIZE = 2, 3, 2, 8


def make_inputs(frames=FRAMES, images=0, batch=BATCH, seed=0):
    """z, logsnr, cond with random text and labels, for the clip and for each image."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(batch, frames + images, SIZE, SIZE, 3)).astype(np.float32)
    cond = {
        "tokens": rng.integers(7, size=(batch, 4), dtype=np.int32),
        "token_mask": np.arange(4) < rng.integers(1, 5, size=(batch, 1)),
        "label": rng.integers(3, size=batch, dtype=np.int32),
        "keep_text": np.ones(batch, bool),
        "keep_label": np.ones(batch, bool),
    }
    if images:
        cond |= {
            "image_tokens": rng.integers(7, size=(batch, images, 4), dtype=np.int32),
            "image_token_mask": np.arange(4) < rng.integers(1, 5, size=(batch, images, 1)),
            "image_label": rng.integers(3, size=(batch, images), dtype=np.int32),
        }
    return z, rng.normal(size=batch).astype(np.float32), cond


@functools.cache
def random_params(network=NETWORK):
    """Parameters of a size that keeps features of order 1, none of them zero."""
    boxed = jax.eval_shape(network.init, jax.random.key(0), *make_inputs())["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 1
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree.map(draw, nn.meta.unbox(boxed))


@functools.cache
def compiled(network=NETWORK, num_images=0):
    return jax.jit(
        lambda params, z, logsnr, cond: network.apply(
            {"params": params}, z, logsnr, cond, num_images=num_images
        )
    )


def apply(z, logsnr, cond, params=None, **kwargs):
    params = random_params() if params is None else params
    return np.asarray(compiled(**kwargs)(params, z, logsnr, cond))


def take(inputs, index):
    return jax.tree.map(lambda a: a[index], inputs)


def close(a, b, atol=1e-4):
    # Outputs are of order 1; float32 sums in another order differ by some 1e-6.
    np.testing.assert_allclose(a, b, atol=atol)


def test_shape_and_scale():
    inputs = make_inputs()
    output = apply(*inputs)
    chex.assert_shape(output, inputs[0].shape)
    assert output.dtype == np.float32 and output.std() > 0.1


def test_the_layout_of_folded_arrays_changes_nothing():
    """Frames and pixels folded in two blocks, as where each half is on another device."""
    inputs = make_inputs(frames=2, images=2)
    blocks = NETWORK.clone(layout=layers.Layout(blocks=2))
    close(apply(*inputs, network=blocks, num_images=2), apply(*inputs, num_images=2))
    x = jnp.arange(24.0).reshape(2, 4, 3)
    layout = layers.Layout(blocks=2)
    np.testing.assert_array_equal(layout.unfold(layout.fold(x), 4), x)
    assert layout.fold(x)[2, 0] == x[1, 0, 0]  # block 0 of both clips comes first
    with pytest.raises(ValueError, match="frames and images = 3 must be a multiple of 2"):
        jax.eval_shape(blocks.init, jax.random.key(0), *make_inputs())


def test_starts_at_zero():
    output, _ = jax.jit(SMALL.init_with_output)(jax.random.key(0), *make_inputs())
    assert not output.any()


def test_output_skip_adds_the_input_times_a_gain():
    z, logsnr, cond = make_inputs()
    params = {**random_params(SMALL)}
    assert np.abs(apply(z, logsnr, cond, params, network=SMALL)).max() > 0.1
    params["output_conv"] = jax.tree.map(np.zeros_like, params["output_conv"])
    params["output_gain"] = {
        "kernel": np.zeros_like(params["output_gain"]["kernel"]),
        "bias": np.array([0.5, 1.0, 2.0], np.float32),
    }
    close(apply(z, logsnr, cond, params, network=SMALL), z * [0.5, 1.0, 2.0])


@pytest.mark.parametrize("patch", [1, 2])
def test_output_gate_has_one_gain_at_each_pixel(patch):
    z, logsnr, cond = make_inputs()
    gated = SMALL.clone(
        output=Output(skip=True, gate=True), unet=dataclasses.replace(SMALL.unet, patch_size=patch)
    )
    params = {**random_params(gated)}
    plain = {name: leaf for name, leaf in params.items() if name != "output_gate"}
    without = apply(z, logsnr, cond, plain, network=gated.clone(output=Output(skip=True)))
    closed = {**params, "output_gate": jax.tree.map(np.zeros_like, params["output_gate"])}
    close(apply(z, logsnr, cond, closed, network=gated), without)
    # The gate adds the input times a gain for each pixel, the same for its channels.
    added = (apply(z, logsnr, cond, params, network=gated) - without) / z
    assert added.std(axis=(1, 2, 3)).min() > 0.1
    assert np.median(np.ptp(added, axis=-1)) < 0.1
    only = {**params, "output_gate": {**params["output_gate"]}}
    only["output_gate"]["kernel"] = np.zeros_like(only["output_gate"]["kernel"])
    gains = np.arange(1, 1 + patch * patch, dtype=np.float32)
    only["output_gate"]["bias"] = gains
    tiles = (z.shape[2] // patch, z.shape[3] // patch, 1)
    where = np.tile(gains.reshape(patch, patch, 1), tiles)
    close(apply(z, logsnr, cond, only, network=gated), without + z * where)


def test_permuting_the_batch_permutes_the_output():
    inputs = make_inputs()
    close(apply(*take(inputs, np.array([1, 0]))), apply(*inputs)[::-1])


def test_a_clip_and_its_images_give_what_each_gives_alone():
    z, logsnr, cond = make_inputs(images=IMAGES)
    together = apply(z, logsnr, cond, num_images=IMAGES)
    clip_cond = {k: v for k, v in cond.items() if not k.startswith("image")}
    close(together[:, :FRAMES], apply(z[:, :FRAMES], logsnr, clip_cond))
    # An image alone is a video of no clip frames and one image. (The last one, whose place
    # among the frames is furthest from the clip's.)
    alone_cond = clip_cond | {k: v[:, -1:] for k, v in cond.items() if k.startswith("image")}
    close(together[:, -1:], apply(z[:, -1:], logsnr, alone_cond, num_images=1))


def test_frames_mix_only_through_temporal_attention():
    z, logsnr, cond = make_inputs()
    other = z.copy()
    other[:, 0] += 1.0
    assert np.abs(apply(z, logsnr, cond) - apply(other, logsnr, cond))[:, -1].max() > 1e-3
    params = without_temporal(random_params())
    unmoved = apply(z, logsnr, cond, params) - apply(other, logsnr, cond, params)
    close(unmoved[:, 1:], 0.0)
    assert np.abs(unmoved[:, 0]).max() > 1e-3


def without_temporal(params):
    """The parameters with every temporal attention's output projection at zero."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: 0 * a if "temporal" in path[0].key and path[1].key == "out" else a, params
    )


def test_order_of_frames_matters_without_frame_positions():
    network = NETWORK.clone(conditions=NETWORK.conditions[:2])
    params = {**random_params()}
    params["condition"] = {
        k: v
        for k, v in params["condition"].items()
        if k not in ("frame_position", "image_position")
    }
    z, logsnr, cond = make_inputs()
    forward = apply(z, logsnr, cond, params, network=network)
    backward = apply(z[:, ::-1], logsnr, cond, params, network=network)[:, ::-1]
    assert np.abs(forward - backward).max() > 1e-3  # relative position bias is signed
    params = without_temporal(params)
    forward = apply(z, logsnr, cond, params, network=network)
    close(apply(z[:, ::-1], logsnr, cond, params, network=network)[:, ::-1], forward)


def test_any_number_of_frames():
    inputs = make_inputs(frames=2 * FRAMES + 1)
    output = apply(*inputs)
    assert output.shape == inputs[0].shape and np.isfinite(output).all()


def test_null_condition_forgets_the_condition():
    params = random_params()
    z, logsnr, cond = make_inputs()
    other = make_inputs(seed=1)[2] | {"token_mask": cond["token_mask"]}
    keep = np.array([False, True])
    dropped = [
        apply(z, logsnr, c | dict.fromkeys(("keep_text", "keep_label"), keep), params)
        for c in (cond, other)
    ]
    close(dropped[0][0], dropped[1][0])
    assert np.abs(dropped[0][1] - dropped[1][1]).max() > 1e-3


def test_padding_tokens_have_no_effect():
    z, logsnr, cond = make_inputs()
    cond["token_mask"] = np.array([[True, True, False, False]] * BATCH)
    changed = cond | {"tokens": np.where(cond["token_mask"], cond["tokens"], 6)}
    close(apply(z, logsnr, cond), apply(z, logsnr, changed))
    other = cond | {"tokens": np.where(cond["token_mask"], 6 - cond["tokens"], 0)}
    assert np.abs(apply(z, logsnr, cond) - apply(z, logsnr, other)).max() > 1e-3


def test_bfloat16_computes_the_same_with_float32_parameters():
    network = NETWORK.clone(dtype=jnp.bfloat16)
    inputs = make_inputs()
    assert {a.dtype for a in jax.tree.leaves(random_params(network))} == {jnp.dtype("float32")}
    half, full = apply(*inputs, network=network), apply(*inputs)
    assert half.dtype == np.float32
    # bfloat16 has 8 bits of mantissa: about 1% after a dozen layers.
    assert np.abs(half - full).max() < 0.1 * full.std()
    assert np.abs(half - full).max() > 0


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_remat_changes_no_gradient(policy):
    inputs = jax.tree.map(jnp.asarray, make_inputs())

    def gradient(network):
        def loss(params):
            return (network.apply({"params": params}, *inputs, train=True) ** 2).mean()

        return jax.jit(jax.grad(loss))(random_params(SMALL))

    # What is recomputed is fused otherwise, so equality is up to rounding.
    kept, recomputed = gradient(SMALL), gradient(SMALL.clone(remat=policy))
    chex.assert_trees_all_close(recomputed, kept, rtol=1e-3, atol=1e-4)


def test_every_parameter_names_its_axes():
    boxed = jax.eval_shape(NETWORK.init, jax.random.key(0), *make_inputs())["params"]
    is_box = lambda leaf: isinstance(leaf, layers.Named)  # noqa: E731
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box):
        assert is_box(leaf), jax.tree_util.keystr(path)
        assert len(leaf.names) == leaf.value.ndim and any(leaf.names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "num_images = 2"),
        ({"size": 7}, "height = 7 must be a multiple of 2"),
        ({"cond": "tokens"}, "cond lacks tokens"),
        ({"remat": "much"}, "remat = 'much'"),
        (
            {"output": Output(skip=True, channels=6)},
            "input channels .3. as out_channels .6.",
        ),
    ],
)
def test_errors_come_before_compilation_and_say_what_is_wrong(change, message):
    change = dict(change)
    z, logsnr, cond = make_inputs(frames=change.pop("frames", FRAMES))
    num_images = 2 if z.shape[1] == 0 else 0
    z = z[:, :, : change.pop("size", SIZE)]
    cond.pop(change.pop("cond", ""), None)
    network = NETWORK.clone(**change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(network.init, num_images=num_images),
            jax.random.key(0),
            z,
            logsnr,
            cond,
        )


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (UNet, {"skips": "some"}, "skips = 'some'"),
        (UNet, {"num_res_blocks": (1,)}, r"num_res_blocks = \(1,\): must be one number"),
        (Output, {"gate": True}, "part of output_skip"),
    ],
)
def test_parts_refuse_values_that_are_not_allowed(part, fields, message):
    with pytest.raises(ValueError, match=message):
        part(**fields)


def test_it_names_what_it_reads():
    assert NETWORK.reads == {"tokens", "token_mask", "label"} and NETWORK.num_labels == 3
    assert SMALL.reads == frozenset() and SMALL.num_labels == 0


def test_spatial_and_temporal_blocks_are_passed_in():
    """A user's own class, with the names and calls of those of the library."""

    class Brighter(nn.Module):
        settings: BlockSettings
        dtype: str
        layout: layers.Layout = layers.ANYWHERE

        @nn.compact
        def __call__(self, x, *_):
            return x + self.param("amount", nn.initializers.ones, (1,))

    network = SMALL.clone(attention_levels=(0,), spatial=Brighter, temporal=Brighter)
    z, logsnr, cond = make_inputs()
    shapes = jax.eval_shape(network.init, jax.random.key(0), z, logsnr, cond)["params"]
    own = {name for name, leaf in shapes.items() if "amount" in leaf}
    assert own == {
        f"{place}_{kind}"
        for place in (
            "down_0_attention_0",
            "middle_attention",
            "up_0_attention_0",
            "up_0_attention_1",
        )
        for kind in ("spatial", "temporal")
    }
    params = {"params": nn.meta.unbox(shapes)}
    assert jax.eval_shape(network.apply, params, z, logsnr, cond).shape == z.shape
