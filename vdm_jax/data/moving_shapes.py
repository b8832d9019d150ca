"""MovingShapes as a TFDS builder: captioned clips on disk, without TensorFlow.

    builder = MovingShapes(config="16x16x8", data_dir=DIR, file_format="array_record")
    builder.download_and_prepare()  # nothing is downloaded: clips are rendered
    source = builder.as_data_source("train")

See `docs/data.md` for the combinations that only `held_out` shows.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from vdm_jax.data import rendering
from vdm_jax.data.shapes import (
    COLORS,
    COMBINATIONS,
    DIRECTIONS,
    HELD_OUT,
    SHAPES,
    SPLITS,
    TRAIN,
    Combination,
    captions,
    make_caption,
    parse_caption,
    render,
    render_clips,
    scenes,
)

__all__ = [
    "COLORS",
    "COMBINATIONS",
    "DIRECTIONS",
    "HELD_OUT",
    "SHAPES",
    "TRAIN",
    "Combination",
    "MovingShapes",
    "MovingShapesConfig",
    "captions",
    "clips",
    "make_caption",
    "parse_caption",
    "render",
    "render_clips",
    "scenes",
]

_BLOCK = 64  # clips rendered at a time; part of what the seed means, so it must not change


@dataclasses.dataclass(kw_only=True)  # TFDS's own class is not frozen, so this cannot be
class MovingShapesConfig(tfds.core.BuilderConfig):
    """One resolution, length and number of objects."""

    size: int = 16
    num_frames: int = 8
    num_objects: int = 1
    train_clips: int = 20_000
    held_out_clips: int = 1_000
    seed: int = 0


def _config(size: int, num_frames: int, num_objects: int) -> MovingShapesConfig:
    name = f"{size}x{size}x{num_frames}" + ("_two" if num_objects == 2 else "")
    objects = "one shape" if num_objects == 1 else "two shapes"
    return MovingShapesConfig(
        name=name,
        description=f"{num_frames} frames of {size} by {size} pixels, {objects}.",
        size=size,
        num_frames=num_frames,
        num_objects=num_objects,
        train_clips=20_000 if size <= 32 else 5_000 if num_frames <= 16 else 10_000,
    )


def clips(
    config: MovingShapesConfig, split: str, count: int | None = None
) -> Iterator[tuple[tuple[Combination, ...], np.ndarray]]:
    """Yields (scene, uint8 video [f, h, w, 3]) of the first `count` clips of a split.

    Scenes come in turn, so that every combination is shown equally often; clip i is the same
    whatever `count` is.
    """
    if count is None:
        count = config.train_clips if split == "train" else config.held_out_clips
    all_scenes = scenes(split, config.num_objects)

    def rendered(block: int) -> tuple[list[tuple[Combination, ...]], np.ndarray]:
        # A prime stride visits every scene and mixes neighbours in the list.
        chosen = [all_scenes[i * 7919 % len(all_scenes)] for i in range(block, block + _BLOCK)]
        videos = render_clips(
            chosen,
            size=config.size,
            num_frames=config.num_frames,
            seed=(config.seed, list(SPLITS).index(split), block),
        )
        return chosen, videos[: count - block]

    for chosen, videos in rendering.ahead(rendered, range(0, count, _BLOCK)):
        yield from zip(chosen, videos, strict=False)


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Coloured shapes that move over a black background, with captions."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        _config(size, num_frames, num_objects)
        for num_objects in (1, 2)
        for size in (16, 32, 64)
        for num_frames in (8, 16, 32)
    ]
    builder_config: MovingShapesConfig

    def captions(self, split: str) -> list[str]:
        """Every caption that a split may have."""
        return captions(split, self.builder_config.num_objects)

    def rendered(self, split: str, count: int | None) -> Iterator[tuple[np.ndarray, str]]:
        """Video and caption of the first `count` clips of a split, which need not be prepared."""
        for scene, video in clips(self.builder_config, split, count):
            yield video, make_caption(scene)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config

        def labels(names):
            return tfds.features.Sequence(
                tfds.features.ClassLabel(names=list(names)), length=config.num_objects
            )

        return self.dataset_info_from_configs(
            description=(self.__doc__ or "") + " " + config.description,
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(
                        shape=(config.num_frames, config.size, config.size, 3),
                        dtype=np.uint8,
                        encoding=tfds.features.Encoding.ZLIB,
                    ),
                    "caption": tfds.features.Text(),
                    "color": labels(COLORS),
                    "shape": labels(SHAPES),
                    "direction": labels(DIRECTIONS),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        for index, (scene, video) in enumerate(clips(self.builder_config, split)):
            yield (
                index,
                {
                    "video": video,
                    "caption": make_caption(scene),
                    "color": [c.color for c in scene],
                    "shape": [c.shape for c in scene],
                    "direction": [c.direction for c in scene],
                },
            )
