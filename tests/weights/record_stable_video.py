"""Records what diffusers' U-Net of Stable Video Diffusion and its pipeline compute, for
`test_stable_video.py` of weights and of systems.

    PYTHON -m tests.weights.record_stable_video

PYTHON has torch, diffusers, transformers and safetensors. Weights are drawn (`drawn_weights.py`),
with the factors of the metadata. `golden/stable_video_unet.safetensors` holds inputs, output and
gradients of a U-Net, whose features are so small that the epsilons of its normalisations matter.
`golden/stable_video.safetensors` holds what a pipeline is given and makes; its metadata holds the
files of its folder.
"""

import json
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import safetensors.numpy
import torch
import transformers
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as original
from PIL import Image

from tests.weights import drawn_weights

FOLDER = Path(__file__).parent / "golden"
VERSIONS = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"
UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "cross_attention_dim": 16,
    "num_attention_heads": (2, 4),
    "layers_per_block": 1,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
}
# Last maps and the first convolution, which make features small.
SMALL = (".conv2.weight", ".conv2.bias", ".proj_out.weight", ".proj_out.bias", "conv_in.weight")
SMALL += ("conv_in.bias", "downsamplers.0.conv.bias", "upsamplers.0.conv.bias")
GRADIENTS = (
    "conv_in.weight",
    "add_embedding.linear_1.weight",
    "down_blocks.0.resnets.0.temporal_res_block.conv1.weight",
    "down_blocks.0.resnets.0.time_mixer.mix_factor",
    "down_blocks.0.attentions.0.time_mixer.mix_factor",
    "down_blocks.0.attentions.0.time_pos_embed.linear_1.weight",
    "mid_block.attentions.0.temporal_transformer_blocks.0.attn1.to_q.weight",
    "up_blocks.1.attentions.1.temporal_transformer_blocks.0.attn2.to_v.weight",
    "up_blocks.1.attentions.0.temporal_transformer_blocks.0.ff_in.net.2.weight",
    "up_blocks.0.resnets.0.spatial_res_block.conv_shortcut.weight",
)
FRAMES, SIDE, STEPS, CHUNK = 3, 8, 4, 3


def drawn(network, factors=None):
    """The network with drawn weights."""
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    tensors = drawn_weights.draw_all(shapes, factors)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    return network.eval()


def save(name, arrays, **metadata):
    path = FOLDER / f"{name}.safetensors"
    held = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    content = {**{k: json.dumps(v) for k, v in metadata.items()}, "versions": VERSIONS}
    safetensors.numpy.save_file(held, path, {"recorded": json.dumps(content)})
    path.chmod(0o644)
    print(path.name, path.stat().st_size)
    assert path.stat().st_size <= 200_000


def record_unet():
    network = diffusers.UNetSpatioTemporalConditionModel(**UNET, sample_size=SIDE, num_frames=3)
    factors = {name: 0.004 for name in network.state_dict() if name.endswith(SMALL)}
    drawn(network, factors)
    draw = torch.Generator().manual_seed(0)
    # Two clips whose text and numbers differ.
    sample = torch.randn(2, FRAMES, 8, SIDE, SIDE, generator=draw).requires_grad_()
    time = torch.tensor([1.6, -0.4])
    text = torch.randn(2, 1, 16, generator=draw)
    numbers = torch.tensor([[6.0, 127.0, 0.02], [3.0, 20.0, 0.3]])
    output = network(sample, time, text, numbers).sample
    target = torch.randn(output.shape, generator=draw)
    ((output - target) ** 2).mean().backward()
    parameters = dict(network.named_parameters())
    arrays = {
        "sample": sample,
        "time": time,
        "text": text,
        "numbers": numbers,
        "output": output,
        "target": target,
        "gradient/sample": sample.grad,
        **{f"gradient/{name}": parameters[name].grad for name in GRADIENTS},
    }
    config = {k: v for k, v in network.config.items() if k != "_use_default_values"}
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    save(
        "stable_video_unet",
        {name: value.detach().numpy() for name, value in arrays.items()},
        config={**config, "_class_name": type(network).__name__},
        shapes=shapes,
        factors=factors,
    )


def pipeline():
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=2,
        latent_channels=4,
    )
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=56,
            projection_dim=16,
            hidden_act="gelu",
        )
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    unet = diffusers.UNetSpatioTemporalConditionModel(**UNET, sample_size=SIDE, num_frames=FRAMES)
    return diffusers.StableVideoDiffusionPipeline(
        vae=drawn(vae),
        image_encoder=drawn(encoder),
        unet=drawn(unet),
        scheduler=scheduler,
        feature_extractor=transformers.CLIPImageProcessor(),
    )


def record_pipeline():
    pipe, latents = pipeline(), []

    def keep(pipe, step, timestep, values):
        latents.append(values["latents"].numpy().copy())
        return values

    rng = np.random.default_rng(0)
    side = 2 * SIDE
    image = rng.integers(0, 256, size=(side, side, 3), dtype=np.uint8)
    noise = rng.normal(size=(1, FRAMES, 4, SIDE, SIDE)).astype(np.float32)
    image_noise = rng.normal(size=(1, 3, side, side)).astype(np.float32)
    embeddings, run = [], pipe.image_encoder.forward

    def keep_embedding(*args, **kwargs):
        found = run(*args, **kwargs)
        embeddings.append((args[0].numpy().copy(), found.image_embeds.numpy().copy()))
        return found

    pipe.image_encoder.forward = keep_embedding
    original.randn_tensor = lambda shape, **_: torch.from_numpy(image_noise)
    result = pipe(
        Image.fromarray(image),
        height=side,
        width=side,
        num_inference_steps=STEPS,
        latents=torch.from_numpy(noise),
        output_type="np",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents"],
    )
    with torch.no_grad():
        pipe._encode_image(Image.fromarray(drawn_weights.picture(300, 500)), "cpu", 1, False)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            name = str(path.relative_to(folder))
            if path.suffix == ".json":
                files[name] = path.read_text()
            elif path.suffix == ".safetensors":
                with safetensors.safe_open(path, framework="numpy") as file:
                    names = list(file.keys())
                    shapes = {name: file.get_slice(name).get_shape() for name in names}
                files[name] = json.dumps(shapes)
    arrays = {
        "image": image,
        "noise": noise,
        "image_noise": image_noise,
        "latents": np.stack(latents),
        "frames": np.asarray(result.frames),
        "embedding": embeddings[0][1],
        # A corner of what the encoder is given of a larger image, and the embedding of that.
        "large_corner": embeddings[1][0][:, :, :16, :16],
        "large_embedding": embeddings[1][1],
    }
    save("stable_video", arrays, files=files)


if __name__ == "__main__":
    torch.set_num_threads(1)
    record_unet()
    record_pipeline()
