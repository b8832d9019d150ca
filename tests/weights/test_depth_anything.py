"""Depth Anything computes what transformers' does, and reads its folders.

The golden files are recorded by `record_depth_anything.py`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import golden_files
from tests.weights.golden_files import assert_close, weighted
from vdm_jax.models.vision.depth_anything import DepthAnything, DepthImages
from vdm_jax.weights import depth_anything, published


def write_folder(folder, golden, **changes):
    """A published folder of a golden file, whose images are prepared as those of the real one."""
    golden_files.write_folder(folder, golden, **changes)
    images = golden_files.read("depth_anything_images").config
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder


@pytest.mark.parametrize("name", ["relative", "metric"])
def test_depth_equals_the_originals(tmp_path, name):
    golden = golden_files.read(f"depth_anything_{name}")
    network, _, params = depth_anything.read_folder(write_folder(tmp_path / name, golden))

    @jax.jit
    def run(params, images):
        def loss(images):
            depth = network.apply({"params": params}, images)
            return weighted(depth), depth

        return jax.grad(loss, has_aux=True)(images)

    images = golden.values["images"].transpose(0, 2, 3, 1)
    gradient, depth = run(params, images)
    assert_close(depth, golden.values["depth"])
    assert_close(gradient, golden.values["gradient/images"].transpose(0, 2, 3, 1), within=1e-3)
    with pytest.raises(ValueError, match="must be multiples of 4, the patch size"):
        network.apply({"params": params}, jnp.zeros((1, 8, 10, 3)))


def test_images_are_prepared_as_by_the_original(tmp_path):
    golden = golden_files.read("depth_anything_images")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(golden.config))
    prepare = depth_anything.read_preprocessing(tmp_path)
    for name in ("wide", "tall", "small"):
        image = golden.values[f"{name}/image"]
        found = prepare(jnp.asarray(image[None], jnp.float32) / 127.5 - 1)[0]
        wanted = golden.values[f"{name}/values"]
        assert found.shape == wanted.shape
        # The original rounds to whole pixels twice, once for each side.
        assert np.abs(found - wanted).max() < 1.5 / 255 / min(prepare.deviation)


@pytest.mark.parametrize(
    ("size", "wanted"), [((64, 64), (518, 518)), ((480, 640), (518, 686)), ((256, 512), (252, 518))]
)
def test_the_published_size_keeps_proportions(size, wanted):
    assert DepthImages().resized(*size) == wanted
    assert DepthImages(keep_ratio=False).resized(*size) == (518, 518)


def test_the_small_size_is_the_published_one():
    """Depth Anything V2 small has 24,785,089 parameters in 287 tensors, by transformers' class on
    the meta device. The mask token, a residual branch that is never used, and the scales of the
    encoder's branches are no parameters here."""
    network = DepthAnything()
    shapes = depth_anything.shapes(network)
    width, channels = 384, 64
    others = {
        "mask token": (width, 1),
        "branch": (2 * (9 * channels**2 + channels), 4),
        "scales": (2 * 12 * width, 2 * 12),
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert parameters + sum(size for size, _ in others.values()) == 24_785_089
    paths = jax.tree_util.tree_flatten_with_path(shapes)[0]
    names = [
        place.name
        for path, _ in paths
        for place in published.all_places(
            depth_anything.name(network, jax.tree_util.keystr(path, simple=True, separator="/"))
        )
    ]
    assert len(names) == len(set(names)) == 287 - sum(count for _, count in others.values())


def test_the_published_configuration_is_read(tmp_path):
    """The values of Depth Anything V2 small's config.json."""
    config = {
        "_commit_hash": None,
        "architectures": ["DepthAnythingForDepthEstimation"],
        "backbone": None,
        "backbone_config": {
            "architectures": ["Dinov2Model"],
            "hidden_size": 384,
            "image_size": 518,
            "model_type": "dinov2",
            "num_attention_heads": 6,
            "out_features": ["stage3", "stage6", "stage9", "stage12"],
            "out_indices": [3, 6, 9, 12],
            "patch_size": 14,
            "reshape_hidden_states": False,
            "torch_dtype": "float32",
        },
        "depth_estimation_type": "relative",
        "fusion_hidden_size": 64,
        "head_hidden_size": 32,
        "head_in_index": -1,
        "initializer_range": 0.02,
        "max_depth": None,
        "model_type": "depth_anything",
        "neck_hidden_sizes": [48, 96, 192, 384],
        "patch_size": 14,
        "reassemble_factors": [4, 2, 1, 0.5],
        "reassemble_hidden_size": 384,
        "torch_dtype": "float32",
        "transformers_version": None,
        "use_pretrained_backbone": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert depth_anything.read_config(tmp_path) == DepthAnything()


def test_wrong_files_are_named(tmp_path):
    golden = golden_files.read("depth_anything_relative")
    folder, backbone = tmp_path / "estimator", golden.config["backbone_config"]
    for change, message in (
        ({"architectures": ["DPTForDepthEstimation"]}, "allowed is DepthAnythingForDepthEstimati"),
        ({"depth_estimation_type": "sparse"}, "depth_estimation_type = 'sparse': allowed are rel"),
        ({"use_rope": True}, "use_rope = True is not understood"),
        ({"head_in_index": 2}, "head_in_index = 2: allowed is -1"),
        ({"neck_hidden_sizes": [4, 6, 8]}, "must be equally long"),
        ({"backbone_config": {**backbone, "use_swiglu_ffn": True}}, "use_swiglu_ffn = True: allow"),
        ({"backbone_config": {**backbone, "out_indices": [1, 2, 3, 4]}}, "must rise from at least"),
        ({"backbone_config": {**backbone, "hidden_size": 14}}, "has shape|allowed is 14"),
    ):
        with pytest.raises(ValueError, match=message):
            depth_anything.read_folder(write_folder(folder, golden, **change))
    for lacking in (
        "backbone.encoder.layer.1.layer_scale1.lambda1",
        "neck.fusion_stage.layers.1.residual_layer1.convolution1.weight",
    ):
        weights = {key: value for key, value in golden.weights.items() if key != lacking}
        with pytest.raises(ValueError, match=f"lacks the tensor {lacking}"):
            depth_anything.read_folder(write_folder(folder, golden._replace(weights=weights)))
    more = golden._replace(weights=golden.weights | {"neck.more": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"has no neck\.more"):
        depth_anything.read_folder(write_folder(folder, more))
    write_folder(folder, golden)
    images = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**images, "do_pad": True}))
    with pytest.raises(ValueError, match="do_pad = True: allowed is False"):
        depth_anything.read_folder(folder)
