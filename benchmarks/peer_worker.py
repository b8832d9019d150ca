"""The peer's side of train_step.py: video-diffusion-pytorch, run by the Python of its own venv.

Reads one JSON request a line from standard input ({"op": "describe" | "train" | "denoise" |
"quit", "steps": n}), answers with one JSON line. Everything is as the package has it: eager
PyTorch in float32, its own `GaussianDiffusion` (loss and posterior), the optimiser and learning
rate of its `Trainer`. The Trainer's averaging of weights every tenth step is left out.
"""

import argparse
import importlib.metadata
import json
import sys
import time
import types


def _import_peer():
    """The package imports torchvision for its folder reader, which nothing here uses.

    A stand-in spares the CUDA build of torch that installing torchvision would bring.
    """
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms = types.ModuleType("torchvision.transforms")
    torchvision.utils = types.ModuleType("torchvision.utils")
    torchvision.transforms.ToTensor = lambda: None
    for module in (torchvision, torchvision.transforms, torchvision.utils):
        sys.modules[module.__name__] = module
    import video_diffusion_pytorch

    return video_diffusion_pytorch


class Peer:
    """The network in training and in sampling, on random clips that are on the device already."""

    def __init__(self, arguments: argparse.Namespace):
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        package = _import_peer()
        torch.manual_seed(0)
        self.torch = torch
        self.device = torch.device("cuda" if arguments.device == "gpu" else "cpu")
        size, frames, batch = arguments.size, arguments.frames, arguments.batch
        network = package.Unet3D(dim=arguments.dim, dim_mults=tuple(arguments.dim_mults))
        self.diffusion = package.GaussianDiffusion(network, image_size=size, num_frames=frames).to(
            self.device
        )
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=1e-4)
        self.clips = torch.rand(batch, 3, frames, size, size, device=self.device)
        self.noise = torch.randn_like(self.clips)
        self.time = torch.full((batch,), 500, device=self.device, dtype=torch.long)

        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(self.noise[:1], self.time[:1])
        packages = ("torch", "video-diffusion-pytorch", "rotary-embedding-torch", "einops")
        self.description = {
            "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "flops": counter.get_total_flops(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if arguments.device == "gpu" else "cpu",
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "python": sys.version.split()[0],
        }

    def train(self) -> None:
        self.diffusion(self.clips).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def denoise(self) -> None:
        self.diffusion.p_sample(self.noise, self.time)

    def timed(self, function, steps: int) -> list[float]:
        """Seconds of each of `steps` calls."""
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            function()
            if self.device.type == "cuda":
                self.torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    for name in ("dim", "size", "frames", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dim_mults", type=int, nargs="+", required=True)

    # Answers only on the real standard output: libraries that print must not disturb them.
    answers, sys.stdout = sys.stdout, sys.stderr
    peer = Peer(parser.parse_args())
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            break
        if request["op"] == "describe":
            answer = peer.description
        else:
            function = {"train": peer.train, "denoise": peer.denoise}[request["op"]]
            answer = peer.timed(function, request["steps"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
