"""Scenes as a TFDS builder: captioned clips with masks, depth, edges and boxes, rendered here.

    builder = Scenes(config="64x64x16", data_dir=DIR, file_format="array_record")
    builder.download_and_prepare()  # nothing is downloaded: clips are rendered
    source = builder.as_data_source("train")

See `docs/data.md` for what is seen and for the combinations that only `held_out` shows.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from vdm_jax.data import rendering
from vdm_jax.data.scenes.grammar import BACKGROUNDS, MOTIONS, SPLITS, SPRITES
from vdm_jax.data.scenes.world import Clip, Scene, draw_scene, render
from vdm_jax.data.shapes import COLORS, SHAPES

SIZE, FRAMES = 64, 16


@dataclasses.dataclass(kw_only=True)  # TFDS's own class is not frozen, so this cannot be
class ScenesConfig(tfds.core.BuilderConfig):
    """How many objects a scene shows, of how many pixels and frames, and how many clips there
    are."""

    num_objects: int = 1
    size: int = SIZE
    frames: int = FRAMES
    train_clips: int = 10_000
    held_out_clips: int = 1_000
    seed: int = 0

    def count(self, split: str) -> int:
        """The number of clips of a split."""
        return self.train_clips if split == "train" else self.held_out_clips

    def scene(self, split: str, index: int) -> Scene:
        """Scene `index` of a split, not drawn yet."""
        sizes = {"num_objects": self.num_objects, "num_frames": self.frames}
        return draw_scene(self.seed, split, index, **sizes)


def clips(
    config: ScenesConfig, split: str, count: int | None = None
) -> Iterator[tuple[Scene, Clip]]:
    """Yields the first `count` clips of a split; clip i is the same whatever `count` is."""

    def rendered(index: int) -> tuple[Scene, Clip]:
        scene = config.scene(split, index)
        return scene, render(scene, config.size)

    yield from rendering.ahead(rendered, range(config.count(split) if count is None else count))


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Emoji and coloured shapes that move over textured backgrounds, with captions, masks, depth,
    edges and boxes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        ScenesConfig(
            name="64x64x16", description="16 frames of 64 by 64 pixels, one object.", num_objects=1
        ),
        ScenesConfig(
            name="64x64x16_two",
            description="16 frames of 64 by 64 pixels, two objects.",
            num_objects=2,
        ),
        ScenesConfig(
            name="256x256x16",
            description="16 frames of 256 by 256 pixels, one object, for super-resolution.",
            size=256,
            train_clips=200,
            held_out_clips=100,
        ),
        ScenesConfig(
            name="64x64x65",
            description="65 frames of 64 by 64 pixels, one object, for frame interpolation.",
            frames=65,
            train_clips=1_000,
            held_out_clips=100,
        ),
    ]
    builder_config: ScenesConfig

    def captions(self, split: str) -> list[str]:
        """The distinct captions of the clips of a split."""
        return list(dict.fromkeys(scene.caption for scene in self._scenes(split)))

    def frame_captions(self, split: str) -> list[str]:
        """The distinct captions of the frames of a split."""
        scenes = self._scenes(split)
        return list(dict.fromkeys(text for scene in scenes for text in scene.frame_captions))

    def rendered(self, split: str, count: int | None) -> Iterator[tuple[np.ndarray, str]]:
        """Video and caption of the first `count` clips of a split, which need not be prepared."""
        for scene, clip in clips(self.builder_config, split, count):
            yield clip.video, scene.caption

    def rendered_frames(self, split: str, count: int | None) -> Iterator[tuple[np.ndarray, str]]:
        """One frame, as a clip of one, and its caption of each of the first `count` clips."""
        for index, (scene, clip) in enumerate(clips(self.builder_config, split, count)):
            frame = index * 7 % self.builder_config.frames
            yield clip.video[frame : frame + 1], scene.frame_captions[frame]

    def _scenes(self, split: str) -> Iterator[Scene]:
        config = self.builder_config
        return (config.scene(split, index) for index in range(config.count(split)))

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config

        def pixels(channels):
            return tfds.features.Tensor(
                shape=(config.frames, config.size, config.size, channels),
                dtype=np.uint8,
                encoding=tfds.features.Encoding.ZLIB,
            )

        def labels(names):
            return tfds.features.Sequence(
                tfds.features.ClassLabel(names=list(names)), length=config.num_objects
            )

        return self.dataset_info_from_configs(
            description=(self.__doc__ or "") + " " + config.description,
            features=tfds.features.FeaturesDict(
                {
                    "video": pixels(3),
                    "caption": tfds.features.Text(),
                    "frame_captions": tfds.features.Sequence(
                        tfds.features.Text(), length=config.frames
                    ),
                    "mask": pixels(1),
                    "depth": pixels(1),
                    "edges": pixels(1),
                    "boxes": tfds.features.Tensor(
                        shape=(config.frames, config.num_objects, 4), dtype=np.float32
                    ),
                    "object": labels((*SPRITES, *SHAPES)),
                    "color": labels(("none", *COLORS)),
                    "motion": labels(MOTIONS),
                    "background": tfds.features.ClassLabel(names=list(BACKGROUNDS)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        for index, (scene, clip) in enumerate(clips(self.builder_config, split)):
            yield (
                index,
                {
                    **clip._asdict(),
                    "caption": scene.caption,
                    "frame_captions": scene.frame_captions,
                    "boxes": scene.boxes,
                    "object": [thing.object for thing in scene.things],
                    "color": [thing.color or "none" for thing in scene.things],
                    "motion": list(scene.motions),
                    "background": scene.background,
                },
            )
