"""diffusers: UNet3DConditionModel, the network of its text-to-video pipelines, with DDIM."""

import torch

from benchmarks.peers import base


class Adapter(base.Adapter):
    """The pipeline's sampler is the package's own DDIM step, 50 of them by default, here without
    classifier-free guidance, on random embeddings of a text."""

    packages = ("diffusers", "huggingface-hub", "safetensors")

    def __init__(self, pair, device: torch.device):
        base.import_torchvision()
        super().__init__(pair, device)
        from diffusers import DDIMScheduler

        self.text = torch.randn(1, pair.text_length, pair.text_dim, device=device)
        self.scheduler = DDIMScheduler(num_train_timesteps=1000)
        self.scheduler.set_timesteps(self.steps)

    def build(self) -> torch.nn.Module:
        from diffusers import UNet3DConditionModel

        size = self.pair.size
        options = {"sample_size": size, "in_channels": 3, "out_channels": 3, **self.pair.options}
        return UNet3DConditionModel(**options)

    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        text = self.text.expand(len(z), -1, -1)
        return self.network(z, time, text, return_dict=False)[0]

    def denoise(self, z: torch.Tensor, step: int) -> torch.Tensor:
        time = self.scheduler.timesteps[step]
        noise = self.predict(z, time.to(z.device).expand(len(z))).float()
        return self.scheduler.step(noise, time, z).prev_sample
