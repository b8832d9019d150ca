"""What is compared: a peer's network, and one of ours that does nearly the same work.

The workers of both sides read this file, each in its own Python, so it imports neither JAX nor
PyTorch. A mirrored network has the peer's widths, levels and places of attention. Where the peer
has layers that ours lacks, the number of our blocks is chosen so that the operations of a forward
pass are 0.9 to 1.15 times the peer's. `difference` names what still differs, and both sides'
parameters and operations are printed beside every figure.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A peer and its mirror.

    Attributes:
      name: on the command line.
      adapter: the module of `benchmarks.peers` that builds and runs the peer.
      options: of the peer's network, given to it as they are.
      frames, size: of a clip: `frames` of size x size pixels.
      channels: of a pixel.
      network: fields of our network (`config.model`), or the config.json of a latent U-Net.
      mirror: layers of the peer in our network, see `benchmarks.mirror.mirror`.
      text_length: tokens of a text that the network attends to, 0 = no text.
      text_dim: width of the peer's tokens.
      peer_sampler: the peer's own sampler and its default number of steps; "" and 0 where the
        package has none.
      peer_steps: that number.
      train_only: of ours, see `vdm_jax.stage.Stage`; "" = everything is trained.
      works: what of `benchmarks.run` is done with it.
      large: whether it is left out of "all", because a training step takes 20 GiB.
      difference: what is not the same, in a sentence.
    """

    name: str
    adapter: str
    options: Mapping[str, Any]
    frames: int
    size: int
    channels: int = 3
    network: Mapping[str, Any]
    mirror: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_length: int = 0
    text_dim: int = 0
    peer_sampler: str = ""
    peer_steps: int = 0
    train_only: str = ""
    works: tuple[str, ...] = ("train", "denoise", "sample")
    large: bool = False
    difference: str


_VIDEO_DIFFUSION = {
    "num_res_blocks": 2,
    "head_dim": 32,
    "skips": "level",
    "norm_groups": 8,
}
_VIDEO_DIFFUSION_LAYERS = {
    "heads": 8,
    "linear_attention": True,
    "initial_kernel": 7,
    "initial_temporal": True,
}

# One network, in the library that published it and in ours.
_LATENT = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (64, 128, 256),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 384,
}
_STABLE_VIDEO = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (
        "CrossAttnDownBlockSpatioTemporal",
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
    ),
    "up_block_types": (
        "UpBlockSpatioTemporal",
        "CrossAttnUpBlockSpatioTemporal",
        "CrossAttnUpBlockSpatioTemporal",
    ),
    "block_out_channels": (32, 64, 128),
    "num_attention_heads": (2, 4, 8),
    "cross_attention_dim": 384,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
}
_STABLE_DIFFUSION = {
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}

PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair(
            name="video-diffusion-small",
            adapter="video_diffusion",
            options={"dim": 32, "dim_mults": (1, 2, 4)},
            frames=8,
            size=32,
            network={
                "channels": 32,
                "channel_mult": (1, 2, 4),
                "attention_levels": (0, 1, 2),
                **_VIDEO_DIFFUSION,
            },
            mirror=_VIDEO_DIFFUSION_LAYERS,
            peer_sampler="DDPM",
            peer_steps=1000,
            difference="the same layers; theirs has rotary embeddings over time and RMS norms, "
            "ours group norms, and resizes by stride-2 and repeat + convolution",
        ),
        Pair(
            name="video-diffusion",
            adapter="video_diffusion",
            options={"dim": 64, "dim_mults": (1, 2, 4, 8)},
            frames=16,
            size=32,
            network={
                "channels": 64,
                "channel_mult": (1, 2, 4, 8),
                "attention_levels": (0, 1, 2, 3),
                **_VIDEO_DIFFUSION,
            },
            mirror=_VIDEO_DIFFUSION_LAYERS,
            peer_sampler="DDPM",
            peer_steps=1000,
            difference="as video-diffusion-small",
        ),
        Pair(
            name="diffusers",
            adapter="diffusers_unet",
            options={
                "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
                "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
                "block_out_channels": (32, 64, 128),
                "layers_per_block": 2,
                "attention_head_dim": 8,
                "cross_attention_dim": 64,
                "norm_num_groups": 8,
            },
            frames=16,
            size=32,
            network={
                "channels": 32,
                "channel_mult": (1, 2, 4),
                "num_res_blocks": 3,
                "attention_levels": (0, 1),
                "head_dim": 8,
                "skips": "block",
                "norm_groups": 8,
            },
            text_length=16,
            text_dim=64,
            peer_sampler="DDIM, without guidance",
            peer_steps=50,
            difference="theirs also has temporal convolutions and feed-forward layers, ours a "
            "third block a level instead of them",
        ),
        Pair(
            name="make-a-video",
            adapter="make_a_video",
            options={"dim": 64, "channels": 3, "dim_mult": (1, 2, 4, 8)},
            frames=16,
            size=32,
            network={
                "channels": 64,
                "channel_mult": (1, 2, 4, 8),
                "num_res_blocks": 2,
                "attention_levels": (3,),
                "head_dim": 64,
                "skips": "level",
                "norm_groups": 8,
            },
            mirror={"heads": 8, "initial_kernel": 7},
            difference="theirs has temporal convolutions and halves the frames at three levels "
            "(more parameters, on fewer frames), ours keeps all frames at every level",
        ),
        Pair(
            name="lumiere",
            adapter="lumiere",
            options={"dim": 32, "dim_max": 256},
            frames=16,
            size=32,
            network={
                "channels": 32,
                "channel_mult": (1, 2, 4, 8),
                "num_res_blocks": 4,
                "attention_levels": (1, 2),
                "head_dim": 64,
                "skips": "block",
                "norm_groups": 8,
                "temporal": "space_time",
                "temporal_levels": (1, 2, 3),
                "temporal_resize": (1, 2),
            },
            train_only="_temporal/",
            difference="both halve the frames at two levels and train only what makes the image "
            "network one of space and time; theirs has fewer such layers",
        ),
        Pair(
            name="latent-unet",
            adapter="latent_unet",
            options=_LATENT,
            frames=1,
            size=16,
            channels=4,
            network={**_LATENT, "_class_name": "UNet2DConditionModel"},
            text_length=77,
            text_dim=384,
            peer_sampler="DDIM, without guidance",
            peer_steps=50,
            difference="nothing: the U-Net of Stable Diffusion 1 with fewer channels",
        ),
        Pair(
            name="latent-unet-sd15",
            adapter="latent_unet",
            options=_STABLE_DIFFUSION,
            frames=1,
            size=64,
            channels=4,
            network={**_STABLE_DIFFUSION, "_class_name": "UNet2DConditionModel"},
            text_length=77,
            text_dim=768,
            peer_sampler="DDIM, without guidance",
            peer_steps=50,
            large=True,
            difference="nothing: the U-Net of Stable Diffusion 1.5",
        ),
        Pair(
            name="stable-video",
            adapter="stable_video",
            options=_STABLE_VIDEO,
            frames=16,
            size=32,
            channels=4,
            network={**_STABLE_VIDEO, "_class_name": "UNetSpatioTemporalConditionModel"},
            text_length=3,
            text_dim=384,
            peer_sampler="DDIM, without guidance",
            peer_steps=50,
            difference="nothing: the U-Net of Stable Video Diffusion with fewer channels, without "
            "the image's latents; ours derives the motion's number from the clip in training",
        ),
        Pair(
            name="autoencoder",
            adapter="autoencoder",
            options=_AUTOENCODER,
            frames=1,
            size=512,
            network={**_AUTOENCODER, "_class_name": "AutoencoderKL"},
            works=("encode", "decode"),
            difference="nothing: the autoencoder of Stable Diffusion",
        ),
    )
}


def choose(names: str) -> list[Pair]:
    """The pairs of a comma-separated list, or "all" but the large ones. Raises ValueError naming
    what there is."""
    if names == "all":
        return [pair for pair in PAIRS.values() if not pair.large]
    wanted = [name for name in names.split(",") if name]
    if unknown := [name for name in wanted if name not in PAIRS]:
        raise ValueError(
            f"--peers={names}: {', '.join(unknown)} unknown; allowed: all, none, {', '.join(PAIRS)}"
        )
    return [PAIRS[name] for name in wanted]
