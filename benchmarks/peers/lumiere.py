"""lumiere-pytorch: a KarrasUnet of denoising-diffusion-pytorch, inflated over time.

The modules that are inflated are those of the package's example. It has neither loss nor sampler,
and trains its temporal layers only.
"""

import torch

from benchmarks.peers import base


class Adapter(base.Adapter):
    """Trained and stepped by `base.Adapter`."""

    packages = ("lumiere-pytorch", "denoising-diffusion-pytorch", "x-transformers", "einops")

    def build(self) -> torch.nn.Module:
        base.import_torchvision()
        from denoising_diffusion_pytorch.karras_unet import KarrasUnet
        from lumiere_pytorch import MPLumiere

        return MPLumiere(
            KarrasUnet(image_size=self.pair.size, channels=3, **self.pair.options),
            image_size=self.pair.size,
            unet_time_kwarg="time",
            conv_module_names=["downs.1", "ups.1", "downs.2", "ups.2"],
            attn_module_names=["mids.0"],
            upsample_module_names=["ups.2", "ups.1"],
            downsample_module_names=["downs.1", "downs.2"],
            channels=3,
        )

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.network.parameters())  # the package's own: the temporal layers

    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.network(z, time=time.float() / 1000)
