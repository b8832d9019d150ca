"""Single files in the original layouts: Stable Diffusion 1 and 2 (latent-diffusion), ControlNet and
AnimateDiff, as .safetensors. They hold no configuration, so the network is passed in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.typing import DTypeLike

from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.controlnet import ControlNet
from vdm_jax.models.latent_unet import LatentEncoder, LatentUNet
from vdm_jax.models.motion_module import MotionModules
from vdm_jax.weights import controlnet, latent_unet, motion_adapter, published

# The networks of the published files.
STABLE_DIFFUSION_1 = LatentUNet()
STABLE_DIFFUSION_2 = LatentUNet(
    settings=LatentSettings(heads=(5, 10, 20, 20), text_width=1024, linear_projections=True)
)
CONTROLNET_1 = ControlNet()
ANIMATEDIFF_1 = MotionModules(max_frames=24)
ANIMATEDIFF_2 = MotionModules(middle=True)
ANIMATEDIFF_3 = MotionModules()

_UNET, _CONTROL = "model.diffusion_model", "control_model"
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MOTION = {
    "attn1": "attention_blocks.0",
    "attn2": "attention_blocks.1",
    "norm1": "norms.0",
    "norm2": "norms.1",
    "norm3": "ff_norm",
}


def read_unet(
    file: str | Path, network: LatentUNet = STABLE_DIFFUSION_1, dtype: DTypeLike = np.float32
) -> latent_unet.Loaded:
    """The U-Net of a Stable Diffusion file. Its autoencoder and text encoder are left out.

    Raises FileNotFoundError; ValueError naming the tensors that are missing, left over or of
    another shape than those of `network`.
    """
    tensors, network = published.open_file(file), latent_unet.in_dtype(network, dtype)
    name = _renamed(latent_unet.name_function(network), unet_name(network))
    shapes = latent_unet.shapes(network)
    params = published.read_params(tensors, shapes, name, dtype, unused=_outside(_UNET))
    return latent_unet.Loaded(network, params)


def read_controlnet(
    file: str | Path, network: ControlNet = CONTROLNET_1, dtype: DTypeLike = np.float32
) -> controlnet.Loaded:
    """The ControlNet of a file. Raises as `read_unet`."""
    tensors, network = published.open_file(file), latent_unet.in_dtype(network, dtype)
    name = _renamed(controlnet.name_function(network), controlnet_name(network))
    shapes = controlnet.shapes(network)
    params = published.read_params(tensors, shapes, name, dtype, unused=_outside(_CONTROL))
    return controlnet.Loaded(network, params)


def read_motion(
    file: str | Path,
    motion: MotionModules = ANIMATEDIFF_3,
    network: LatentUNet = STABLE_DIFFUSION_1,
    dtype: DTypeLike = np.float32,
) -> motion_adapter.Loaded:
    """The motion modules of an AnimateDiff file for `network`. Raises as `read_unet`."""
    tensors, network = published.open_file(file), network.clone(slots=Slots(after_attention=motion))
    name = _renamed(motion_adapter.name_function(network), motion_name)
    shapes = motion_adapter.shapes(network)
    # Positions, which are computed here.
    params = published.read_params(
        tensors, shapes, name, dtype, unused=lambda found: found.endswith("pos_encoder.pe")
    )
    return motion_adapter.Loaded(motion, params)


def unet_name(network: LatentEncoder, prefix: str = _UNET) -> Callable[[str], str]:
    """A function from diffusers' name of a tensor to the original one."""
    counts, depth = network.unet.num_blocks, network.settings.depth
    last = network.unet.last

    def block(part: str, index: int, kind: str, number: int) -> str:
        if part == "down":
            place = 1 + sum(count + 1 for count in counts[:index]) + number
            if kind == "downsamplers":
                return f"input_blocks.{place + counts[index]}.0.op"
            return f"input_blocks.{place}.{int(kind == 'attentions')}"
        level = last - index
        place = sum(count + 1 for count in counts[level + 1 :]) + number
        if kind == "upsamplers":
            return f"output_blocks.{place + counts[level]}.{1 + bool(depth[level])}.conv"
        return f"output_blocks.{place}.{int(kind == 'attentions')}"

    def name(published_name: str) -> str:
        module, kind = published_name.rsplit(".", 1)
        if module in _OUTSIDE:
            return f"{prefix}.{_OUTSIDE[module]}.{kind}"
        if module.startswith("mid_block"):
            _, part, number, *rest = module.split(".")
            place = f"middle_block.{1 if part == 'attentions' else 2 * int(number)}"
        else:
            blocks, index, part, number, *rest = module.split(".")
            place = block(blocks.removesuffix("_blocks"), int(index), part, int(number))
        if part == "resnets":
            rest = [_RESIDUAL[rest[0]]]
        elif part != "attentions":
            rest = []  # the convolution of a change of size
        return ".".join([prefix, place, *rest, kind])

    return name


def controlnet_name(network: ControlNet) -> Callable[[str], str]:
    """A function from diffusers' name of a tensor to the original one."""
    encoder = unet_name(network, _CONTROL)
    last_hint = 2 * len(network.hint_widths) - 1

    def name(published_name: str) -> str:
        module, kind = published_name.rsplit(".", 1)
        top, *rest = module.split(".")
        if top == "controlnet_cond_embedding":
            numbers = {"conv_in": 0, "conv_out": last_hint}
            number = numbers[rest[0]] if rest[0] in numbers else int(rest[1]) + 1
            # Every second layer is an activation.
            return f"{_CONTROL}.input_hint_block.{2 * number}.{kind}"
        if top == "controlnet_down_blocks":
            return f"{_CONTROL}.zero_convs.{rest[0]}.0.{kind}"
        if top == "controlnet_mid_block":
            return f"{_CONTROL}.middle_block_out.0.{kind}"
        return encoder(published_name)

    return name


def motion_name(published_name: str) -> str:
    """The original name of a tensor of motion modules, from diffusers' name."""
    parts = published_name.split(".")
    number = parts.index("motion_modules") + 2
    inner = [_MOTION.get(part, part) if i else part for i, part in enumerate(parts[number:])]
    return ".".join([*parts[:number], "temporal_transformer", *inner])


def _renamed(name: published.Name, original: Callable[[str], str]) -> published.Name:
    def renamed(path: str) -> published.Place:
        found = name(path)
        place = published.Place(found) if isinstance(found, str) else found
        return place._replace(name=original(place.name))

    return renamed


def _outside(prefix: str) -> Callable[[str], bool]:
    """Whether a tensor belongs to another part of the file."""
    return lambda name: not name.startswith(f"{prefix}.")
