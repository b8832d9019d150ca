"""video-diffusion-pytorch: Unet3D with the package's own GaussianDiffusion, loss and sampler."""

import torch

from benchmarks.peers import base


class Adapter(base.Adapter):
    """Everything is as the package has it: L1 on the noise, ancestral sampling in 1000 steps."""

    packages = ("video-diffusion-pytorch", "rotary-embedding-torch", "einops")

    def __init__(self, pair, device: torch.device):
        base.import_torchvision()
        super().__init__(pair, device)
        from video_diffusion_pytorch import GaussianDiffusion

        self.diffusion = GaussianDiffusion(
            self.network, image_size=pair.size, num_frames=pair.frames
        ).to(device)
        self.steps = self.diffusion.num_timesteps

    def build(self) -> torch.nn.Module:
        from video_diffusion_pytorch import Unet3D

        return Unet3D(**self.pair.options)

    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.network(z, time)

    def loss(self, clips: torch.Tensor) -> torch.Tensor:
        return self.diffusion(clips)

    def denoise(self, z: torch.Tensor, step: int) -> torch.Tensor:
        time = torch.full((len(z),), self.steps - 1 - step, device=z.device, dtype=torch.long)
        return self.diffusion.p_sample(z, time)


def dataset(folder: str, size: int, frames: int):
    """The package's reader of a folder of GIFs."""
    base.import_torchvision()
    from video_diffusion_pytorch.video_diffusion_pytorch import Dataset

    return Dataset(folder, image_size=size, num_frames=frames)
