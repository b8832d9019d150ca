"""What training and sampling ask of any network, with defaults."""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn

from vdm_jax.models import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a network, as a table of its cost shows it.

    Attributes:
      name: "condition", "input", "down 0", …
      resolution: "height x width" of its features, empty if it has none.
      channels: of its features, 0 if they are not known.
    """

    name: str
    resolution: str = ""
    channels: int = 0


class Network(layers.Whole):
    """A linen module `(z, logsnr, cond, *, num_images=0, train=False) -> raw output`.

    z is (b, f, h, w, c): the frames of clips and, last, `num_images` independent images. logsnr is
    (b,), cond is a `condition.Cond`. A subclass has the fields `layout` (`layers.Layout`) and
    `remat` (a policy of `layers.remat`), which training and sampling replace by `clone`.
    """

    @property
    def reads(self) -> frozenset[str]:
        """The keys of the condition that the network reads."""
        return frozenset()

    @property
    def num_labels(self) -> int:
        """Number of classes; 0 for a network without labels."""
        return 0

    @property
    def multiple(self) -> int:
        """Height and width of z must be multiples of it."""
        return 1

    @property
    def reach(self) -> int | None:
        """An output pixel depends on input pixels up to this distance; None: on the whole frame."""
        return None

    @property
    def stacked(self) -> Mapping[str, int]:
        """The submodules that are scanned, and the number of layers that each stacks."""
        return {}

    @nn.nowrap
    def sections(self, video_shape: Sequence[int]) -> list[Section] | None:
        """The parts of the network in the order of computation, for a clip of `video_shape`.

        None: each submodule is a part of its own.
        """
        return None

    @nn.nowrap
    def section(self, submodule: str) -> str:
        """The name of the part that a submodule or parameter of the network belongs to."""
        return submodule
