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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """The sizes that the blocks of a latent U-Net share. The defaults are Stable Diffusion 1.5's.

    Attributes:
      depth: for each level the transformer blocks after each residual block; 0 = no attention.
      middle_depth: of those between the two residual blocks of the coarsest level.
      heads: for each level the number of attention heads.
      text_width: features of a token of the text.
      norm_groups: groups of a normalisation, see `layers.group_norm`.
      epsilon: of the normalisations in residual blocks and before the output.
      norm_over_frames: whether these take mean and variance over all frames of a clip instead of
        over each frame. Published Tune-A-Video files need it. Without it only the layers in the
        slots mix frames.
      dropout: the chance of zeroing a feature inside a residual block in training.
      linear_projections: whether published files store the first and last maps of a transformer as
        matrices, as Stable Diffusion 2 does, or as 1 x 1 convolutions. They compute the same.
    """

    depth: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    text_width: int = 768
    norm_groups: int = 32
    epsilon: float = 1e-5
    norm_over_frames: bool = False
    dropout: float = 0.0
    linear_projections: bool = False

    def __post_init__(self):
        if len(self.depth) != len(self.heads):
            raise ValueError(
                f"depth = {self.depth}, heads = {self.heads}: must have one number for each level"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSettings:
    """The sizes that the blocks of a video transformer share. The defaults are Wan 2.1's of 1.3
    billion parameters.

    Attributes:
      heads, head_dim: of attention; their product is the width of a token.
      hidden: features inside of an MLP.
      epsilon: of all normalisations.
      qk_norm: what queries and keys are normalised over before attention: "width", all heads
        together; "head", each head; or "none".
      text_norm: whether tokens are normalised before they attend to the text.
      modulation: what the noise level modulates blocks by: "shared", one vector for all blocks
        plus a learned bias of each (adaLN-single, Chen et al. 2023), or "block", a linear map of
        each block that starts at zero (adaLN-zero, Peebles & Xie 2022).
      attention: "full", of all tokens of a clip to one another, or "factorised", of the tokens of a
        frame in one block and of a place in the next (Ma et al. 2024, Latte).
      positions: "rotary", or "sines" that are added to the tokens.
    """

    heads: int = 12
    head_dim: int = 128
    hidden: int = 8960
    epsilon: float = 1e-6
    qk_norm: str = "width"
    text_norm: bool = True
    modulation: str = "shared"
    attention: str = "full"
    positions: str = "rotary"

    def __post_init__(self):
        for name, allowed in (
            ("qk_norm", ("width", "head", "none")),
            ("modulation", ("shared", "block")),
            ("attention", ("full", "factorised")),
            ("positions", ("rotary", "sines")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: allowed are {', '.join(allowed)}"
                )
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}: must be even, for rotary positions")

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim
