"""The reader of video-diffusion-pytorch on the GIFs of `benchmarks.data`, as its Trainer has it."""

from benchmarks import serving
from benchmarks.data import BATCH, FRAMES, SIZE
from benchmarks.peers import video_diffusion


class Reader:
    """Batches of the package's Dataset by torch's DataLoader, shuffled, without workers."""

    def __init__(self):
        self._batches = None

    def read(self, folder: str, batches: int) -> float:
        """Seconds that `batches` batches took."""
        if self._batches is None:
            import torch

            self._batches = _forever(
                torch.utils.data.DataLoader(
                    video_diffusion.dataset(f"{folder}/gifs", SIZE, FRAMES),
                    batch_size=BATCH,
                    shuffle=True,
                    pin_memory=torch.cuda.is_available(),
                )
            )
        return serving.timed(lambda: [next(self._batches) for _ in range(batches)], 1)[0]


def _forever(loader):
    while True:
        yield from loader


if __name__ == "__main__":
    serving.serve(lambda: {"read": Reader().read})
