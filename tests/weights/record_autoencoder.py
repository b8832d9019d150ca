"""Records what the published autoencoders compute, for `test_autoencoder.py`.

    PYTHON -m tests.weights.record_autoencoder

PYTHON has torch, diffusers and safetensors. A file of `golden/` holds inputs and results, and in
its metadata the configuration and the shapes of the weights, which are drawn (`drawn_weights.py`).
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import safetensors.numpy
import torch

from tests.weights import drawn_weights

GOLDEN = Path(__file__).parent / "golden"
KL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
CASES = {
    "autoencoder_kl": diffusers.AutoencoderKL(**KL, layers_per_block=1, sample_size=16),
    "autoencoder_kl_bare": diffusers.AutoencoderKL(
        **KL,
        layers_per_block=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        shift_factor=0.1,
        scaling_factor=0.3,
    ),
    "autoencoder_temporal": diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=2,
    ),
    "autoencoder_tiny": diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1),
    ),
}
# Of weights: small features before normalisations, and log-variances beyond what is kept of them.
FACTORS = {
    "autoencoder_kl": {
        "encoder.conv_in.": 1e-3,
        "encoder.down_blocks.1.resnets.0.conv_shortcut.": 1e-3,
        "encoder.down_blocks.1.resnets.0.conv2.": 1e-3,
        "encoder.mid_block.resnets.0.conv2.": 1e-3,
        "decoder.conv_in.": 1e-3,
    },
    "autoencoder_kl_bare": {"encoder.conv_out.bias": 300.0},
    "autoencoder_temporal": {
        "decoder.conv_in.": 1e-3,
        "decoder.mid_block.resnets.0.spatial_res_block.conv2.": 1e-3,
    },
    "autoencoder_tiny": {},
}
FRAMES = 4  # of the temporal decoder's clip
GRADIENTS = (
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.mid_block.attentions.0.to_q.weight",
    "decoder.conv_norm_out.weight",
    "decoder.up_blocks.0.upsamplers.0.conv.bias",
)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())


def record(name: str, network: torch.nn.Module) -> None:
    """Writes golden/NAME.safetensors."""
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    drawn = drawn_weights.draw_all(shapes, FACTORS[name])
    network.load_state_dict({key: torch.from_numpy(value) for key, value in drawn.items()})
    network.eval()
    side, temporal = 16, name == "autoencoder_temporal"
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (FRAMES if temporal else 2, 3, side, side)).astype(np.float32)
    pixels = torch.from_numpy(images).requires_grad_()
    encoded = network.encode(pixels)
    found = {"images": pixels}
    if name == "autoencoder_tiny":
        latents = found["mean"] = encoded.latents
    else:
        latents = found["mean"] = encoded.latent_dist.mean
        found["log_variance"] = encoded.latent_dist.logvar
    clip = {"num_frames": FRAMES} if temporal else {}
    decoded = found["decoded"] = network.decode(latents, **clip).sample
    if name == "autoencoder_kl":
        total = (decoded**2).mean() + found["log_variance"].mean()
        total.backward()
        found["gradient/images"] = pixels.grad
        named = dict(network.named_parameters())
        found |= {f"gradient/{key}": named[key].grad for key in GRADIENTS}
        # Tiles of 8 latents that overlap by 2: the first two fill rows 0 to 11 of 14.
        tall = rng.normal(size=(1, 4, 14, 8)).astype(np.float32)
        found["tall"] = torch.from_numpy(tall)
        network.enable_tiling()
        found["tiled"] = network.decode(found["tall"]).sample
    arrays = {key: as_array(tensor) for key, tensor in found.items()}
    config = {k: v for k, v in network.config.items() if k != "_use_default_values"}
    config |= {"_class_name": type(network).__name__, "_diffusers_version": diffusers.__version__}
    metadata = {
        "config": json.dumps(config),
        "shapes": json.dumps(shapes),
        "factors": json.dumps(FACTORS[name]),
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}",
    }
    path = GOLDEN / f"{name}.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata)
    print(path.name, path.stat().st_size, {key: value.shape for key, value in arrays.items()})


if __name__ == "__main__":
    torch.manual_seed(0)
    GOLDEN.mkdir(exist_ok=True)
    for name, network in CASES.items():
        record(name, network)
