"""make-a-video-pytorch: SpaceTimeUnet. The package has neither loss nor sampler."""

import torch

from benchmarks.peers import base


class Adapter(base.Adapter):
    """Trained and stepped by `base.Adapter`."""

    packages = ("make-a-video-pytorch", "einops")

    def build(self) -> torch.nn.Module:
        from make_a_video_pytorch import SpaceTimeUnet

        return SpaceTimeUnet(**self.pair.options)

    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.network(z, timestep=time.float())
