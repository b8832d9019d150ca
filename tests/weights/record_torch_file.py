"""Writes golden/tensors.pth with torch, which the tests do not need:

python -m tests.weights.record_torch_file
"""

from pathlib import Path

import torch

FILE = Path(__file__).parent / "golden" / "tensors.pth"


def main() -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    module = torch.nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + number)
    torch.save(
        {
            "state_dict": module.state_dict(),
            "transposed": base.T,
            "part": base[1:, 2],
            "half": base.half(),
            "brain": base.bfloat16(),
            "count": torch.tensor(7),
            "parameter": torch.nn.Parameter(base[0]),
            "epoch": 3,
            "name": "net",
            "lr": 0.1,
        },
        FILE,
    )
    FILE.chmod(0o644)
    print(FILE.stat().st_size)


if __name__ == "__main__":
    main()
