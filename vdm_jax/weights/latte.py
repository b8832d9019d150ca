"""The published weights of Latte (Ma et al. 2024), in and out: diffusers' folders of
`LatteTransformer3DModel`, a `VideoTransformer` whose blocks take turns over space and time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.latent_unet import Timestep
from vdm_jax.models.video_transformer import VideoTransformer
from vdm_jax.weights import published
from vdm_jax.weights.latent_unet import understood
from vdm_jax.weights.video_transformer import IN_ATTENTION, Loaded, shapes

CLASS = "LatteTransformer3DModel"
_MLP_MULTIPLE = 4  # inner features of an MLP for each of its outputs
_TIME_FEATURES = 256
# The values that a network is made of, those of Latte-1.
_VALUES: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "sample_size": 64,
    "patch_size": 2,
    "caption_channels": 4096,
}
# Values that change what is computed, with the only one that is computed here.
_FIXED: Mapping[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
# Clips of any length are computed, and there is no table of timesteps.
_IGNORED = frozenset({"video_length", "num_embeds_ada_norm"})
_LARGEST = 128  # above it, the published positions are counted in other units


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The transformer in a folder; its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, or
    the tensors that are missing, left over or of another shape.
    """
    network = read_config(folder)
    tensors = published.Tensors(folder, published.DIFFUSERS)
    params = published.read_params(tensors, shapes(network), name_function(network), dtype)
    return Loaded(network.clone(dtype=np.dtype(dtype)), params)


def write_folder(
    folder: str | Path,
    network: VideoTransformer,
    params: PyTree,
    dtype: DTypeLike = np.float32,
    *,
    sample_size: int = _VALUES["sample_size"],
) -> None:
    """Writes the transformer as `read_folder` and diffusers read it, in `dtype`.

    sample_size: height and width of the latents that the network was trained on. Raises
    FileExistsError; ValueError for a network that diffusers' class cannot compute.
    """
    published.write_params(
        folder,
        params,
        name_function(network),
        config={**config(network), "sample_size": sample_size},
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def read_config(folder: str | Path) -> VideoTransformer:
    """The network that a folder's config.json describes. Raises as `read_folder`."""
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> VideoTransformer:
    """The network that a config.json, read from `path`, describes. Raises ValueError."""
    values = understood(found, path, CLASS, _VALUES, _FIXED, _IGNORED)
    heads, head_dim = values["num_attention_heads"], values["attention_head_dim"]
    if values["cross_attention_dim"] != heads * head_dim:
        raise ValueError(
            f"{path}: cross_attention_dim = {values['cross_attention_dim']}: must be "
            f"{heads * head_dim}, the width of a token"
        )
    if values["sample_size"] >= _LARGEST:
        raise ValueError(f"{path}: sample_size = {values['sample_size']}: must be below {_LARGEST}")
    size = values["patch_size"]
    return VideoTransformer(
        settings=TransformerSettings(
            heads=heads,
            head_dim=head_dim,
            hidden=_MLP_MULTIPLE * heads * head_dim,
            qk_norm="none",
            text_norm=False,
            attention="factorised",
            positions="sines",
        ),
        depth=values["num_layers"],
        in_channels=values["in_channels"],
        out_channels=values["out_channels"] or values["in_channels"],
        patch=(1, size, size),
        time=Timestep(schedule=LinearBetaSchedule()),
        time_features=_TIME_FEATURES,
        flow=False,
        text_width=values["caption_channels"],
    )


def config(network: VideoTransformer) -> dict[str, Any]:
    """The config.json of a network, without `sample_size`. Raises ValueError if diffusers' class
    cannot compute it."""
    settings, (frames, height, width) = network.settings, network.patch
    found = {
        "_class_name": CLASS,
        "num_attention_heads": settings.heads,
        "attention_head_dim": settings.head_dim,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "num_layers": network.depth,
        "cross_attention_dim": settings.width,
        "patch_size": height,
        "caption_channels": network.text_width,
        **_FIXED,
    }
    again = from_config(found, Path("config.json"))
    same = again.clone(time=network.time, dtype=network.dtype, remat=network.remat)
    if (frames, height) != (1, width) or same != network.clone(layout=same.layout):
        raise ValueError(f"{network}: {CLASS} has no such values")
    return found


# --- names ----------------------------------------------------------------------------------------

_OUTSIDE = {
    "patch_embedding": "pos_embed.proj",
    "time_embedding/linear_in": "adaln_single.emb.timestep_embedder.linear_1",
    "time_embedding/linear_out": "adaln_single.emb.timestep_embedder.linear_2",
    "time_embedding/modulation": "adaln_single.linear",
    "text_embedding/linear_in": "caption_projection.linear_1",
    "text_embedding/linear_out": "caption_projection.linear_2",
    "output/linear": "proj_out",
}
_IN_BLOCK = {
    **{f"attention_self/{ours}": f"attn1.{name}" for ours, name in IN_ATTENTION.items()},
    **{f"attention_text/{ours}": f"attn2.{name}" for ours, name in IN_ATTENTION.items()},
    "mlp/linear_in": "ff.net.0.proj",
    "mlp/linear_out": "ff.net.2",
}
_BLOCKS = {"space": "transformer_blocks", "time": "temporal_transformer_blocks"}
_MODULATION = "scale_shift_table"


def name_function(network: VideoTransformer) -> published.Name:
    """The function from the path of a parameter to its names in diffusers' files, one a block."""

    def name(path: str) -> published.Place | list[published.Place]:
        module, _, leaf = path.rpartition("/")
        kind = "bias" if leaf == "bias" else "weight"
        if module.startswith("blocks/"):
            _, part, *inner = module.split("/")
            rest = f"{_IN_BLOCK['/'.join(inner)]}.{kind}" if inner else _MODULATION
            lacks = None if inner else 0
            return [
                published.Place(f"{_BLOCKS[part]}.{number}.{rest}", lacks=lacks)
                for number in range(network.depth)
            ]
        if module == "output":
            return published.Place(_MODULATION, lacks=0)
        # The frames of a patch, of which there is one.
        lacks = 2 if path == "patch_embedding/kernel" else None
        return published.Place(f"{_OUTSIDE[module]}.{kind}", lacks=lacks)

    return name
