"""The originals' side of `benchmarks.parity`: diffusers' and transformers' networks on random
weights, saved as they save them, with an input and what they compute for it.

Images and clips are written with channels last, as our side takes and returns them.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import serving
from benchmarks.parity_networks import INPUT, NETWORKS, OUTPUT, RECORDED, Published

Tensors = dict[str, torch.Tensor]
# What is saved by folder, and a function that computes the outputs of the inputs.
Original = tuple[dict[str, torch.nn.Module], Tensors, Callable[[], Tensors]]


def randomise(network: torch.nn.Module) -> None:
    """Draws every parameter, so that none can be left out unnoticed: kernels keep the scale of
    their input, scales are near one, biases near zero."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            *_, module, leaf = ("", *name.split("."))
            is_kernel = parameter.ndim > 1
            scale = parameter[0].numel() ** -0.5 if is_kernel else 0.2
            parameter.normal_(0.0, scale)
            if not is_kernel and leaf == "weight" and "norm" in module:
                parameter.add_(1.0)
    network.eval()


def unet(row: Published) -> Original:
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(**row.options)
    randomise(network)
    inputs = latent_inputs(row)
    z = channels_first(inputs["z"][:, 0])

    def compute() -> Tensors:
        output = network(z, inputs["timestep"], inputs["text"]).sample
        return {"video": channels_last(output)[:, None]}

    return {"network": network}, inputs, compute


def controlnet(row: Published) -> Original:
    from diffusers import ControlNetModel

    network = ControlNetModel(**row.options)
    randomise(network)
    inputs = latent_inputs(row)
    inputs["hint"] = torch.rand(row.batch, 1, 8 * row.size, 8 * row.size, 3)
    z, hint = (channels_first(inputs[name][:, 0]) for name in ("z", "hint"))

    def compute() -> Tensors:
        skips, middle = network(z, inputs["timestep"], inputs["text"], hint, return_dict=False)
        named = {f"skip_{number}": skip for number, skip in enumerate(skips)}
        return {name: channels_last(each) for name, each in {**named, "middle": middle}.items()}

    return {"network": network}, inputs, compute


def motion(row: Published) -> Original:
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    network = UNetMotionModel(**row.options, **row.motion)
    randomise(network)
    held = network.state_dict()
    # The two networks that are published, on the tensors of the one that computes.
    with torch.device("meta"):
        saved = {
            "network": UNet2DConditionModel(**row.options),
            "motion": MotionAdapter(**row.motion),
        }
    for name, part in saved.items():
        is_motion = name == "motion"
        own = {key: held[key] for key in held if (".motion_modules." in key) == is_motion}
        part.load_state_dict(own, assign=True)
    inputs = latent_inputs(row)
    clip = channels_first(inputs["z"])
    text = inputs["text"].repeat_interleave(row.frames, 0)

    def compute() -> Tensors:
        return {"video": channels_last(network(clip, inputs["timestep"], text).sample)}

    return saved, inputs, compute


def text(row: Published) -> Original:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**row.options)
    network = CLIPTextModel(config)
    randomise(network)
    tokens = torch.randint(0, config.eos_token_id - 1, (row.batch, 77), dtype=torch.int32)
    for number in range(row.batch):
        tokens[number, 5 + 9 * number :] = config.eos_token_id

    def compute() -> Tensors:
        output = network(tokens)
        return {"states": output.last_hidden_state, "pooled": output.pooler_output}

    return {"network": network}, {"tokens": tokens}, compute


def vision(row: Published) -> Original:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection(CLIPVisionConfig(**row.options))
    randomise(network)
    images = torch.randn(row.batch, row.size, row.size, 3)

    def compute() -> Tensors:
        output = network(channels_first(images))
        return {"states": output.last_hidden_state, "pooled": output.image_embeds}

    return {"network": network}, {"images": images}, compute


def autoencoder(row: Published) -> Original:
    import diffusers

    classes = {
        "autoencoder": diffusers.AutoencoderKL,
        "temporal": diffusers.AutoencoderKLTemporalDecoder,
        "tiny": diffusers.AutoencoderTiny,
    }
    network = classes[row.kind](**row.options)
    randomise(network)
    number, small = row.batch * row.frames, row.size // 8
    images = torch.rand(number, row.size, row.size, 3) * 2 - 1
    latents = torch.randn(number, small, small, 4)
    clip = {"num_frames": row.frames} if row.kind == "temporal" else {}

    def compute() -> Tensors:
        encoded = network.encode(channels_first(images))
        if row.kind == "tiny":
            outputs = {"mean": encoded.latents}
        else:
            posterior = encoded.latent_dist
            outputs = {"mean": posterior.mean, "log_variance": posterior.logvar}
        outputs["decoded"] = network.decode(channels_first(latents), **clip).sample
        return {name: channels_last(each) for name, each in outputs.items()}

    return {"network": network}, {"images": images, "latents": latents}, compute


def wan(row: Published) -> Original:
    from diffusers import WanTransformer3DModel

    network = WanTransformer3DModel(**row.options)
    randomise(network)
    inputs = {
        "z": torch.randn(row.batch, row.frames, row.size, row.size, 16),
        "timestep": torch.tensor([987, 37][: row.batch]),
        "text": torch.randn(row.batch, 77, 4096),
    }

    def compute() -> Tensors:
        z = channels_first(inputs["z"])
        return {"video": channels_last(network(z, inputs["timestep"], inputs["text"]).sample)}

    return {"network": network}, inputs, compute


def wan_autoencoder(row: Published) -> Original:
    from diffusers import AutoencoderKLWan

    network = AutoencoderKLWan(**row.options)
    randomise(network)
    clip = torch.rand(row.batch, row.frames, row.size, row.size, 3) * 2 - 1
    latents = torch.randn(row.batch, 1 + row.frames // 4, row.size // 8, row.size // 8, 16)

    def compute() -> Tensors:
        posterior = network.encode(channels_first(clip)).latent_dist
        outputs = {"mean": posterior.mean, "log_variance": posterior.logvar}
        outputs["decoded"] = network.decode(channels_first(latents)).sample
        return {name: channels_last(each) for name, each in outputs.items()}

    return {"network": network}, {"clip": clip, "latents": latents}, compute


def latent_inputs(row: Published) -> Tensors:
    """Latents (b f h w c), time and text."""
    return {
        "z": torch.randn(row.batch, row.frames, row.size, row.size, 4),
        "timestep": torch.tensor([981, 37][: row.batch]),
        "text": torch.randn(row.batch, 77, row.options["cross_attention_dim"]),
    }


def channels_first(array: torch.Tensor) -> torch.Tensor:
    return array.movedim(-1, 1)


def channels_last(array: torch.Tensor) -> torch.Tensor:
    return array.movedim(1, -1)


ORIGINALS = {
    "unet": unet,
    "controlnet": controlnet,
    "motion": motion,
    "text": text,
    "vision": vision,
    "autoencoder": autoencoder,
    "temporal": autoencoder,
    "tiny": autoencoder,
    "wan": wan,
    "wan-autoencoder": wan_autoencoder,
}


def write(name: str, folder: str) -> dict:
    """Writes the network of that name, and its input and output, to a folder.

    Returns the number of its parameters, and the versions of the packages.
    """
    row = {row.name: row for row in NETWORKS}[name]
    torch.manual_seed(0)
    saved, inputs, compute = ORIGINALS[row.kind](row)
    with torch.no_grad():
        outputs = compute()
    named = {f"{INPUT}{key}": value for key, value in inputs.items()}
    named |= {f"{OUTPUT}{key}": value for key, value in outputs.items()}
    save_file({key: value.contiguous() for key, value in named.items()}, Path(folder) / RECORDED)
    for part, network in saved.items():
        network.save_pretrained(Path(folder) / part)
    packages = ("torch", "diffusers", "transformers", "safetensors")
    return {
        "parameters": sum(p.numel() for network in saved.values() for p in network.parameters()),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


if __name__ == "__main__":
    serving.serve(lambda: {"write": write})
