"""Training on clips of several sizes: durations, resolutions and aspect ratios as they come.

One network takes them all. A batch is `train.batch_size` rows, and a row holds some clips of one
size, or, packed, some clips of every size one behind the other (Dehghani et al. 2023, NaViT). A
bucketed batch has one size; the sizes take turns.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Key, PyTree

from vdm_jax.models.layers import Layout
from vdm_jax.models.packing import Clips, pack_rows, unpack_rows
from vdm_jax.stage.protocols import Batch, Frozen
from vdm_jax.stage.stage import NO_FROZEN, Stage, key_for


class Size(NamedTuple):
    """A size of clips in pixels, and how many of them a row holds."""

    frames: int
    height: int
    width: int
    clips: int = 1

    @property
    def name(self) -> str:
        """Of its part of a batch."""
        return f"{self.frames}x{self.height}x{self.width}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizedStage(Stage):
    """A stage that is trained on clips of several sizes; it is sampled in the first by default.

    A batch maps the names of sizes to batches of the stage of that size, with one axis more behind
    the rows: the clips of a row.

    Attributes:
      stages: of each size, with one network.
      sizes: of `stages`.
      packed: whether a batch has all sizes, packed into one row of tokens, or one size.
    """

    stages: tuple[Stage, ...]
    sizes: tuple[Size, ...]
    packed: bool = False

    @classmethod
    def of(cls, stages: tuple[Stage, ...], sizes: tuple[Size, ...], packed: bool) -> "SizedStage":
        """The stages of all sizes as one. Raises ValueError where they cannot be packed."""
        first = stages[0]
        if len({size.name for size in sizes}) < len(sizes):
            raise ValueError(f"data.sizes = {sizes}: each size must be there once")
        if any(size.clips < 1 for size in sizes):
            raise ValueError(f"data.sizes = {sizes}: a row holds one clip of a size or more")
        if packed and len(first.conditions) > 1:
            names = ", ".join(condition.name for condition in first.conditions)
            raise ValueError(
                f"data.packed: packed rows have text alone as a condition, not {names}"
            )
        fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(Stage)}
        return cls(**fields, stages=stages, sizes=sizes, packed=packed)

    def with_layout(self, layout: Layout) -> "SizedStage":
        placed = tuple(stage.with_layout(layout) for stage in self.stages)
        return dataclasses.replace(self, network=self.network.clone(layout=layout), stages=placed)

    def abstract_batch(self, batch_size: int, image_frames: int = 0) -> dict[str, Batch]:
        """Shapes and dtypes of a training batch: of all sizes if packed, else of the first."""
        count = len(self.sizes) if self.packed else 1
        found = {}
        for stage, size in list(zip(self.stages, self.sizes, strict=True))[:count]:
            flat = stage.abstract_batch(batch_size * size.clips, image_frames)
            found[size.name] = {
                name: jax.ShapeDtypeStruct((batch_size, size.clips, *leaf.shape[1:]), leaf.dtype)
                for name, leaf in flat.items()
            }
        return found

    def train_flops(self, image_frames: int = 0) -> int:
        """Operations of a row; where batches have one size each, of the mean row."""
        rows = [
            size.clips * stage.train_flops(image_frames)
            for stage, size in zip(self.stages, self.sizes, strict=True)
        ]
        return sum(rows) if self.packed else sum(rows) // len(rows)

    def loss(
        self,
        params: PyTree,
        batch: Mapping[str, Batch],
        key: Key[Array, ""],
        frozen: Frozen = NO_FROZEN,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The training loss, averaged over all clips, and scalar metrics."""
        flat = {
            name: jax.tree.map(lambda leaf: rearrange(leaf, "b n ... -> (b n) ..."), part)
            for name, part in batch.items()
        }
        if self.packed:
            return self._packed_loss(params, flat, key, frozen)
        ((name, part),) = flat.items()
        stage = self.stages[[size.name for size in self.sizes].index(name)]
        return stage.loss(params, part, key, frozen)

    def _packed_loss(
        self, params: PyTree, batch: Mapping[str, Batch], key: Key[Array, ""], frozen: Frozen
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        network, params = self.network, self.network_params(params, frozen)
        examples, clips = [], []
        for stage, size in zip(self.stages, self.sizes, strict=True):
            own = key_for(key, size.name)
            # As in `Stage.loss`, so that a packed clip learns what it would learn alone.
            noise_key, _ = jax.random.split(own)
            x, cond, images = stage.example(batch[size.name], jax.random.fold_in(own, 3), frozen)
            if images:
                raise ValueError("data.image_frames: packed rows have images as a size of 1 frame")
            noised = stage.process.noised(noise_key, x)
            rows = (noised.z, noised.logsnr, cond[network.text])
            rows = (rearrange(leaf, "(b n) ... -> b n ...", n=size.clips) for leaf in rows)
            examples.append((stage, noised))
            clips.append(Clips(*rows))
        outputs = network.apply(
            {"params": params}, pack_rows(clips, network.patch), method="packed"
        )
        found, metrics = [], []
        for (stage, noised), raw in zip(
            examples, unpack_rows(outputs, clips, network.patch), strict=True
        ):
            raw = rearrange(raw, "b n ... -> (b n) ...")
            losses, measured = stage.process.losses(raw, noised)
            found.append(losses)
            metrics.append((len(losses), measured))
        total = sum(count for count, _ in metrics)
        averages = {
            name: sum(count * measured[name] for count, measured in metrics) / total
            for name in metrics[0][1]
        }
        return jnp.concatenate(found).mean(), averages
