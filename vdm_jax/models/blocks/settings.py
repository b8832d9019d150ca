"""What all blocks of a network have in common."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """The sizes that every block of a network shares.

    Attributes:
      head_dim: features of an attention head.
      norm_groups: groups of a normalisation, see `layers.group_norm`.
      dropout: the chance of zeroing a feature inside a residual block in training.
    """

    head_dim: int = 64
    norm_groups: int = 32
    dropout: float = 0.0

    def heads(self, channels: int) -> tuple[int, int]:
        """Number of heads, and features of each, of an attention layer on `channels`."""
        return max(1, channels // self.head_dim), min(channels, self.head_dim)
