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
from ml_collections import ConfigDict

from vdm_jax.data.source import ClipSource, DataError, fit, window
from vdm_jax.data.tfds_video import PNGVideo
from vdm_jax.stage.window import Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where a data set's parts are; "a/b" is feature b of feature a.

    A builder with `as_rendered` is this package's: it has `captions(split)` and `rendered(split,
    count)`, and clips of other sizes or lengths are refused, not resampled. With `frame_captions`,
    one caption for each frame, single frames may be read as well, each with its own caption, and
    such a builder has `frame_captions` and `rendered_frames` likewise.
    """

    module: str
    builder: str
    video: str
    caption: str = ""
    frame_captions: str = ""
    label: str = ""
    as_rendered: bool = False


DATASETS = {
    "moving_shapes": Dataset(
        module="vdm_jax.data.moving_shapes",
        builder="MovingShapes",
        video="video",
        caption="caption",
        as_rendered=True,
    ),
    "scenes": Dataset(
        module="vdm_jax.data.scenes.builder",
        builder="Scenes",
        video="video",
        caption="caption",
        frame_captions="frame_captions",
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


def is_rendered(name: str) -> bool:
    """Whether `data.name` is a data set that this package renders itself."""
    return name in DATASETS and DATASETS[name].as_rendered


def single_frames(name: str, num_frames: int) -> bool:
    """Whether clips of `num_frames` are single frames with captions of their own."""
    return num_frames == 1 and name in DATASETS and bool(DATASETS[name].frame_captions)


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


def video_shape(name: str, builder: Any) -> tuple[int | None, ...]:
    """(f, h, w, c) of a data set's stored videos, None where they differ."""
    return _feature(builder.info.features, DATASETS[name].video).shape


def rendered_captions(data: ConfigDict, split: str) -> list[str]:
    """The captions of a split of the rendered data set that a configuration's `data` names: those
    of its frames where it is read as single frames. Raises DataError."""
    builder = make_builder(data.name, data.config)
    if single_frames(data.name, data.num_frames):
        return builder.frame_captions(split)
    return builder.captions(split)


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
        extras: Sequence[str] = (),
    ):
        """extras: names of stored arrays, of the video's frames and size, that are read as well.

        Raises DataError where the data set is not prepared or does not fit the arguments.
        """
        self._arguments = {
            "name": name,
            "config": config,
            "data_dir": data_dir,
            "split": split,
            "num_frames": num_frames,
            "image_size": image_size,
            "image_width": image_width,
            "frame_stride": frame_stride,
            "extras": tuple(extras),
        }
        builder = make_builder(name, config, data_dir)
        self._dataset = DATASETS[name]
        self._stride = frame_stride
        self.name = f"{name}/{builder.builder_config.name}" if builder.builder_config else name
        self.split = split
        self.video_shape = (num_frames, image_size, image_width or image_size, 3)
        self._check_shape(video_shape(name, builder))
        self.extras = tuple(extras)
        self._check_extras(builder.info.features)
        self._check_prepared(builder, data_dir, f"--data={name}" + (f"/{config}" if config else ""))
        self._rendered = builder if self._dataset.as_rendered else None
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

    def _check_extras(self, features: Any) -> None:
        """Arrays are neither resized nor resampled, so only rendered data have them."""
        there = []
        if self._dataset.as_rendered:
            shape = features[self._dataset.video].shape[:3]
            there = [name for name, feature in features.items() if feature.shape[:3] == shape]
            there.remove(self._dataset.video)
        if unknown := [name for name in self.extras if name not in there]:
            raise DataError(
                f"data.extras = {self.extras}: {self.name} has no {', '.join(unknown)}; "
                f"allowed are {', '.join(there) or 'none'}"
            )

    def _check_prepared(self, builder: Any, data_dir: str, flags: str) -> None:
        if not builder.info.splits:
            raise DataError(
                f"{self.name} is not prepared in {data_dir}; prepare it with:\n"
                f"  vdm data prepare {flags} --data_dir={data_dir}"
            )

    def _check_shape(self, stored: tuple[int | None, ...]) -> None:
        frames, height, width = self.video_shape[:3]
        if self._dataset.as_rendered:
            whole = 1 if single_frames(self._arguments["name"], frames) else stored[0]
            for field, wanted, there in (
                ("num_frames", frames, whole),
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
        return result | {name: part.box(result[name]) for name in ("video", *self.extras)}

    def _read(
        self, index: int, chosen: Sequence[int], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        example = self._examples[int(index)]
        video = _value(example, self._dataset.video)
        frames, *size = self.video_shape[:3]
        try:
            part = window(len(video), frames, self._stride, rng)
            video = fit(np.asarray(video[part])[list(chosen)], *size)
        except DataError as error:
            raise DataError(f"{self.name} {self.split}, example {index}: {error}") from None
        result = {"video": video, "caption": ""}
        for name in self.extras:
            result[name] = np.asarray(example[name][part])[list(chosen)]
        if self._dataset.label:
            result["label"] = int(_value(example, self._dataset.label))
            result["caption"] = _words(self._label_names[result["label"]])
        if self._dataset.caption:
            result["caption"] = _text(_value(example, self._dataset.caption))
        if self._dataset.frame_captions:
            texts = _value(example, self._dataset.frame_captions)[part]
            result["frame_captions"] = [_text(texts[frame]) for frame in chosen]
            if len(chosen) == 1:
                result["caption"] = result["frame_captions"][0]
        return result

    def captions(self) -> Sequence[str]:
        if self._rendered is not None:
            split = "held_out" if self.split.startswith("held_out") else "train"
            texts = self._rendered.captions(split) if self.video_shape[0] > 1 else []
            if self._dataset.frame_captions:  # of single frames, and of images beside clips
                texts = [*texts, *self._rendered.frame_captions(split)]
            return texts
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


def _text(stored: Any) -> str:
    """A stored text, which is read as bytes; TFDS's mocked data has str."""
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def _words(label: str) -> str:
    """A class name as words: "ApplyEyeMakeup" to "apply eye makeup"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", label).lower()
