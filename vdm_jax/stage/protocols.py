"""What a stage asks of its parts. Any object with these methods fits; nothing is subclassed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from vdm_jax.models.layers import Layout
from vdm_jax.stage.window import Reaches

Cond = Mapping[str, Any]
"""A condition as the network takes it: arrays by name, the batch first. See `stage.conditions`."""
Batch = Mapping[str, ArrayLike | jax.ShapeDtypeStruct]
"""What a data pipeline yields: "video" uint8 (b, f, h, w, c), for joint training "images" uint8
(b, k, h, w, c), what belongs to a part of a clip (`window.Reading.entries`), and what the
conditions read (`Condition.batch_shapes`)."""
Frozen = Mapping[str, PyTree]
"""Parameters that are used and not trained (teacher, autoencoder, encoders), by the part's name."""
Shapes = dict[str, jax.ShapeDtypeStruct]
Encode = Callable[[Float[Array, "b f h w c"]], Float[Array, "b f2 h2 w2 c2"]]
"""A stage's `Space.encode` with its frozen parameters bound, without a key."""


@runtime_checkable
class Network(Protocol):
    """A linen module `(z, logsnr, cond, *, num_images, train) -> raw output of z's shape`.

    Attributes:
      multiple: height and width must be multiples of it.
      reach: how many pixels away an output may depend on an input; None = anywhere in the frame.
    """

    multiple: int
    reach: int | None

    def init(self, *args: Any, **kwargs: Any) -> PyTree: ...

    def apply(self, *args: Any, **kwargs: Any) -> Array: ...

    def clone(self, *, layout: Layout) -> "Network": ...


@runtime_checkable
class Space(Protocol):
    """What z is: pixels, or the latents of a frozen autoencoder.

    Attributes:
      data_shape: (f, h, w, c) of a video in pixels.
      z_shape: (f, h, w, c) of z and of the noise.
      pixels: whether z is the video itself.
      multiple: height and width of a video, or of a part of one, must be multiples of it.
    """

    data_shape: tuple[int, int, int, int]
    z_shape: tuple[int, int, int, int]
    pixels: bool
    multiple: int

    def z_shape_for(self, data_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """(f, h, w, c) of z of a video of another shape. Raises ValueError where it has no z."""

    def encode(
        self,
        video: Float[Array, "b f h w c"],
        frozen: Frozen,
        key: Key[Array, ""] | None = None,
        num_images: int = 0,
    ) -> Float[Array, "b f2 h2 w2 c2"]:
        """z of videos in [-1, 1].

        key: with it z is drawn, as in training, where the encoder returns a distribution; without
        it z is the most likely one. num_images: how many of the frames, the last ones, are images
        that do not belong to the clip. It is passed only where there are images.
        """

    def encode_mask(self, mask: Float[Array, "b f h w 1"]) -> Float[Array, "b f2 h2 w2 1"]:
        """1 where all pixels that z stands for are 1 in a mask of ones and zeros, 0 elsewhere."""

    def decode(self, z: Float[Array, "b f2 h2 w2 c2"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """Videos in [-1, 1] of z."""

    def preview(
        self, z: Float[Array, "b f2 h2 w2 c2"], frozen: Frozen
    ) -> Float[Array, "b f3 h3 w3 c"]:
        """Videos in [-1, 1] of z, perhaps less exact and of another size, to look at meanwhile."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A stage's `Space.encode` with its frozen parameters bound, without a key: an `Encode`.

    Attributes:
      frozen: of the stage, for conditions that have an encoder of their own.
    """

    space: Space
    frozen: Frozen

    def __call__(self, video: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h2 w2 c2"]:
        return self.space.encode(video, self.frozen)


def same(array: Array) -> Array:
    """The array."""
    return array


class Example(NamedTuple):
    """What a condition is made from in training.

    Attributes:
      batch: the data's.
      clip: what was read of the stage's own clips, in [-1, 1]: all of each, or a window around a
        crop (`stage.window`).
      images: images beside each clip, or None.
      fps: each clip's frames a second.
      encode, encode_mask: `Space.encode` and `Space.encode_mask` of the stage's space, for
        conditions that are videos; the default is that of pixels.
    """

    batch: Batch
    clip: Float[Array, "b f h w c"]
    images: Float[Array, "b k h w c"] | None
    fps: Float[Array, "b"]
    encode: Encode = same
    encode_mask: Callable[[Array], Array] = same

    @property
    def num_images(self) -> int:
        return 0 if self.images is None else self.images.shape[1]


@runtime_checkable
class Condition(Protocol):
    """One thing that a network is conditioned on.

    Attributes:
      name: its own, unique in a stage; guidance nulls conditions by it.
      mechanism: how it enters the network: "vector", "tokens" or "channels"; "none" where only the
        sampler reads it.
      dropout: chance of the null condition in training.
      like_z: the keys of `Cond` that are cut in space and time as z is.
      reach: how far those depend on the clip along frames, rows and columns; None = on all of it.
      settings: names of what may be set at sampling time, floats (`begin`).

    A condition that a cascade makes of the samples of the stage before has one more attribute,
    `of_stage_before`, True.
    """

    name: str
    mechanism: str
    dropout: float
    like_z: tuple[str, ...]
    reach: Reaches | None
    settings: tuple[str, ...]

    def batch_shapes(self, n: int, image_frames: int) -> Shapes:
        """What a training batch of n examples must hold for it."""

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        """What the network takes of it."""

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        """The entries of `Cond` in training, nothing dropped."""

    def input_shapes(self, n: int) -> Shapes:
        """What `encode` returns for n samples."""

    def encode(self, given: Any, n: int) -> dict[str, Any]:
        """A user's input for n samples (None: nothing was given) as arrays on the host.

        Raises ValueError where the model was not trained for it.
        """

    def check(self, settings: Mapping[str, float]) -> None:
        """Raises ValueError where a setting is outside of what the model was trained with."""

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        """The entries of `Cond` at sampling time, once a sample; `cond` is what `encode` gave.

        encode: of the stage's space, for conditions that are videos.
        """

    def null(self, cond: Cond) -> Cond:
        """`cond` with the null condition in this one's place, of equal structure and shapes."""


@runtime_checkable
class Parametrisation(Protocol):
    """What the network's raw output stands for, beyond `Process.prediction`."""

    def output(
        self,
        raw: Float[Array, "b f h w c"],
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
    ) -> Float[Array, "b f h w c"]:
        """What `Process.prediction` names, from the network's raw output."""

    def weight(self, logsnr: Float[Array, "b"], cond: Cond) -> Float[Array, "b *frames"]:
        """The factor of each example's, or each frame's, squared errors in the loss."""
