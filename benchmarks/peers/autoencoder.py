"""diffusers: AutoencoderKL, the autoencoder of Stable Diffusion."""

import torch

from benchmarks.peers import base


class Adapter(base.Adapter):
    """Images b c 1 h w to the modes of their latents, and back. It is not trained here."""

    compiled = ("_encode", "_decode")
    packages = ("diffusers", "huggingface-hub", "safetensors")

    def __init__(self, pair, device: torch.device):
        base.import_torchvision()
        super().__init__(pair, device)

    def build(self) -> torch.nn.Module:
        from diffusers import AutoencoderKL

        return AutoencoderKL(sample_size=self.pair.size, **self.pair.options)

    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Images and back: what is counted."""
        return self.decode(self.encode(z))

    def inputs(self, work: str, clips: int) -> torch.Tensor:
        """Noise of the shape of what is encoded or decoded."""
        pair, levels = self.pair, len(self.pair.options["block_out_channels"])
        size = pair.size if work == "encode" else pair.size // 2 ** (levels - 1)
        channels = pair.channels if work == "encode" else pair.options["latent_channels"]
        return torch.randn(clips, channels, pair.frames, size, size, device=self.device)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.encode(x[:, :, 0]).latent_dist.mode()[:, :, None]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.network.decode(z[:, :, 0]).sample[:, :, None]
