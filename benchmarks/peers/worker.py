"""A peer's side of `benchmarks.run`, run by the Python of the peers' environment.

One process for each peer, dtype and mode. The network is used as its package has it, in eager
PyTorch or with its forward pass given to torch.compile (default settings); bfloat16 is
torch.autocast around forward pass and loss. On a GPU, products in float32 are TF32 and cuDNN
chooses its algorithms by trying them, as XLA does by default.
"""

import argparse
import importlib
import importlib.metadata
import sys
import time
from typing import Any

from benchmarks import serving
from benchmarks.pairs import PAIRS, Pair


class Peer:
    """A peer in training and in sampling, on random clips that are on the device already."""

    def __init__(self, pair: Pair, *, batch: int, dtype: str, device: str, mode: str):
        import torch

        self._torch, self._pair, self._mode, self._batch = torch, pair, mode, batch
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._autocast = torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"
        )
        module = importlib.import_module(f"benchmarks.peers.{pair.adapter}")
        self._idle = serving.resident()
        self._peer = module.Adapter(pair, self._device)
        self._network = self._peer.network
        # Methods and not the module, because some packages call them directly.
        self._eager = {name: getattr(self._network, name) for name in self._peer.compiled}
        if mode == "compile":
            self._replace({name: torch.compile(each) for name, each in self._eager.items()})
        self._optimizer = None

    def _replace(self, methods: dict[str, Any]) -> dict[str, Any]:
        """Puts methods in the place of the network's, and returns those that were there."""
        before = {name: getattr(self._network, name) for name in methods}
        for name, method in methods.items():
            setattr(self._network, name, method)
        return before

    def operations(self) -> dict:
        """What is served."""
        return {
            "describe": self.describe,
            "prepare": self.prepare,
            "timed": self.timed,
            "memory": self.memory,
            "first_clip": self.first_clip,
        }

    def describe(self) -> dict:
        """What the network is and where it runs; its operations for one clip are counted by
        torch's FlopCounterMode."""
        torch, nn = self._torch, self._torch.nn
        from torch.utils.flop_counter import FlopCounterMode

        compiled = self._replace(self._eager)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self._peer.predict(self._noise(1), torch.full((1,), 500, device=self._device))
        self._replace(compiled)
        packages = ("torch", *self._peer.packages)
        cuda = self._device.type == "cuda"
        return {
            # Also of the parts that a package freezes.
            "parameters": sum(p.numel() for p in nn.Module.parameters(self._network)),
            "flops": counter.get_total_flops(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "python": sys.version.split()[0],
            "sampler": self._pair.peer_sampler,
            "steps": self._peer.steps,
        }

    def prepare(self, work: str, warmup: int) -> dict:
        """Runs `work` once, which is where torch.compile compiles, and then `warmup` times.

        `compile_s` is the first call less the median of the others.
        """
        call = self._call("denoise" if work == "sample" else work)
        first, *rest = serving.timed(call, 1 + max(warmup, 1))
        compile_s = first - sorted(rest)[len(rest) // 2] if self._mode == "compile" else 0.0
        return {"compile_s": compile_s, "cold": True}

    def timed(self, work: str, steps: int, budget: float) -> dict:
        """Seconds of each of `steps` steps, or whole samples of one clip.

        A sample that would take longer than `budget` seconds is stepped for that long and
        extrapolated: `label` then says from how many steps.
        """
        if work != "sample":
            return {"seconds": serving.timed(self._call(work), steps)}
        samples = [self._sample(budget) for _ in range(steps)]
        return {
            "seconds": [seconds + remaining for seconds, remaining, _ in samples],
            "label": samples[0][-1],
        }

    def memory(self, work: str) -> dict:
        """The peak of two steps, weights included: on the CPU above the idle process, on a GPU what
        the allocator gave."""
        call = self._call(work)
        call()
        if self._device.type == "cpu":
            serving.reset_peak()
            serving.timed(call, 2)
            return {"peak_bytes": serving.peak_resident() - self._idle}
        self._torch.cuda.reset_peak_memory_stats()
        serving.timed(call, 2)
        return {"peak_bytes": self._torch.cuda.max_memory_allocated()}

    def first_clip(self, budget: float) -> dict:
        """One sample; the process has just been started. `remaining_s` is what was not run."""
        _, remaining, label = self._sample(budget)
        return {"remaining_s": remaining, "label": label}

    def _sample(self, budget: float) -> tuple[float, float, str]:
        """(seconds that one clip took, seconds that the steps left out would take, label)."""
        steps, sampler = self._peer.steps, self._pair.peer_sampler
        if not steps:
            raise ValueError("the package has no sampler")
        z = self._noise(1)
        self._network.eval()
        seconds: list[float] = []
        with self._torch.inference_mode(), self._autocast:
            while len(seconds) < steps and (len(seconds) < 3 or sum(seconds) < budget):
                started = time.perf_counter()
                z = self._peer.denoise(z, len(seconds))
                self._wait()
                seconds.append(time.perf_counter() - started)
        label, ran = f"{steps} steps of {sampler}", len(seconds)
        if ran == steps:
            return sum(seconds), 0.0, label
        steady = sorted(seconds)[ran // 2]
        return sum(seconds), (steps - ran) * steady, f"{label}, extrapolated from {ran}"

    def _call(self, work: str):
        """A function without arguments that does a step of `work` and returns when it is done."""
        torch, peer = self._torch, self._peer
        self._network.train(work == "train")
        if work == "train":
            if self._optimizer is None:
                self._optimizer = torch.optim.Adam(peer.parameters(), lr=1e-4)
                self._clips = torch.rand(self._shape(self._batch), device=self._device)

            def call():
                with self._autocast:
                    loss = peer.loss(self._clips)
                loss.backward()
                self._optimizer.step()
                self._optimizer.zero_grad()
                self._wait()

            return call
        if work in ("encode", "decode"):
            z, function = peer.inputs(work, self._batch), getattr(peer, work)

            def call():
                with torch.inference_mode(), self._autocast:
                    function(z)
                self._wait()

            return call
        z = self._noise(self._batch)

        def call() -> Any:
            with torch.inference_mode(), self._autocast:
                peer.denoise(z, peer.steps // 2 or 500)
            self._wait()

        return call

    def _noise(self, clips: int):
        return self._torch.randn(self._shape(clips), device=self._device)

    def _shape(self, clips: int) -> tuple[int, ...]:
        pair = self._pair
        return (clips, pair.channels, pair.frames, pair.size, pair.size)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=tuple(PAIRS), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--mode", choices=("eager", "compile"), required=True)
    options = parser.parse_args()
    serving.serve(
        lambda: Peer(
            PAIRS[options.pair],
            batch=options.batch,
            dtype=options.dtype,
            device=options.device,
            mode=options.mode,
        ).operations()
    )


if __name__ == "__main__":
    main()
