"""Records how the published Text2Video-Zero samples, for `test_text2video_zero.py`.

    PYTHON -m tests.systems.record_text2video_zero

PYTHON has torch, diffusers, transformers and safetensors. The image model is that of
`tests/weights/record_pipeline.py`; all weights are drawn (`tests/weights/drawn_weights.py`).
`golden/text2video_zero.safetensors` holds noise, inputs and latents:

  steps/…     a few steps, the latents after each
  default/…   50 steps, T' = 881 and T = 941, the last latents
  control/…   with a ControlNet, cross-frame attention in both networks, the last latents
  edit/…      an instruction edits frames, the last latents
  warp/…      latents that hold their place, warped by the published motion field

The metadata holds config.json and the tensors' shapes of the ControlNet and of the editing U-Net.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import safetensors.numpy
import torch
from diffusers.pipelines.deprecated.text_to_video_synthesis import (
    pipeline_text_to_video_zero as zero,
)

from tests.weights.record_pipeline import NEGATIVE, PROMPT, SIDE, drawn, pipeline

FILE = Path(__file__).parent / "golden" / "text2video_zero.safetensors"
GUIDANCE, IMAGE_GUIDANCE = 7.5, 1.5
FRAMES, STEPS, T_PRIME, T = 5, 10, 6, 8  # the last two count from the end of the timesteps
FEW, FEW_STEPS = 3, 4


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def text_to_video(pipe, frames, steps, **settings):
    """The noise of the first frame, that of the others between T' and T, and all latents."""
    found, noise = [], normal(0, 1, 4, SIDE, SIDE)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    video = zero.TextToVideoZeroPipeline(**parts, requires_safety_checker=False)
    video.set_progress_bar_config(disable=True)
    last = video(
        PROMPT,
        negative_prompt=NEGATIVE,
        video_length=frames,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        latents=torch.from_numpy(noise),
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        callback=lambda step, timestep, latents: found.append(latents.numpy().copy()),
        **settings,
    ).images
    again = torch.Generator().manual_seed(1)
    forward = torch.randn((frames - 1, 4, SIDE, SIDE), generator=again).numpy()
    assert np.array_equal(found[-1], last.numpy())
    return noise, forward, found


def repeated(frames):
    return {"prompt": [PROMPT] * frames, "negative_prompt": [NEGATIVE] * frames}


def controlled(pipe, tensors, networks):
    controlnet = drawn(
        diffusers.ControlNetModel(
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            layers_per_block=1,
            norm_num_groups=4,
            conditioning_embedding_out_channels=(4, 8),
        )
    )
    parts = {**pipe.components, "controlnet": controlnet}
    video = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    video.set_progress_bar_config(disable=True)
    for network in (video.unet, video.controlnet):
        network.set_attn_processor(zero.CrossFrameAttnProcessor2_0(batch_size=2))
    hint = np.random.default_rng(2).integers(0, 256, (FEW, 2 * SIDE, 2 * SIDE, 3), np.uint8)
    noise = normal(3, 1, 4, SIDE, SIDE)
    latents = video(
        **repeated(FEW),
        image=torch.from_numpy(hint).permute(0, 3, 1, 2).float() / 255,
        latents=torch.from_numpy(noise).repeat(FEW, 1, 1, 1),
        num_inference_steps=FEW_STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images
    tensors |= {"control/hint": hint, "control/noise": noise, "control/latents": latents.numpy()}
    networks["controlnet"] = describe(controlnet)


def edited(pipe, tensors, networks):
    values = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
    unet = drawn(diffusers.UNet2DConditionModel(**{**values, "in_channels": 8}))
    parts = {**pipe.components, "unet": unet}
    video = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    video.set_progress_bar_config(disable=True)
    video.unet.set_attn_processor(zero.CrossFrameAttnProcessor2_0(batch_size=3))
    source = np.random.default_rng(4).integers(0, 256, (FEW, 2 * SIDE, 2 * SIDE, 3), np.uint8)
    noise = normal(5, FEW, 4, SIDE, SIDE)
    latents = video(
        **repeated(FEW),
        image=torch.from_numpy(source).permute(0, 3, 1, 2).float() / 255,
        latents=torch.from_numpy(noise),
        num_inference_steps=FEW_STEPS,
        guidance_scale=GUIDANCE,
        image_guidance_scale=IMAGE_GUIDANCE,
        output_type="latent",
    ).images
    tensors |= {"edit/source": source, "edit/noise": noise, "edit/latents": latents.numpy()}
    networks["unet"] = describe(unet)


def describe(network):
    """config.json and the tensors' shapes."""
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    config = json.loads(network.to_json_string())
    return {"config": config, "shapes": shapes}


def warped(tensors):
    """Rows and columns that each place is taken from, for frames 0 to 7."""
    for side in (16, 64):
        rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        places = torch.from_numpy(np.stack([rows, columns])).float()
        latents = places[None].repeat(8, 1, 1, 1)
        moved = zero.create_motion_field_and_warp_latents(12, 12, list(range(8)), latents)
        other = zero.create_motion_field_and_warp_latents(-37.5, 20, list(range(8)), latents)
        # Rows depend on rows alone, and columns on columns.
        for name, found in (("warp", moved), ("warp_other", other)):
            tensors[f"{name}/{side}/rows"] = found[:, 0, :, 0].numpy().astype(np.uint8)
            tensors[f"{name}/{side}/columns"] = found[:, 1, 0].numpy().astype(np.uint8)
            assert (found[:, 0] == found[:, 0, :, :1]).all()


if __name__ == "__main__":
    torch.set_num_threads(1)
    pipe, tensors, networks = pipeline(), {}, {}
    noise, forward, found = text_to_video(pipe, FRAMES, STEPS, t0=T_PRIME, t1=T)
    alone = [latents for latents in found if len(latents) == 1]
    tensors |= {
        "steps/noise": noise,
        "steps/forward": forward,
        "steps/first": np.stack(alone),
        "steps/latents": np.stack(found[len(alone) :]),
    }
    noise, forward, found = text_to_video(pipe, FEW, 50)
    tensors |= {"default/noise": noise, "default/forward": forward, "default/latents": found[-1]}
    controlled(pipe, tensors, networks)
    edited(pipe, tensors, networks)
    warped(tensors)
    metadata = {
        "networks": json.dumps(networks),
        "versions": f"diffusers {diffusers.__version__}, torch {torch.__version__}",
    }
    held = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(held, FILE, metadata)
    print(FILE.name, FILE.stat().st_size, {name: value.shape for name, value in held.items()})
    assert FILE.stat().st_size <= 200_000
