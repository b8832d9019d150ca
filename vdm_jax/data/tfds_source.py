"""TFDS data sets by name, read without TensorFlow.

A data set is a row of `DATASETS`: where its builder class is and which of its features hold the
video, the caption and the label. Builders are imported by class, because `tfds.builder(name)`
finds no video data set where TensorFlow is missing.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vdm_jax.data import shapes
from vdm_jax.data.source import ClipSource, DataError, fit, window
from vdm_jax.data.tfds_video import PNGVideo
from vdm_jax.stage.window import Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where a data set's parts are; "a/b" is feature b of feature a."""

    module: str
    builder: str
    video: str
    caption: str = ""
    label: str = ""
    as_rendered: bool = False  # clips of other sizes or lengths are refused, not resampled


DATASETS = {
    "moving_shapes": Dataset(
        module="vdm_jax.data.moving_shapes",
        builder="MovingShapes",
        video="video",
        caption="caption",
        as_rendered=True,
    ),
    "ucf101": Dataset(
        module="tensorflow_datasets.video", builder="Ucf101", video="video", label="label"
    ),
    "moving_mnist": Dataset(
        module="tensorflow_datasets.video", builder="MovingMnist", video="image_sequence"
    ),
    "bair_robot_pushing_small": Dataset(
        module="tensorflow_datasets.datasets.bair_robot_pushing_small"
        ".bair_robot_pushing_small_dataset_builder",
        builder="Builder",
        video="image_main",
    ),
    "robonet": Dataset(
        module="tensorflow_datasets.datasets.robonet.robonet_dataset_builder",
        builder="Builder",
        video="video",
    ),
    "starcraft_video": Dataset(
        module="tensorflow_datasets.datasets.starcraft_video.starcraft_video_dataset_builder",
        builder="Builder",
        video="rgb_screen",
    ),
    "davis": Dataset(module="tensorflow_datasets.video", builder="Davis", video="video/frames"),
}


def make_builder(name: str, config: str = "", data_dir: str = "data") -> Any:
    """The TFDS builder of a data set of `DATASETS`, which stores array_record files.

    config: the builder's configuration, "" for its first. Raises DataError.
    """
    if name not in DATASETS:
        raise DataError(f"data.name = {name!r}: the TFDS data sets are {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    cls = getattr(importlib.import_module(dataset.module), dataset.builder)
    configs = [c.name for c in cls.BUILDER_CONFIGS]
    if config and config not in configs:
        raise DataError(
            f"data.config = {config!r}: {name} has "
            + (", ".join(configs) if configs else "no configurations, leave it empty")
        )
    with video_without_tensorflow():
        builder = cls(config=config or None, data_dir=data_dir, file_format="array_record")
        builder.info  # noqa: B018  made on first use, which must be inside this context
    return builder


def prepare(builder: Any) -> None:
    """Downloads or renders, and writes, what a builder describes; again it does nothing.

    Shows TFDS's bars on a terminal, and prints nothing. Raises DataError where that fails, for
    example without a network.
    """
    if not sys.stderr.isatty():  # TFDS's bars fill log files
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS's announcements; bars are on stderr
            builder.download_and_prepare()
    except Exception as error:  # whatever a download or an archive may raise
        raise DataError(
            f"{builder.name} could not be prepared in {builder.data_dir}: "
            f"{type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def video_without_tensorflow() -> Iterator[None]:
    """Has TFDS builders made inside use `PNGVideo`: TFDS's own Video needs TensorFlow."""
    original, tfds.features.Video = tfds.features.Video, PNGVideo
    try:
        yield
    finally:
        tfds.features.Video = original


class TFDSSource(ClipSource):
    """Clips of a prepared TFDS data set; a longer video gives one clip, at a random place."""

    def __init__(
        self,
        name: str,
        *,
        config: str = "",
        data_dir: str = "data",
        split: str = "train",
        num_frames: int,
        image_size: int,
        image_width: int = 0,
        frame_stride: int = 1,
    ):
        """Raises DataError where the data set is not prepared or does not fit the numbers."""
        self._arguments = {
            "name": name,
            "config": config,
            "data_dir": data_dir,
            "split": split,
            "num_frames": num_frames,
            "image_size": image_size,
            "image_width": image_width,
            "frame_stride": frame_stride,
        }
        builder = make_builder(name, config, data_dir)
        self._dataset = DATASETS[name]
        self._stride = frame_stride
        self.name = f"{name}/{builder.builder_config.name}" if builder.builder_config else name
        self.split = split
        self.video_shape = (num_frames, image_size, image_width or image_size, 3)
        self._check_shape(_feature(builder.info.features, self._dataset.video).shape)
        self._check_prepared(builder, data_dir, f"--data={name}" + (f"/{config}" if config else ""))
        self._num_objects = getattr(builder.builder_config, "num_objects", 1)
        self._label_names = []
        if self._dataset.label:
            self._label_names = _feature(builder.info.features, self._dataset.label).names
        self.num_labels = len(self._label_names)
        try:
            self._examples = builder.as_data_source(split)
        except (ValueError, KeyError) as error:
            raise DataError(
                f"data.split = {split!r}: {self.name} has {', '.join(builder.info.splits)}"
            ) from error
        if not len(self._examples):
            raise DataError(f"data.split = {split!r}: {self.name} has no example in it")

    def _check_prepared(self, builder: Any, data_dir: str, flags: str) -> None:
        if not builder.info.splits:
            raise DataError(
                f"{self.name} is not prepared in {data_dir}; prepare it with:\n"
                f"  vdm data prepare {flags} --data_dir={data_dir}"
            )

    def _check_shape(self, stored: tuple[int | None, ...]) -> None:
        frames, height, width = self.video_shape[:3]
        if self._dataset.as_rendered:
            for field, wanted, there in (
                ("num_frames", frames, stored[0]),
                ("image_size", height, stored[1]),
                ("image_width", width, stored[2]),
                ("frame_stride", self._stride, 1),
            ):
                if wanted != there:
                    raise DataError(f"data.{field} = {wanted}: {self.name} has {there}")
        elif stored[0] is not None:
            window(stored[0], frames, self._stride)

    def __reduce__(self):
        # Pickled as its arguments: worker processes make their own builder, without TensorFlow.
        return functools.partial(TFDSSource, **self._arguments), ()

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        return self._read(index, range(self.video_shape[0]), rng)

    def read_part(
        self, index: int, part: Part, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """See `ClipSource`; no other frames are scaled."""
        result = self._read(index, part.frames, rng)
        return {**result, "video": part.box(result["video"])}

    def _read(
        self, index: int, chosen: Sequence[int], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        example = self._examples[int(index)]
        video = _value(example, self._dataset.video)
        frames, *size = self.video_shape[:3]
        try:
            taken = np.asarray(video[window(len(video), frames, self._stride, rng)])
            video = fit(taken[list(chosen)], *size)
        except DataError as error:
            raise DataError(f"{self.name} {self.split}, example {index}: {error}") from None
        result = {"video": video, "caption": ""}
        if self._dataset.label:
            result["label"] = int(_value(example, self._dataset.label))
            result["caption"] = _words(self._label_names[result["label"]])
        if self._dataset.caption:
            # Stored text is read as bytes; TFDS's mocked data has str.
            text = _value(example, self._dataset.caption)
            result["caption"] = text.decode() if isinstance(text, bytes) else str(text)
        return result

    def captions(self) -> Sequence[str]:
        if self._dataset.builder == "MovingShapes":
            split = "held_out" if self.split.startswith("held_out") else "train"
            return shapes.captions(split, self._num_objects)
        return [_words(name) for name in self._label_names] or [""]

    def summary(self) -> str:
        return f"{self.name}, split {self.split}: {len(self)} clips"


def _feature(features: Any, path: str) -> Any:
    for name in path.split("/"):
        # A Sequence of a dictionary stores a dictionary of sequences.
        features = _sequence_items(features)[name]
    return features


def _sequence_items(features: Any) -> Any:
    if isinstance(features, tfds.features.Sequence):
        return {
            name: tfds.features.Sequence(feature, length=features._length)
            for name, feature in features.feature.items()
        }
    return features


def _value(example: Any, path: str) -> Any:
    return functools.reduce(lambda value, name: value[name], path.split("/"), example)


def _words(label: str) -> str:
    """A class name as words: "ApplyEyeMakeup" to "apply eye makeup"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", label).lower()
