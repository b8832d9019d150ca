"""What `benchmarks.peers.worker` asks of a peer, and what the networks without training and
sampling of their own are given here: noise prediction with DDPM's cosine schedule, and DDIM."""

import abc
import importlib.util
import sys
import types

import torch
import torch.nn.functional as F


class Adapter(abc.ABC):
    """A peer's network on a device, in training and in sampling.

    Attributes:
      network: the module.
      compiled: its methods that are compiled, if anything is.
      packages: distributions whose versions are reported.
      steps: evaluations of a default sample, 0 where the package has no sampler.
    """

    compiled: tuple[str, ...] = ("forward",)
    packages: tuple[str, ...] = ()
    steps = 0

    def __init__(self, pair, device: torch.device):
        self.pair, self.device = pair, device
        self.steps = pair.peer_steps
        self.network = self.build().to(device)
        self.alpha_bar = torch.cos(torch.linspace(0.0, 1.0, 1001, device=device) * torch.pi / 2)
        self.alpha_bar = self.alpha_bar.square().clamp(min=1e-5)

    @abc.abstractmethod
    def build(self) -> torch.nn.Module:
        """The network, as the package makes it."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """What the optimiser trains."""
        return [p for p in self.network.parameters() if p.requires_grad]

    @abc.abstractmethod
    def predict(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The network's prediction of the noise; time is 0 to 999, one a clip."""

    def loss(self, clips: torch.Tensor) -> torch.Tensor:
        """The training loss of clips b c f h w in [0, 1]."""
        x = clips * 2 - 1
        time = torch.randint(0, 1000, (len(x),), device=x.device)
        alpha_bar = self.alpha_bar[time].view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(x)
        z = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
        return F.mse_loss(self.predict(z, time).float(), noise)

    def denoise(self, z: torch.Tensor, step: int) -> torch.Tensor:
        """z after one step of the sampler, `step` counting from 0 at pure noise."""
        time = torch.full((len(z),), 999 - step, device=z.device)
        now, after = self.alpha_bar[time[0] + 1], self.alpha_bar[time[0]]
        noise = self.predict(z, time).float()
        x = ((z - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
        return after.sqrt() * x + (1 - after).sqrt() * noise


def import_torchvision() -> None:
    """Makes `import torchvision` work where its compiled part belongs to another build of torch.

    The peers only use its transforms of PIL images, which are Python. The package's modules are
    found as always, but its __init__, which registers compiled operators, is not run. Where there
    is no torchvision, a package that needs it says so.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        spec = importlib.util.find_spec("torchvision")
        package = types.ModuleType("torchvision")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["torchvision"] = package
