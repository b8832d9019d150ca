"""The published weights of DiT (Peebles & Xie 2022): diffusers' folders of `DiTTransformer2DModel`,
a `VideoTransformer` of single frames that takes a class and no text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.condition.vector import LabelOrNone
from vdm_jax.models.latent_unet import Timestep
from vdm_jax.models.video_transformer import VideoTransformer
from vdm_jax.weights import published
from vdm_jax.weights.latent_unet import understood
from vdm_jax.weights.video_transformer import IN_ATTENTION, Loaded, shapes

CLASS = "DiTTransformer2DModel"
_MLP_MULTIPLE = 4  # inner features of an MLP for each of its outputs
_TIME_FEATURES = 256
# diffusers' frequencies end at 1 / 10,000 itself, the original's one step before it.
_TIME_PERIOD = 10_000.0 ** (_TIME_FEATURES / (_TIME_FEATURES - 2))
# The values that a network is made of, those of DiT-XL/2.
_VALUES: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
# Values that change what is computed, with the only one that is computed here.
_FIXED: Mapping[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
# The first two have no effect. By the last diffusers adds 1e-5 to the variance before an MLP; the
# original and this network add 1e-6.
_IGNORED = frozenset({"norm_num_groups", "upcast_attention", "norm_eps"})


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The transformer in a folder; its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, the
    tensors that are missing, left over or of another shape, or a copy that differs.
    """
    network = read_config(folder)
    tensors = published.Tensors(folder, published.DIFFUSERS)
    params = published.read_params(
        tensors, shapes(network), name_function(network), dtype, unused=_is_copy
    )
    for name in sorted(filter(_is_copy, tensors.names())):
        first = f"{_BLOCKS}.0.{name.split('.', 2)[2]}"
        if not np.array_equal(tensors.whole(name), tensors.whole(first)):
            raise ValueError(f"{tensors.folder}: {name} differs from {first}: must be a copy of it")
    return Loaded(network.clone(dtype=np.dtype(dtype)), params)


def read_config(folder: str | Path) -> VideoTransformer:
    """The network that a folder's config.json describes. Raises as `read_folder`."""
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> VideoTransformer:
    """The network that a config.json, read from `path`, describes. Raises ValueError."""
    values = understood(found, path, CLASS, _VALUES, _FIXED, _IGNORED)
    heads, head_dim = values["num_attention_heads"], values["attention_head_dim"]
    size = values["patch_size"]
    return VideoTransformer(
        settings=TransformerSettings(
            heads=heads,
            head_dim=head_dim,
            hidden=_MLP_MULTIPLE * heads * head_dim,
            qk_norm="none",
            modulation="block",
            positions="sines",
        ),
        depth=values["num_layers"],
        in_channels=values["in_channels"],
        out_channels=values["out_channels"] or values["in_channels"],
        patch=(1, size, size),
        time=Timestep(schedule=LinearBetaSchedule()),
        time_features=_TIME_FEATURES,
        time_period=_TIME_PERIOD,
        flow=False,
        text_width=0,
        conditions=(LabelOrNone(num_labels=values["num_embeds_ada_norm"]),),
    )


# --- names ----------------------------------------------------------------------------------------

_BLOCKS = "transformer_blocks"
_EMBEDDING = f"{_BLOCKS}.0.norm1.emb"
_OUTSIDE = {
    "patch_embedding": "pos_embed.proj",
    "time_embedding/linear_in": f"{_EMBEDDING}.timestep_embedder.linear_1",
    "time_embedding/linear_out": f"{_EMBEDDING}.timestep_embedder.linear_2",
    "time_embedding/labels": f"{_EMBEDDING}.class_embedder.embedding_table",
    "output/modulation": "proj_out_1",
    "output/linear": "proj_out_2",
}
_IN_BLOCK = {
    **{f"attention_self/{ours}": f"attn1.{name}" for ours, name in IN_ATTENTION.items()},
    "modulation": "norm1.linear",
    "mlp/linear_in": "ff.net.0.proj",
    "mlp/linear_out": "ff.net.2",
}


def _is_copy(name: str) -> bool:
    """Whether a tensor is a copy of the first block's embedding of time and class, which every
    block has."""
    return ".norm1.emb." in name and not name.startswith(_EMBEDDING)


def name_function(network: VideoTransformer) -> published.Name:
    """The function from the path of a parameter to its names in diffusers' files, one a block."""

    def name(path: str) -> published.Place | list[published.Place]:
        module, _, leaf = path.rpartition("/")
        kind = "bias" if leaf == "bias" else "weight"
        if module.startswith("blocks/"):
            rest = f"{_IN_BLOCK[module.removeprefix('blocks/')]}.{kind}"
            return [published.Place(f"{_BLOCKS}.{n}.{rest}") for n in range(network.depth)]
        # The frames of a patch, of which there is one.
        lacks = 2 if path == "patch_embedding/kernel" else None
        return published.Place(f"{_OUTSIDE[module]}.{kind}", lacks=lacks)

    return name
