"""Records how a published text-to-image pipeline samples, for `test_latent_image.py`.

    PYTHON -m tests.weights.record_pipeline

PYTHON has torch, diffusers, transformers and safetensors. `golden/pipeline.safetensors` holds the
noise, the latents after each step and the image; its metadata holds the files of the folder. The
weights are drawn (`drawn_weights.py`).
"""

import json
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import safetensors.numpy
import torch
import transformers

from tests.weights import drawn_weights

FILE = Path(__file__).parent / "golden" / "pipeline.safetensors"
PROMPT, NEGATIVE, STEPS, GUIDANCE, SIDE = "a cat", "dull", 4, 7.5, 8


def drawn(network):
    """The network with drawn weights."""
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    tensors = {k: torch.from_numpy(v) for k, v in drawn_weights.draw_all(shapes).items()}
    network.load_state_dict(tensors)
    return network.eval()


def tokenizer():
    """A vocabulary of single bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable]
    characters += [chr(256 + place) for place in range(len(others))]
    pieces = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def pipeline():
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        layers_per_block=1,
        sample_size=SIDE,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=514,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
            hidden_act="quick_gelu",
        )
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return diffusers.StableDiffusionPipeline(
        unet=drawn(unet),
        vae=drawn(vae),
        text_encoder=drawn(text),
        tokenizer=tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    pipe, latents = pipeline(), []

    def keep(pipe, step, timestep, values):
        latents.append(values["latents"].numpy().copy())
        return values

    noise = np.random.default_rng(0).normal(size=(1, 4, SIDE, SIDE)).astype(np.float32)
    image = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=torch.from_numpy(noise),
        output_type="np",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            name = str(path.relative_to(folder))
            if path.suffix in (".json", ".txt"):
                files[name] = path.read_text()
            elif path.suffix == ".safetensors":
                with safetensors.safe_open(path, framework="numpy") as file:
                    names = list(file.keys())
                    shapes = {name: file.get_slice(name).get_shape() for name in names}
                files[name] = json.dumps(shapes)
    metadata = {
        "files": json.dumps(files),
        "versions": f"diffusers {diffusers.__version__}, transformers {transformers.__version__}",
    }
    arrays = {"noise": noise, "latents": np.stack(latents), "image": np.ascontiguousarray(image)}
    safetensors.numpy.save_file(arrays, FILE, metadata)
    print(FILE.name, FILE.stat().st_size, sorted(files))
