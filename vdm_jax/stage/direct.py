"""What networks that are trained without diffusion have in common for the training loop."""

from jaxtyping import PyTree

from vdm_jax.models import cost
from vdm_jax.models.layers import Layout
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.view import View
from vdm_jax.stage.window import Reading


class Direct:
    """A network that the training loop takes in the place of a stage: no layer mixes frames, so a
    mesh only splits the batch, and its operations are not counted.

    Attributes:
      view: what a batch is of a clip.
      noun: what the network is, for errors.
      new, wider: as in `Stage`.
    """

    view: View
    noun = "a network without diffusion"
    new = ""
    wider = ""

    def network_params(self, params: PyTree, frozen: Frozen) -> PyTree:
        """As `Stage.network_params`."""
        del frozen
        return params

    def with_layout(self, layout: Layout) -> "Direct":
        """The same."""
        del layout
        return self

    @property
    def reading(self) -> Reading:
        """What the data's workers read of a clip for one example."""
        return self.view.reading()

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(f, h, w, c) of the videos of a training batch."""
        return (*self.reading.video_shape, self.view.data_shape[3])

    def cost(self, image_frames: int = 0) -> list[cost.LevelCost]:
        """Raises ValueError: operations are not counted."""
        del image_frames
        raise ValueError(f"this is {self.noun}: its operations are not counted")

    def train_flops(self, image_frames: int = 0) -> int:
        """0: operations are not counted."""
        del image_frames
        return 0
