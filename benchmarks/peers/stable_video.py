"""diffusers: UNetSpatioTemporalConditionModel, the network of Stable Video Diffusion, with DDIM."""

import torch

from benchmarks.peers import diffusers_unet

_NUMBERS = (6.0, 127.0, 0.02)  # frames a second less one, motion bucket, augmentation


class Adapter(diffusers_unet.Adapter):
    """The numbers are the same for all clips."""

    def build(self) -> torch.nn.Module:
        from diffusers import UNetSpatioTemporalConditionModel

        return UNetSpatioTemporalConditionModel(sample_size=self.pair.size, **self.pair.options)

    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        text = self.text.expand(len(z), -1, -1)
        numbers = torch.tensor([_NUMBERS], device=z.device).expand(len(z), -1)
        given = (z.transpose(1, 2), time, text, numbers)
        return self.network(*given, return_dict=False)[0].transpose(1, 2)
