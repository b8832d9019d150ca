"""diffusers: UNet2DConditionModel, the network of Stable Diffusion, with DDIM."""

import torch

from benchmarks.peers import diffusers_unet


class Adapter(diffusers_unet.Adapter):
    """A clip is an image of one frame."""

    def build(self) -> torch.nn.Module:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(sample_size=self.pair.size, **self.pair.options)

    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return super().predict(z[:, :, 0], time)[:, :, None]
