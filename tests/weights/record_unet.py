"""Writes golden/{unet_1,unet_2,controlnet,motion}.safetensors with diffusers, on random weights:

    python -m tests.weights.record_unet

Needs torch and diffusers, which the tests do not. Each file holds the tensors of a state dict
("weights/NAME"), inputs, outputs and gradients; its metadata holds config.json.
"""

import json
from pathlib import Path

import torch
from diffusers import ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "golden"
SIZES = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 6}
DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
BLOCKS = {"down_block_types": DOWN, "up_block_types": UP, "layers_per_block": 1}
# The parameters whose gradients are recorded: a kernel of each kind, and a scale.
GRADIENTS = (
    "time_embedding.linear_1.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.attentions.0.proj_in.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight",
    "up_blocks.0.resnets.0.conv_shortcut.weight",
    "conv_norm_out.weight",
)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """No parameter at zero or one, so that none can be left out unnoticed. All are float16 numbers,
    so that the file is small."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            start = torch.ones_like(parameter) if parameter.ndim == 1 else 0.0
            scale = 0.3 if parameter.ndim == 1 else fan_in**-0.5
            drawn = start * 0.5 + scale * torch.randn_like(parameter)
            parameter.copy_(drawn.half())
    return module.eval()


def inputs(frames: int = 1) -> dict[str, torch.Tensor]:
    batch = 2
    return {
        "z": torch.randn(batch * frames, 4, 8, 8),
        "timestep": torch.tensor([981, 37]),
        "text": torch.randn(batch, 5, 6),
    }


def save(name: str, module: torch.nn.Module, arrays: dict[str, torch.Tensor]) -> None:
    parameters = {key for key, _ in module.named_parameters()}
    weights = {
        f"weights/{key}": value.half() if key in parameters else value
        for key, value in module.state_dict().items()
    }
    tensors = {key: value.detach().contiguous() for key, value in {**weights, **arrays}.items()}
    config = {k: v for k, v in module.config.items() if k != "_use_default_values"}
    config = {**config, "_class_name": type(module).__name__}
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.safetensors"
    save_file(tensors, path, {"config": json.dumps(config)})
    print(path, path.stat().st_size)


def unet(**fields) -> UNet2DConditionModel:
    return randomise(UNet2DConditionModel(**BLOCKS, **SIZES, sample_size=8, **fields))


def main() -> None:
    torch.manual_seed(0)
    first = unet(attention_head_dim=2)
    given = inputs()
    z = given["z"].requires_grad_()
    output = first(z, given["timestep"], given["text"]).sample
    target = torch.randn_like(output)
    ((output - target) ** 2).mean().backward()
    parameters = dict(first.named_parameters())
    gradients = {f"gradient/{name}": parameters[name].grad for name in GRADIENTS}
    recorded = {**given, "output": output, "target": target, "gradient/z": z.grad, **gradients}
    save("unet_1", first, recorded)

    second = unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(2, 1),
        norm_eps=0.1,  # large enough to be seen
    )
    given = inputs()
    output = second(given["z"], given["timestep"], given["text"]).sample
    save("unet_2", second, {**given, "output": output})

    control = ControlNetModel(
        down_block_types=DOWN,
        layers_per_block=1,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 6),
        **SIZES,
    )
    randomise(control)
    given, hint = inputs(), torch.rand(2, 3, 16, 16)
    for guess in (False, True):
        scale = 0.7
        skips, middle = control(
            given["z"],
            given["timestep"],
            given["text"],
            hint,
            conditioning_scale=scale,
            guess_mode=guess,
            return_dict=False,
        )
        output = first(
            given["z"],
            given["timestep"],
            given["text"],
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
        ).sample
        given[f"output_guess_{guess}"] = output
    save("controlnet", control, {**given, "hint": hint})

    adapter = randomise(
        MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=2,
            motion_max_seq_length=6,
        )
    )
    video = UNetMotionModel.from_unet2d(first, adapter).eval()
    frames = 3
    given = inputs(frames)
    clip = given["z"].reshape(2, frames, 4, 8, 8).transpose(1, 2)
    text = given["text"].repeat_interleave(frames, 0)
    with torch.no_grad():
        given["output"] = video(clip, given["timestep"], text).sample
    save("motion", adapter, given)


if __name__ == "__main__":
    main()
