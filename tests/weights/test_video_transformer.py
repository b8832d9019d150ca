"""Wan's transformer against what the published one computed (`record_wan.py`), packed rows, and its
folders in and out."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from tests.weights import drawn_files
from tests.weights.drawn_files import assert_close
from vdm_jax.diffusion.schedules import flow_to_vp
from vdm_jax.models import cost, packing
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.packing import Sample
from vdm_jax.models.video_transformer import FlowTime, VideoTransformer, from_patches
from vdm_jax.weights import fetch, published, video_transformer

FILE = f"{published.DIFFUSERS}.safetensors"
TEXT = "text_embeddings"


@pytest.fixture(scope="module")
def golden():
    return drawn_files.read("wan_transformer")


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield golden.write(folder / "published", published.DIFFUSERS)


@pytest.fixture(scope="module")
def loaded(folder):
    return video_transformer.read_folder(folder)


@pytest.fixture(scope="module")
def run(loaded):
    """The network compiled as a function of (z, log-SNR, condition)."""
    network, params = loaded
    return jax.jit(lambda *inputs: network.apply({"params": params}, *inputs))


def in_order(clip):
    """(b, c, f, h, w) as (b, f, h, w, c)."""
    return jnp.asarray(np.moveaxis(clip, 1, -1))


def logsnr_of_timestep(timestep):
    t = np.asarray(timestep, np.float64) / 1000
    return jnp.asarray(2 * np.log((1 - t) / t), jnp.float32)


def test_outputs_and_gradients_are_those_of_the_published_network(loaded, golden, tmp_path):
    network, params = loaded
    logsnr = logsnr_of_timestep(golden.values["timestep"])
    cond = {TEXT: jnp.asarray(golden.values["text"])}

    @jax.jit
    def gradients(params, z):
        def total(params, z):
            # The published network takes rectified flow's z.
            output = network.apply({"params": params}, flow_to_vp(z, logsnr), logsnr, cond)
            return jnp.mean(output**2), output

        return jax.grad(total, (0, 1), has_aux=True)(params, z)

    (by_path, z_gradient), output = gradients(params, in_order(golden.values["z"]))
    assert_close(output, in_order(golden.values["output"]))
    assert_close(z_gradient, in_order(golden.values["gradient/z"]), 1e-3)
    video_transformer.write_folder(tmp_path / "gradients", network, by_path)
    found = safetensors.numpy.load_file(tmp_path / "gradients" / FILE)
    wanted = golden.gradients()
    assert len(wanted) == 9
    for name, gradient in wanted.items():
        assert_close(found[name], gradient, 1e-3, name)


def samples(number):
    """Clips of different sizes with texts of different lengths."""
    rng = np.random.default_rng(0)
    sizes = [(1, 4, 6), (3, 4, 2), (2, 2, 2)][:number]
    return [
        Sample(
            rng.normal(size=(*size, 4)).astype(np.float32),
            float(rng.normal() * 3),
            rng.normal(size=(3 + place, 16)).astype(np.float32),
        )
        for place, size in enumerate(sizes)
    ]


def test_a_packed_sample_equals_the_sample_alone(loaded):
    network, params = loaded
    rows = [samples(3), samples(2)]
    packed = packing.pack(rows, network.patch, length=20, text_length=14)
    apply = functools.partial(network.apply, {"params": params})

    @jax.jit
    def alone(samples):
        return [
            apply(sample.z[None], jnp.full(1, sample.logsnr), {TEXT: sample.text[None]})
            for sample in samples
        ]

    found = jax.jit(functools.partial(apply, method="packed"))(packed)
    assert found.shape == (2, 20, 1, 2, 2, 4)
    wanted = alone(rows[0])
    for row, outputs in zip(rows, found, strict=True):
        at = 0
        for sample, one in zip(row, wanted, strict=False):
            sizes = [n // p for n, p in zip(sample.z.shape, network.patch, strict=False)]
            end = at + math.prod(sizes)
            assert_close(from_patches(outputs[None, at:end], sizes), one, 1e-5)
            at = end


def test_a_row_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="length = 8: row 0 has 14 tokens"):
        packing.pack([samples(3)], (1, 2, 2), length=8, text_length=20)
    with pytest.raises(ValueError, match="text_length = 2: row 0 has 12 tokens"):
        packing.pack([samples(3)], (1, 2, 2), length=20, text_length=2)
    with pytest.raises(ValueError, match=r"a clip of \(1, 4, 6\): must be multiples of patch"):
        packing.num_tokens((1, 4, 6, 4), (1, 2, 4))


def test_images_beside_a_clip_are_samples_of_their_own(loaded):
    network, params = loaded
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 4, 4))
    texts = jax.random.normal(jax.random.key(1), (2, 2, 5, 16))
    logsnr = jnp.array([1.0, -2.0])
    cond = {TEXT: texts[:, 0], f"image_{TEXT}": texts[:, 1:]}
    apply = functools.partial(network.apply, {"params": params})

    @jax.jit
    def run(z):
        clip = apply(z[:, :3], logsnr, {TEXT: texts[:, 0]})
        image = apply(z[:, 3:], logsnr, {TEXT: texts[:, 1]})
        return apply(z, logsnr, cond, num_images=1), clip, image

    together, clip, image = run(z)
    assert_close(together, jnp.concatenate([clip, image], axis=1), 1e-5)


def test_positions_have_no_origin_and_matter(run, loaded, golden):
    network, params = loaded
    z, cond = in_order(golden.values["z"]), {TEXT: jnp.asarray(golden.values["text"])}
    logsnr = jnp.array([1.0, -2.0])
    here = run(z, logsnr, cond)
    moved = jax.jit(functools.partial(network.apply, {"params": params}, origin=(7, 100.5, 30)))
    there = moved(z, logsnr, cond)
    assert_close(there, here, 1e-4)
    mirrored = run(z[:, ::-1], logsnr, cond)[:, ::-1]
    assert np.abs(mirrored - here).max() > 0.01 * np.abs(here).max()


def test_recomputing_blocks_changes_no_gradient(loaded, golden):
    z, cond = in_order(golden.values["z"]), {TEXT: jnp.asarray(golden.values["text"])}

    def gradient(network):
        def total(params):
            return (network.apply({"params": params}, z, jnp.array([1.0, -2.0]), cond) ** 2).sum()

        return jax.jit(jax.grad(total))(loaded.params)

    jax.tree.map(
        lambda found, wanted: assert_close(found, wanted, 1e-5),
        gradient(loaded.network.clone(remat="full")),
        gradient(loaded.network),
    )


def test_the_blocks_are_traced_once(loaded):
    def primitives(depth):
        network = loaded.network.clone(depth=depth)
        params = video_transformer.shapes(network)
        z = jax.ShapeDtypeStruct((1, 1, 4, 4, 4), jnp.float32)
        cond = {TEXT: jax.ShapeDtypeStruct((1, 3, 16), jnp.float32)}
        logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
        lowered = jax.jit(lambda p, *a: network.apply({"params": p}, *a)).lower(
            params, z, logsnr, cond
        )
        return lowered.as_text().count("dot_general")

    assert primitives(2) == primitives(12)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_round_trip_is_equal_in_every_bit(dtype, golden, tmp_path):
    weights = {name: tensor.astype(dtype) for name, tensor in golden.weights.items()}
    written = golden._replace(weights=weights).write(tmp_path / "first", published.DIFFUSERS)
    network, params = video_transformer.read_folder(written)
    copy = tmp_path / "copy"
    video_transformer.write_folder(copy, network, params, dtype)
    again = safetensors.numpy.load_file(copy / FILE)
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert again[name].dtype == dtype
        np.testing.assert_array_equal(again[name], tensor, name)
    config = json.loads((copy / "config.json").read_text())
    left_out = ("_diffusers_version", "rope_max_seq_len")
    assert config == {k: v for k, v in golden.config.items() if k not in left_out}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_original_names_are_read(prefix, tmp_path):
    network = VideoTransformer(
        settings=TransformerSettings(heads=1, hidden=8),
        depth=2,
        in_channels=4,
        out_channels=6,
        time_features=8,
        text_width=5,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        video_transformer.shapes(network),
    )
    video_transformer.write_folder(tmp_path / "folder", network, params)
    tensors = safetensors.numpy.load_file(tmp_path / "folder" / FILE)
    renamed = {prefix + as_originally(name): tensor for name, tensor in tensors.items()}
    assert f"{prefix}blocks.1.norm3.weight" in renamed
    file = tmp_path / "wan2.1_t2v.safetensors"
    safetensors.numpy.save_file(renamed, file)
    found, again = video_transformer.read_file(file)
    assert found == network
    jax.tree.map(np.testing.assert_array_equal, again, params)


def as_originally(name):
    names = {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "proj_out": "head.head",
        "attn1": "self_attn",
        "attn2": "cross_attn",
        "to_out.0": "o",
        "to_": "",
        "norm2": "norm3",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
    }
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, original in {**names, "scale_shift_table": "modulation"}.items():
        name = name.replace(ours, original)
    return name


WAN_14B = VideoTransformer(settings=TransformerSettings(heads=40, hidden=13_824), depth=40)


@pytest.mark.parametrize(
    "network,parameters,tensors",
    [(VideoTransformer(), 1_418_996_800, 825), (WAN_14B, 14_288_491_584, 1095)],
    ids=["1.3B", "14B"],
)
def test_published_sizes(network, parameters, tensors):
    leaves = jax.tree_util.tree_leaves_with_path(video_transformer.shapes(network))
    name = video_transformer.name_function(network)
    names = set()
    for path, _ in leaves:
        names |= {place.name for place in published.all_places(name(keystr(path)))}
    assert sum(math.prod(leaf.shape) for _, leaf in leaves) == parameters
    assert len(names) == tensors


def keystr(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def test_every_block_is_counted(loaded):
    cond = {TEXT: jax.ShapeDtypeStruct((1, 5, 16), jnp.float32)}

    def blocks(depth):
        table = cost.level_table(loaded.network.clone(depth=depth), (3, 4, 6, 4), cond)
        assert [row.level for row in table] == ["condition", "input", "blocks", "output"]
        return next(row for row in table if row.level == "blocks")

    width, tokens, text = 24, 18, 5
    products = 4 * tokens * tokens * width + 4 * tokens * text * width
    linear = 2 * width * width * (4 * tokens + 2 * tokens + 2 * text) + 4 * tokens * width * 32
    assert blocks(1).flops == products + linear
    assert blocks(7).flops == 7 * blocks(1).flops
    assert blocks(7).parameters == 7 * blocks(1).parameters
    assert blocks(1).attention == "space-time + text"


def test_times_are_whole_where_published_samplers_cut_them():
    logsnr = logsnr_of_timestep([987.5, 37.25])
    np.testing.assert_allclose(FlowTime()(logsnr), [987.5, 37.25], atol=1e-3)
    np.testing.assert_array_equal(FlowTime(whole=True)(logsnr), [987, 37])


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"_class_name": "DiTTransformer2DModel"}, "_class_name = 'DiT.*: allowed are"),
        ({"image_dim": 1280}, "image_dim = 1280: allowed is None"),
        ({"added_kv_proj_dim": 5120}, "added_kv_proj_dim = 5120: allowed is None"),
        ({"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm': allowed is 'rms_norm_across_heads'"),
        ({"window_size": [1]}, r"window_size = \[1\] is not understood"),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_name(changes, message, golden, tmp_path):
    with pytest.raises(ValueError, match=message):
        video_transformer.read_config(golden.write(tmp_path, published.DIFFUSERS, **changes))


@pytest.mark.parametrize(
    "shape,text,images,message",
    [
        ((1, 3, 4, 4), (1, 5, 16), 0, r"z has shape \(1, 3, 4, 4\)"),
        ((1, 3, 4, 5, 4), (1, 5, 16), 0, "width = 5 must be a multiple of 2"),
        ((1, 3, 4, 4, 4), (1, 5, 12), 0, r"text_embeddings \(1, 5, 12\) must be"),
        ((1, 3, 4, 4, 4), (1, 5, 16), 4, "num_images = 4: the video has 3 frames"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, text, images, message, loaded):
    with pytest.raises(ValueError, match=message):
        loaded.network.check(jnp.zeros(shape), {TEXT: jnp.zeros(text)}, images)
    with pytest.raises(ValueError, match="cond lacks text_embeddings"):
        loaded.network.check(jnp.zeros((1, 3, 4, 4, 4)), {}, 0)


def test_modulation_of_each_block_starts_at_zero():
    network = VideoTransformer(
        settings=TransformerSettings(
            heads=2, head_dim=4, hidden=8, qk_norm="head", modulation="block", positions="sines"
        ),
        depth=2,
        in_channels=4,
        out_channels=4,
        time_features=8,
        flow=False,
        text_width=5,
    )
    z = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 4))
    cond = {TEXT: jnp.ones((2, 3, 5))}
    logsnr = jnp.array([-3.0, 2.0])

    @jax.jit
    def run():
        params = nn.meta.unbox(network.init(jax.random.key(1), z, logsnr, cond)["params"])
        shown = jax.tree.map(lambda leaf: leaf, params)
        kernel = shown["output"]["linear"]["kernel"]
        shown["output"]["linear"]["kernel"] = jax.random.normal(jax.random.key(2), kernel.shape)
        moved = jax.tree.map(lambda leaf: leaf, shown)
        moved["blocks"]["modulation"]["kernel"] += 0.1
        same = jnp.broadcast_to(z[:1], z.shape)
        return [
            network.apply({"params": params}, z, logsnr, cond),
            network.apply({"params": shown}, same, logsnr, cond),
            network.apply({"params": moved}, same, logsnr, cond),
            params["blocks"]["attention_self"]["query_norm"]["scale"],
        ]

    start, shown, moved, scale = run()
    assert not start.any()
    # The noise level has no effect at first.
    assert_close(shown[1], shown[0], 1e-6)
    assert np.abs(moved[1] - moved[0]).max() > 1e-3
    assert scale.shape == (2, 4)  # of each layer, a feature of a head


@pytest.mark.parametrize(
    "field,value", [("qk_norm", "layer"), ("attention", "axial"), ("positions", "learned")]
)
def test_settings_that_do_not_exist_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} = '{value}': allowed are"):
        TransformerSettings(**{field: value})
