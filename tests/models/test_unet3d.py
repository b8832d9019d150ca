"""The 3D U-Net by its invariants, on random parameters (so that no zero hides a mistake)."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models import cost as flops
from vdm_jax.models import layers
from vdm_jax.models.unet3d import UNet3D

NETWORK = UNet3D(
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(1,),
    head_dim=4,
    norm_groups=4,
    vocab_size=7,
    max_length=4,
    num_labels=3,
    frame_positions=True,
)
SMALL = UNet3D(
    channels=4,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_levels=(),
    head_dim=4,
    norm_groups=2,
    output_skip=True,
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
        "keep": np.ones(batch, bool),
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


@pytest.mark.parametrize(("gates", "patch"), [(1, 2), (3, 1)])
def test_output_gate_has_gains_at_each_pixel(gates, patch):
    z, logsnr, cond = make_inputs()
    gated = SMALL.clone(output_gate=gates, patch_size=patch)
    params = {**random_params(gated)}
    plain = {name: leaf for name, leaf in params.items() if name != "output_gate"}
    without = apply(z, logsnr, cond, plain, network=gated.clone(output_gate=0))
    closed = {**params, "output_gate": jax.tree.map(np.zeros_like, params["output_gate"])}
    close(apply(z, logsnr, cond, closed, network=gated), without)
    # What the gate adds is the input times a gain that depends on where, and of channels on which.
    added = (apply(z, logsnr, cond, params, network=gated) - without) / z
    assert added.std(axis=(1, 2, 3)).min() > 0.1
    assert (np.median(np.ptp(added, axis=-1)) > 0.1) == (gates == 3)
    only = {**params, "output_gate": {**params["output_gate"]}}
    only["output_gate"]["kernel"] = np.zeros_like(only["output_gate"]["kernel"])
    gains = np.arange(1, 1 + patch * patch * gates, dtype=np.float32)
    only["output_gate"]["bias"] = gains
    tiles = (z.shape[2] // patch, z.shape[3] // patch, 1)
    where = np.tile(gains.reshape(patch, patch, gates), tiles)
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
    network = NETWORK.clone(frame_positions=False)
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


@pytest.mark.parametrize("null", ["learned", "zero"])
def test_null_condition_forgets_the_condition(null):
    network = NETWORK.clone(null_condition=null)
    params = random_params(network)
    z, logsnr, cond = make_inputs()
    other = make_inputs(seed=1)[2] | {"token_mask": cond["token_mask"]}
    dropped = [
        apply(z, logsnr, c | {"keep": np.array([False, True])}, params, network=network)
        for c in (cond, other)
    ]
    close(dropped[0][0], dropped[1][0])
    assert np.abs(dropped[0][1] - dropped[1][1]).max() > 1e-3


def test_padding_tokens_say_nothing():
    z, logsnr, cond = make_inputs()
    cond["token_mask"] = np.array([[True, True, False, False]] * BATCH)
    changed = cond | {"tokens": np.where(cond["token_mask"], cond["tokens"], 6)}
    close(apply(z, logsnr, cond), apply(z, logsnr, changed))
    said = cond | {"tokens": np.where(cond["token_mask"], 6 - cond["tokens"], 0)}
    assert np.abs(apply(z, logsnr, cond) - apply(z, logsnr, said)).max() > 1e-3


def test_bfloat16_computes_the_same_with_float32_parameters():
    network = NETWORK.clone(dtype=jnp.bfloat16)
    inputs = make_inputs()
    assert {a.dtype for a in jax.tree.leaves(random_params(network))} == {jnp.dtype("float32")}
    half, full = apply(*inputs, network=network), apply(*inputs)
    assert half.dtype == np.float32
    # bfloat16 has 8 bits of mantissa: about 1% after a dozen layers.
    assert np.abs(half - full).max() < 0.1 * full.std()
    assert np.abs(half - full).max() > 0


@pytest.mark.parametrize("size", [1, 3, 5])
def test_gradients_of_a_convolution_are_those_of_lax(size):
    """They are written out for CPUs, by x and by the kernel, alone, in a map and in a scan."""
    random = np.random.default_rng(size)
    x = jnp.asarray(random.normal(size=(3, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(size, size, 4, 7)), jnp.float32)
    towards = jnp.asarray(random.normal(size=(3, 6, 5, 7)), jnp.float32)

    def plain(x, kernel):
        pad = [(size // 2, size // 2)] * 2
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=names)

    def gradients(convolution):
        def of(x, kernel):
            return jnp.vdot(jnp.tanh(convolution(x, kernel)), towards)

        def mapped(x, kernel):
            rows = jax.vmap(lambda row: convolution(row[None], kernel)[0])(x)
            return jnp.vdot(jnp.tanh(rows), towards)

        def scanned(x, kernel):
            def body(total, row):
                return total + jnp.sum(convolution(row[None], kernel) ** 2), None

            return jax.lax.scan(body, 0.0, x)[0]

        return jax.jit(
            lambda x, kernel: [jax.grad(f, (0, 1))(x, kernel) for f in (of, mapped, scanned)]
        )(x, kernel)

    np.testing.assert_allclose(layers.same_conv(x, kernel), plain(x, kernel), rtol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(gradients(layers.same_conv)), jax.tree.leaves(gradients(plain)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_remat_policy_dots_keeps_convolutions():
    """It computes no convolution again; full does, in the backward pass."""

    def convolutions(policy):
        block = layers.remat(layers.ResidualBlock, policy, static_argnums=(3,))(8, 4)
        h, embedding = jnp.zeros((1, 4, 4, 8)), jnp.zeros((1, 8))
        params = jax.eval_shape(lambda: block.init(jax.random.key(0), h, embedding, True))
        gradient = jax.grad(lambda h, p: block.apply(p, h, embedding, True).sum())
        return str(jax.make_jaxpr(gradient)(h, params)).count("= conv_general_dilated")

    assert convolutions("none") == convolutions("dots") < convolutions("full")


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
        ({"skips": "some"}, "skips = 'some'"),
        ({"remat": "much"}, "remat = 'much'"),
        ({"spatial_attention": "sparse"}, "spatial_attention = 'sparse'"),
        ({"null_condition": "none"}, "null_condition = 'none'"),
        ({"output_skip": True, "out_channels": 6}, "input channels .3. as out_channels .6."),
        (
            {"output_skip": True, "output_gate": 2},
            "output_gate = 2: must be 0, 1 or out_channels .3.",
        ),
        ({"output_gate": 1}, "part of output_skip"),
    ],
)
def test_errors_come_before_compilation_and_say_what_is_wrong(change, message):
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


def test_level_skips_mirror_their_description():
    network = UNet3D(
        channels=8,
        channel_mult=(1, 2),
        num_res_blocks=2,
        attention_levels=(0, 1),
        heads=2,
        head_dim=4,
        norm_groups=4,
        spatial_attention="linear",
        skips="level",
        initial_kernel=7,
        initial_temporal=True,
    )
    z, logsnr, _ = make_inputs()
    params = jax.eval_shape(network.init, jax.random.key(0), z, logsnr, {})["params"]
    names = {n for n in params if n.startswith("up")}
    assert names == {
        *(f"up_{level}_block_{i}" for level in (0, 1) for i in (0, 1)),
        *(f"up_{level}_attention_1_{kind}" for level in (0, 1) for kind in ("spatial", "temporal")),
        "up_1_resize",
    }
    output = jax.jit(network.apply)(
        {"params": jax.tree.map(lambda a: jnp.ones(a.shape) * 0.1, nn.meta.unbox(params))},
        z, logsnr, {},
    )  # fmt: skip
    assert output.shape == z.shape and np.isfinite(output).all()


def test_level_table_counts_what_there_is():
    z, logsnr, cond = make_inputs(batch=1)
    rows = flops.level_table(NETWORK, z.shape[1:], cond)
    params = random_params()
    assert sum(row.parameters for row in rows) == sum(a.size for a in jax.tree.leaves(params))
    assert [row.level for row in rows] == [
        "condition", "input", "down 0", "down 1", "middle", "up 1", "up 0", "output",
    ]  # fmt: skip
    assert rows[3].resolution == "4 x 4" and rows[3].channels == 16
    assert rows[3].attention == "space + text + time" and rows[2].attention == "-"
    pixels = FRAMES * SIZE * SIZE
    assert rows[1].flops == 2 * pixels * 9 * 3 * 8
    assert rows[2].flops == 2 * (
        pixels * 9 * 8 * 8 * 2 + FRAMES * 32 * 16 + pixels // 4 * 9 * 8 * 8
    )
    # XLA leaves out a convolution's padding and counts norms and activations as well, so the two
    # agree roughly.
    lowered = compiled().lower(params, z, logsnr, cond)
    ratio = lowered.cost_analysis()["flops"] / sum(row.flops for row in rows)
    assert 0.8 < ratio < 1.25
