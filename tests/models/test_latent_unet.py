"""The latent U-Net by its invariants, on random parameters, so that no zero hides a mistake; and
its slots, ControlNets and motion modules."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import traverse_util

from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.models import layers
from vdm_jax.models.blocks.cross_frame import CrossFrame, attending
from vdm_jax.models.blocks.latent_residual import LatentResidual
from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import ClipContext, Place, Slots
from vdm_jax.models.blocks.transformer import GatedMLP
from vdm_jax.models.condition import Concatenated, Number
from vdm_jax.models.controlnet import Control, ControlNet, copy_encoder
from vdm_jax.models.cost import level_table
from vdm_jax.models.latent_unet import LatentUNet, Timestep
from vdm_jax.models.motion_module import MotionModules
from vdm_jax.models.unet import UNet

SETTINGS = LatentSettings(depth=(1, 0), heads=(2, 2), text_width=6, norm_groups=4)
NETWORK = LatentUNet(
    unet=UNet(channels=8, channel_mult=(1, 2), num_res_blocks=1), settings=SETTINGS
)
MOTION = MotionModules(heads=2, max_frames=4, norm_groups=4, norm_over_frames=False, middle=True)
VIDEO = NETWORK.clone(slots=Slots(after_attention=MOTION))
CONTROLNET = ControlNet(unet=NETWORK.unet, settings=SETTINGS, hint_widths=(4, 6))
CONTROLLED = NETWORK.clone(controls=(Control(network=CONTROLNET, hint="edges"),))
BATCH, FRAMES, IMAGES, SIZE = 2, 3, 2, 8


def make_inputs(frames=FRAMES, images=0, seed=0):
    """z, log-SNR and all conditions that a network here reads."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    z = normal(BATCH, frames + images, SIZE, SIZE, 4)
    cond = {
        "text_embeddings": normal(BATCH, 5, 6),
        "fps": np.array([8.0, 12.0], np.float32),
        "first": z[:, ::-1],
        "edges": rng.random((*z.shape[:2], 2 * SIZE, 2 * SIZE, 3), np.float32),
    }
    if images:
        cond["image_text_embeddings"] = normal(BATCH, images, 5, 6)
    return z, normal(BATCH) - 1, cond


@functools.cache
def random_params(network):
    """Parameters of a size that keeps features of order 1, none of them zero."""
    boxed = jax.eval_shape(network.init, jax.random.key(0), *make_inputs())["params"]

    def draw(path, leaf):
        # By name: networks with a layer in common have its parameters in common.
        rng = np.random.default_rng(list(jax.tree_util.keystr(path).encode()))
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 1
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(boxed))


@functools.cache
def compiled(network, num_images=0):
    return jax.jit(
        lambda params, z, logsnr, cond: network.apply(
            {"params": params}, z, logsnr, cond, num_images=num_images
        )
    )


def started(network, image):
    """Parameters of a network as it is initialised, but for those that it has in common with an
    image network, which are random and not zero. Only the others are drawn."""
    held = traverse_util.flatten_dict(random_params(image), sep="/")

    @jax.jit
    def draw(*inputs):
        drawn = nn.meta.unbox(network.init(jax.random.key(0), *inputs)["params"])
        drawn = traverse_util.flatten_dict(drawn, sep="/")
        assert held.keys() < drawn.keys()
        return {name: leaf for name, leaf in drawn.items() if name not in held}

    return traverse_util.unflatten_dict({**held, **draw(*make_inputs())}, sep="/")


def apply(inputs, network, params=None, **kwargs):
    params = random_params(network) if params is None else params
    return np.asarray(compiled(network, **kwargs)(params, *inputs))


def close(a, b, atol=1e-4):
    # Outputs are of order 1; float32 sums in another order differ by some 1e-6.
    np.testing.assert_allclose(a, b, atol=atol)


def test_an_image_network_treats_frames_as_images():
    z, logsnr, cond = make_inputs()
    output = apply((z, logsnr, cond), NETWORK)
    assert output.shape == z.shape and output.dtype == np.float32 and output.std() > 0.1
    backwards = apply((z[:, ::-1], logsnr, cond), NETWORK)
    close(backwards[:, ::-1], output)


def test_a_clip_and_its_images_give_what_each_gives_alone():
    z, logsnr, cond = make_inputs(images=IMAGES)
    together = apply((z, logsnr, cond), VIDEO, num_images=IMAGES)
    text = {**make_inputs()[2], "text_embeddings": cond["text_embeddings"]}
    close(together[:, :FRAMES], apply((z[:, :FRAMES], logsnr, text), VIDEO))
    # The motion modules leave images to the image network.
    own = {**text, "text_embeddings": cond["image_text_embeddings"][:, -1]}
    image = NETWORK, {k: v for k, v in random_params(VIDEO).items() if "temporal" not in k}
    clip = np.repeat(z[:, -1:], FRAMES, axis=1)
    close(together[:, -1:], apply((clip, logsnr, own), *image)[:, :1])


def test_the_layout_of_folded_arrays_changes_nothing():
    """Frames and pixels folded in two blocks, as where each half is on another device."""
    z, logsnr, cond = make_inputs(frames=2, images=2)
    cond["keep_edges"] = np.array([True, False])
    over_frames = dataclasses.replace(SETTINGS, norm_over_frames=True)
    network = CONTROLLED.clone(settings=over_frames, slots=VIDEO.slots)
    in_blocks = network.clone(layout=layers.Layout(blocks=2))
    params = random_params(network)
    found, expected = (
        apply((z, logsnr, cond), one, params, num_images=2) for one in (in_blocks, network)
    )
    close(found, expected)


def test_time_text_and_order_of_frames_matter():
    z, logsnr, cond = make_inputs()
    output = apply((z, logsnr, cond), VIDEO)
    other_text = {**cond, "text_embeddings": cond["text_embeddings"] + 1}
    for change in ((z, logsnr + 1, cond), (z, logsnr, other_text)):
        assert np.abs(apply(change, VIDEO) - output).max() > 1e-2
    backwards = apply((z[:, ::-1], logsnr, cond), VIDEO)[:, ::-1]
    assert np.abs(backwards - output).max() > 1e-2
    # All tokens have weight, whatever their order.
    permuted = {**cond, "text_embeddings": cond["text_embeddings"][:, ::-1]}
    close(apply((z, logsnr, permuted), VIDEO), output)


def test_fresh_motion_modules_change_nothing():
    x = jnp.asarray(make_inputs()[0])
    folded = rearrange(x, "b f h w c -> (b f) h w c")
    place = Place(name="motion", part="middle", level=0, channels=4, heads=2, depth=1)
    output, variables = jax.jit(MOTION(place).init_with_output)(
        jax.random.key(0), folded, clip_context(FRAMES)
    )
    np.testing.assert_array_equal(output, folded)
    shift = {"project_out": {"bias": jnp.ones(4)}}
    params = nn.meta.unbox(variables["params"])
    params["project_out"] = {**params["project_out"], **shift["project_out"]}
    changed = MOTION(place).apply({"params": params}, folded, clip_context(FRAMES))
    close(changed, folded + 1)
    names = jax.eval_shape(VIDEO.init, jax.random.key(0), *make_inputs())["params"].keys()
    assert len([name for name in names if name.endswith("_temporal")]) == 2 + 1 + 4
    without = dataclasses.replace(MOTION, middle=False)
    assert without(place) is None
    with pytest.raises(ValueError, match="heads = 3 of the motion modules must divide 4"):
        dataclasses.replace(MOTION, heads=(3, 2))(place)


def clip_context(frames, num_images=0):
    return ClipContext(
        vectors=jnp.ones((BATCH * frames, 5)),
        tokens=jnp.zeros((BATCH, 1 + num_images, 1, 6)),
        frames=frames,
        num_images=num_images,
        train=False,
    )


def test_a_longer_clip_than_the_motion_modules_were_trained_on_is_refused():
    inputs = make_inputs(frames=5)
    with pytest.raises(ValueError, match="5 frames: the motion modules have positions for 4"):
        jax.eval_shape(VIDEO.init, jax.random.key(0), *inputs)


def test_cross_frame_attention_has_the_image_networks_parameters():
    crossing = attending(NETWORK, CrossFrame(frames="first"))
    params = random_params(NETWORK)
    assert jax.tree.structure(random_params(crossing)) == jax.tree.structure(params)
    z, logsnr, cond = make_inputs()
    output = apply((z, logsnr, cond), crossing, params)
    plain = apply((z, logsnr, cond), NETWORK)
    close(output[:, 0], plain[:, 0])
    assert np.abs(output - plain)[:, 1:].max() > 1e-2
    changed = np.concatenate([z[:, :1], z[:, 1:2] + 1, z[:, 2:]], axis=1)
    other = apply((changed, logsnr, cond), crossing, params)
    close(other[:, [0, 2]], output[:, [0, 2]])
    changed = np.concatenate([z[:, :1] + 1, z[:, 1:]], axis=1)
    assert np.abs(apply((changed, logsnr, cond), crossing, params) - output)[:, 2].max() > 1e-2


def test_cross_frame_attention_in_the_network_and_in_its_controlnet_are_chosen_apart():
    params, inputs = random_params(CONTROLLED), make_inputs()
    first = CrossFrame(frames="first")
    networks = {
        "neither": CONTROLLED,
        "network": attending(CONTROLLED, first),
        "control": attending(CONTROLLED, CrossFrame(frames="own"), controls=first),
        "both": attending(CONTROLLED, first, controls=first),
    }
    outputs = {name: apply(inputs, network, params) for name, network in networks.items()}
    for name, output in outputs.items():
        close(output[:, 0], outputs["neither"][:, 0])
        others = [other for key, other in outputs.items() if key != name]
        assert all(np.abs(output - other)[:, 1:].max() > 1e-3 for other in others)
    assert networks["network"].controls == CONTROLLED.controls


class Marked(nn.Module):
    """Adds a parameter that starts at zero, and keeps its place."""

    place: Place

    @nn.compact
    def __call__(self, h, context: ClipContext):
        init = layers.named(nn.initializers.zeros, layers.CHANNELS)
        return h + self.param("shift", init, h.shape[-1:])


@dataclasses.dataclass(frozen=True)
class Mark:
    levels: tuple[int, ...] = (0, 1)

    def __call__(self, place):
        is_filled = place.level in self.levels
        return Marked(place, name=place.name) if is_filled else None


def test_slots_stand_where_they_should():
    slots = Slots(after_residual=Mark(), in_transformer=Mark((1,)), after_attention=None)
    shapes = jax.eval_shape(NETWORK.clone(slots=slots).init, jax.random.key(0), *make_inputs())[
        "params"
    ]
    paths = {
        "/".join(key.key for key in path[:-1])
        for path, _ in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(shapes))
        if path[-1].key == "shift"
    }
    blocks = ["down_0_block_0", "down_1_block_0", "middle_block_0", "middle_block_1"]
    blocks += [f"up_{level}_block_{i}" for level in range(2) for i in range(2)]
    # Level 1 has no attention but in the middle.
    expected = {f"{block}_temporal" for block in blocks} | {"middle_attention/temporal_0"}
    assert paths == expected


def test_what_stands_in_a_slot_reaches_the_output():
    slots = Slots(after_residual=Mark(), after_attention=Mark(), in_transformer=Mark())
    network = NETWORK.clone(slots=slots)
    inputs = jax.tree.map(jnp.asarray, make_inputs())

    def total(shifts, params):
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: shifts.get(jax.tree_util.keystr(path), leaf), params
        )
        output = network.apply({"params": params}, *inputs)
        return (output**2).sum(), output

    params = random_params(network)
    shifts = {
        jax.tree_util.keystr(path): jnp.zeros_like(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "shift"
    }
    assert len(shifts) == 8 + 7 + 4
    gradients, output = jax.jit(jax.grad(total, has_aux=True))(shifts, params)
    close(output, apply(inputs, NETWORK))
    assert all(jnp.abs(gradient).max() > 1e-3 for gradient in gradients.values())


def test_normalisation_over_frames_pools_the_clip_and_no_image():
    """A residual block of a clip is that of one tall frame, where kernels see one pixel."""
    frames = FRAMES + IMAGES
    x = jnp.asarray(make_inputs(images=IMAGES)[0] * [[[[[1, 2, 3, 4]]]]], jnp.float32)
    settings = dataclasses.replace(SETTINGS, norm_groups=2)
    folded = rearrange(x, "b f h w c -> (b f) h w c")
    init = jax.jit(LatentResidual(4, settings).init)
    params = init(jax.random.key(0), folded, clip_context(frames, IMAGES))["params"]
    params = nn.meta.unbox(params)
    for kernel in ("conv_in", "conv_out"):
        one_pixel = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4) + 0.1)
        params[kernel] = {"kernel": one_pixel, "bias": params[kernel]["bias"]}

    def block(x, over_frames, frames, images):
        one = dataclasses.replace(settings, norm_over_frames=over_frames)
        context = clip_context(frames, images).replace(vectors=jnp.ones((len(x), 5)))
        apply = jax.jit(LatentResidual(4, one).apply)
        return rearrange(apply({"params": params}, x, context), "(b f) h w c -> b f h w c", b=BATCH)

    pooled = block(folded, True, frames, IMAGES)
    tall = rearrange(x[:, :FRAMES], "b f h w c -> b (f h) w c")
    expected = rearrange(block(tall, False, 1, 0), "b 1 (f h) w c -> b f h w c", f=FRAMES)
    close(pooled[:, :FRAMES], expected, atol=1e-5)
    each = block(folded, False, frames, IMAGES)
    close(pooled[:, FRAMES:], each[:, FRAMES:], atol=1e-5)
    assert np.abs(pooled - each)[:, :FRAMES].max() > 1e-2


def test_the_last_normalisation_may_be_over_frames():
    over_frames = dataclasses.replace(SETTINGS, norm_over_frames=True)
    network = NETWORK.clone(settings=over_frames)
    z, logsnr, cond = make_inputs()
    # Residual blocks are their shortcuts, so that no other normalisation has an effect on it.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[1].key == "conv_out" else leaf, random_params(NETWORK)
    )
    same = np.repeat(z[:, :1], FRAMES, axis=1)
    close(*(apply((same, logsnr, cond), one, params) for one in (network, NETWORK)))
    found, each = (apply((z, logsnr, cond), one, params) for one in (network, NETWORK))
    assert np.abs(found - each).max() > 1e-2


def test_a_controlnet_starts_from_its_base_and_changes_nothing():
    inputs = jax.tree.map(jnp.asarray, make_inputs())
    base = random_params(NETWORK)

    @jax.jit
    def start(key, base):
        fresh = nn.meta.unbox(CONTROLNET.init(key, *inputs, inputs[2]["edges"])["params"])
        copied = copy_encoder(fresh, base)

        def loss(control):
            output = CONTROLLED.apply({"params": {**base, "control_edges": control}}, *inputs)
            return (output**2).mean(), output

        gradients, output = jax.grad(loss, has_aux=True)(copied)
        return copied, output, gradients

    copied, output, gradients = start(jax.random.key(3), base)
    shared = {name for name in copied if name in base}
    own = {"hint", "residual_middle", *(f"residual_{i}" for i in range(4))}
    assert {"condition", "middle_attention", "input_conv"} < shared
    assert copied.keys() - shared == own
    for name in shared:
        assert jax.tree.all(jax.tree.map(np.array_equal, copied[name], base[name]))
    close(output, apply(inputs, NETWORK))
    # The zero layers of the copy have gradients, so that it learns.
    for name in own - {"hint"}:
        assert np.abs(gradients[name]["kernel"]).max() > 1e-4, name
    lacking = {key: value for key, value in inputs[2].items() if key != "edges"}
    with pytest.raises(ValueError, match="cond lacks edges"):
        jax.eval_shape(CONTROLLED.init, jax.random.key(0), *inputs[:2], lacking)


def test_a_controlnet_that_pools_adds_the_same_everywhere():
    pooling = CONTROLNET.clone(pools=True)
    z, logsnr, cond = make_inputs()
    params = {"params": random_params(CONTROLLED)["control_edges"]}

    @jax.jit
    def both(z, logsnr, cond):
        inputs = (z, logsnr, cond, cond["edges"])
        return pooling.apply(params, *inputs), CONTROLNET.apply(params, *inputs)

    (middle, skips), plain = both(z, logsnr, cond)
    assert {h.shape[1:3] for h in (middle, *skips)} == {(1, 1)}
    close(middle, plain[0].mean((1, 2), keepdims=True))
    close(skips[1], plain[1][1].mean((1, 2), keepdims=True))


def test_further_conditions_enter_as_vectors_and_channels():
    network = NETWORK.clone(
        in_channels=8, conditions=(Number(key="fps"),), videos=(Concatenated(key="first"),)
    )
    z, logsnr, cond = make_inputs()
    assert network.reads == {"text_embeddings", "fps", "first"}
    assert CONTROLLED.reads == {"text_embeddings", "edges"}
    output = apply((z, logsnr, cond), network)
    for change in ({"fps": cond["fps"] + 10}, {"first": z}):
        assert np.abs(apply((z, logsnr, {**cond, **change}), network) - output).max() > 1e-3


def test_the_timestep_of_another_schedule():
    schedule = LinearBetaSchedule(beta_start=0.00085, beta_end=0.012)
    time = Timestep(schedule=schedule)
    steps = jnp.array([1.0, 500.0, 998.0])
    np.testing.assert_allclose(time(schedule(steps / 999)), steps, rtol=1e-3)
    assert NETWORK.clone(time=time) != NETWORK and NETWORK.clone(time=Timestep()) == NETWORK


def test_bfloat16_computes_the_same_with_float32_parameters():
    network = VIDEO.clone(dtype=jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(random_params(network))} == {jnp.dtype("float32")}
    inputs = make_inputs()
    half, full = apply(inputs, network), apply(inputs, VIDEO)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.1 * full.std()


def test_remat_recomputes_each_block_and_keeps_names_of_parameters():
    inputs = jax.tree.map(jnp.asarray, make_inputs())
    recomputed = CONTROLLED.clone(slots=VIDEO.slots, remat="full")
    expected = jax.eval_shape(recomputed.clone(remat="none").init, jax.random.key(0), *inputs)
    params = jax.eval_shape(recomputed.init, jax.random.key(0), *inputs)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    apply = jax.make_jaxpr(functools.partial(recomputed.apply, train=True))
    equations = apply(nn.meta.unbox(params), *inputs).jaxpr.eqns
    # Residual blocks, transformers and motion modules of the U-Net; the first two of its copy.
    blocks = (8 + 4 + 7) + (4 + 2)
    assert sum("remat" in equation.primitive.name for equation in equations) == blocks


def test_the_gate_of_an_mlp_is_the_second_half_through_the_exact_gelu():
    h = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    params = nn.meta.unbox(GatedMLP().init(jax.random.key(0), h)["params"])
    both = jnp.einsum("nc,ckh->knh", h, params["linear_in"]["kernel"])
    gate = both[1] * (1 + jax.scipy.special.erf(both[1] / np.sqrt(2))) / 2
    expected = (both[0] * gate) @ params["linear_out"]["kernel"]
    close(GatedMLP().apply({"params": params}, h), expected, atol=1e-6)


def test_each_normalisation_adds_its_own_number_to_the_variance():
    """1e-5 in residual blocks and at the output, 1e-6 before the first maps of transformers and
    motion modules. Features of order 1 hardly show the difference."""
    found = {}

    def collect(call, args, kwargs, context):
        if isinstance(context.module, layers.GroupNorm | nn.LayerNorm):
            found[context.module.path] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(collect):
        jax.eval_shape(VIDEO.init, jax.random.key(0), *make_inputs())
    first_maps = {path for path in found if path[-1] == "norm"}
    assert len(first_maps) == 4 + 7
    assert {found[path] for path in first_maps} == {1e-6}
    assert {found[path] for path in found.keys() - first_maps} == {1e-5}


def test_every_parameter_names_its_axes():
    network = CONTROLLED.clone(slots=VIDEO.slots)
    z, logsnr, cond = make_inputs()
    boxed = jax.eval_shape(network.init, jax.random.key(0), z, logsnr, cond)["params"]
    is_box = lambda leaf: isinstance(leaf, layers.Named)  # noqa: E731
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box):
        assert is_box(leaf), jax.tree_util.keystr(path)
        assert len(leaf.names) == leaf.value.ndim and any(leaf.names)
    row = {row.level: row for row in level_table(network, z.shape[1:], _one(cond))}
    assert list(row) == [
        *("condition", "input", "down 0", "down 1", "middle", "control_edges"),
        *("up 1", "up 0", "output"),
    ]
    assert row["down 0"].attention == "space + text + time" and row["down 1"].attention == "time"
    assert row["down 1"].resolution == "4 x 4" and all(row[name].flops for name in row)
    total = sum(leaf.value.size for leaf in jax.tree.leaves(boxed, is_leaf=is_box))
    assert sum(one.parameters for one in row.values()) == total


def _one(cond):
    return {key: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype) for key, v in cond.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "num_images = 2"),
        ({"size": 7}, "height = 7 must be a multiple of 2"),
        ({"cond": "text_embeddings"}, "cond lacks text_embeddings"),
        ({"remat": "much"}, "remat = 'much'"),
        ({"in_channels": 9}, r"in_channels = 9: must be the sum of .*\[4\]"),
        (
            {"settings": dataclasses.replace(SETTINGS, text_width=7)},
            r"must be \(batch, tokens, 7\)",
        ),
        ({"settings": dataclasses.replace(SETTINGS, heads=(3, 2))}, "heads = 3 must divide 8"),
        ({"settings": LatentSettings()}, "heads = .8, 8, 8, 8.: must be one number for each of 2"),
        ({"layout": layers.Layout(blocks=2)}, "frames and images = 3 must be a multiple of 2"),
    ],
)
def test_errors_come_before_compilation_and_say_what_is_wrong(change, message):
    change = dict(change)
    z, logsnr, cond = make_inputs(frames=change.pop("frames", FRAMES))
    num_images = 2 if z.shape[1] == 0 else 0
    z = z[:, :, : change.pop("size", SIZE)]
    cond.pop(change.pop("cond", ""), None)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(NETWORK.clone(**change).init, num_images=num_images),
            *(jax.random.key(0), z, logsnr, cond),
        )


def test_settings_must_agree():
    with pytest.raises(ValueError, match=r"depth = \(1,\), heads = \(8, 8\)"):
        LatentSettings(depth=(1,), heads=(8, 8))
