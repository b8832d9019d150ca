"""From a source of clips to batches: shuffled, sharded, tokenised, resumable to the example.

Every example is a function of (seed, its position in the stream), and a batch of its number: the
stream is the same for any number of worker processes, and for any number of hosts each host reads
its own rows of the same global batches. So the whole state of an iterator is the number of batches
that it has given.
"""

import dataclasses
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np
from ml_collections import ConfigDict

from vdm_jax.data import text_embeddings
from vdm_jax.data.source import OF_FILES, ClipSource, DataError
from vdm_jax.models.text.words import NULL, TextEncoder, WordEncoder
from vdm_jax.stage.window import Part, Reading

Batch = dict[str, np.ndarray]


# What `data.augment` may name.
AUGMENTATIONS = ("start", "mirror", "reverse")
_TURNS = ("mirror", "reverse")  # those that are done to a clip after reading


def make_source(data: ConfigDict, split: str | None = None, train: bool = False) -> ClipSource:
    """The source that a configuration's `data` section names, opened. Raises DataError.

    `data.name` is "video_folder" (of which `data_dir` is the folder), "video_shards" (of which it
    is the folder of the shards) or a TFDS data set of `vdm_jax.data.tfds_source.DATASETS` (of which
    it is TFDS's directory).

    train: clips of video files begin anywhere where `data.augment` names "start"; TFDS's do so in
    any case when a generator is given.
    """
    # Imported when needed: TFDS and PyAV take their time.
    extras = tuple(data.get("extras", ()))
    if data.name in OF_FILES:
        if extras:
            raise DataError(f"data.extras = {extras}: {data.name} has none")
        from vdm_jax.data.video_folder import VideoFolder
        from vdm_jax.data.video_shards import VideoShards

        kind = VideoFolder if data.name == "video_folder" else VideoShards
        return kind(
            data.data_dir,
            num_frames=data.num_frames,
            image_size=data.image_size,
            image_width=data.get("image_width", 0),
            frame_stride=data.frame_stride,
            fps=data.fps,
            random_start=train and "start" in augmentations(data),
            aspects=data.get("aspects", ()),
        )
    from vdm_jax.data.tfds_source import DATASETS, TFDSSource

    if data.name not in DATASETS:
        raise DataError(
            f"data.name = {data.name!r}: allowed are {', '.join((*OF_FILES, *DATASETS))}"
        )
    if data.fps:
        raise DataError(
            f"data.fps = {data.fps:g}: {data.name} does not say its frame rate; "
            "use data.frame_stride"
        )
    return TFDSSource(
        data.name,
        config=data.config,
        data_dir=data.data_dir,
        split=split or data.split,
        num_frames=data.num_frames,
        image_size=data.image_size,
        image_width=data.get("image_width", 0),
        frame_stride=data.frame_stride,
        extras=extras,
    )


def augmentations(data: ConfigDict) -> tuple[str, ...]:
    """`data.augment`, none in older files. Raises DataError for a name that is not known."""
    names = tuple(data.get("augment", ()))
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise DataError(
            f"data.augment = {names}: {', '.join(map(repr, unknown))} unknown; "
            f"allowed are {', '.join(AUGMENTATIONS)}"
        )
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What a source holds; `captions` has at least one of every kind."""

    num_examples: int
    captions: Sequence[str]
    video_shape: tuple[int, int, int, int]
    num_labels: int
    summary: str


def source_info(config: ConfigDict, split: str | None = None) -> SourceInfo:
    """Opens the source of `config.data` and describes it. Raises DataError."""
    source = make_source(config.data, split)
    return SourceInfo(
        num_examples=len(source),
        captions=source.captions(),
        video_shape=source.video_shape,
        num_labels=source.num_labels,
        summary=source.summary(),
    )


def all_captions(config: ConfigDict) -> list[str]:
    """The captions of every split of `config.data`, one of every kind or more. Raises DataError."""
    splits: list[str | None] = [None]
    if config.data.name not in OF_FILES:
        from vdm_jax.data import tfds_source

        builder = tfds_source.make_builder(
            config.data.name, config.data.config, config.data.data_dir
        )
        # Of data that is not there make_source says how to prepare it.
        splits = sorted(builder.info.splits) or splits
    return [text for split in splits for text in make_source(config.data, split).captions()]


def with_vocabulary(config: ConfigDict) -> ConfigDict:
    """The configuration with what the network learns text from in this data.

    The data's most frequent words, where it needs a vocabulary and has none; with a frozen text
    encoder `text.identity`, which says whose embeddings lie beside the data. Else the configuration
    itself. Raises DataError.
    """
    text = config.text
    if text.encoder not in ("none", "words"):
        embeddings = text_embeddings.find(
            config.data.data_dir, text.encoder, text.max_length, text.get("identity", "")
        )
        return _with_text(config, identity=embeddings["identity"])
    if config.text.encoder != "words" or config.text.vocabulary:
        return config
    words = WordEncoder.from_texts(
        source_info(config).captions,
        max_length=config.text.max_length,
        vocabulary_size=config.text.vocabulary_size,
    ).words
    if not words:
        raise DataError(
            f"text.encoder = 'words', but the captions of data.name = {config.data.name!r} have "
            "no words: give captions, or set text.encoder = 'none'"
        )
    return _with_text(config, vocabulary=words)


def _with_text(config: ConfigDict, **fields: Any) -> ConfigDict:
    filled = config.copy_and_resolve_references()
    with filled.unlocked():
        filled.text.update(fields)
    return filled.lock() if config.is_locked else filled


def make_dataset(
    config: ConfigDict,
    split: str | None = None,
    *,
    text_encoder: TextEncoder | None,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    train: bool = True,
    report: Callable[[str], Any] | None = print,
    reading: Reading | None = None,
) -> "ClipDataset":
    """The batches of `config.data`; `split` overrides `data.split`. See `ClipDataset`.

    reading: what is read of each clip, the stage's `reading`; None = all of it.
    batch_size: of the global batch, all processes together; rows: those of it that this process
    reads, all by default. report: is given the source's summary once, so that what was skipped is
    seen. The captions' embeddings are read where `text_encoder` is a frozen one: see
    `text_embeddings.py`. Raises DataError.
    """
    augment = augmentations(config.data)
    source = make_source(config.data, split, train)
    if report is not None:
        report(f"data: {source.summary()}")
        if isinstance(text_encoder, WordEncoder) and (
            lost := text_encoder.losses(source.captions())
        ):
            report(f"captions: {lost}")
    wanted = config.model.get("num_labels", 0) if "model" in config else 0
    if wanted and source.num_labels != wanted:
        raise DataError(
            f"model.num_labels = {wanted}: {config.data.name} has {source.num_labels} labels"
        )
    if text_encoder is not None and text_encoder.embedding_width:
        text, captions = config.text, source.captions()
        text_encoder = text_embeddings.stored(
            config.data.data_dir, text.encoder, text_encoder, text.get("identity", ""), captions
        )
    return ClipDataset(
        source,
        text_encoder=text_encoder,
        batch_size=batch_size,
        seed=seed,
        image_frames=config.data.image_frames,
        workers=config.data.workers,
        rows=rows,
        train=train,
        augment=augment if train else (),
        reading=reading,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Example:
    """Makes one example from a clip's number. Runs in the worker processes."""

    source: ClipSource
    text_encoder: TextEncoder | None
    image_frames: int
    augment: tuple[str, ...]
    reading: Reading | None

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        mirror, reverse = (name in self.augment and bool(rng.integers(2)) for name in _TURNS)
        part, values = None, {}
        if self.reading is not None and not self.reading.whole:
            part, values = self.reading.draw(rng)
        clip = self._read(int(index), part, rng, mirror, reverse)
        example = {"video": clip["video"], **self._tokens([clip["caption"]], "", squeeze=True)}
        example |= self._null_text | values | {name: clip[name] for name in self.source.extras}
        if "label" in clip:
            example["label"] = np.int32(clip["label"])
        if self.image_frames:
            # Of other clips, so that images widen the batch instead of repeating it.
            others = rng.integers(1, max(len(self.source), 2), self.image_frames) + index
            images = [self.source.read_frame(int(i % len(self.source)), rng) for i in others]
            turned = [self._mirrored(image, rng) for image in images]
            for name in ("image", *self.source.extras):
                pixels = [image[name][None] for image in turned]
                boxes = pixels if part is None else [part.box(image) for image in pixels]
                example["images" if name == "image" else f"image_{name}"] = np.concatenate(boxes)
            example |= self._tokens([image["caption"] for image in images], "image_")
        return example

    def _read(
        self, index: int, part: Part | None, rng: np.random.Generator, mirror: bool, reverse: bool
    ) -> dict[str, Any]:
        """The clip with its turns; `part` is of the clip as it is turned."""
        if part is None:
            clip = self.source.read(index, rng)
        else:
            length, _, width, _ = self.source.video_shape
            part = part.mirrored(width) if mirror else part
            part = part.reversed(length) if reverse else part
            clip = self.source.read_part(index, part, rng)
        turned = (
            slice(None, None, -1 if reverse else 1),
            slice(None),
            slice(None, None, -1 if mirror else 1),
        )
        # Its own memory: a view keeps the frames that it was cut out of.
        names = ("video", *self.source.extras)
        return clip | {name: np.ascontiguousarray(clip[name][turned]) for name in names}

    def _mirrored(self, image: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """An image of `read_frame`, every other time mirrored where that is asked for."""
        if not ("mirror" in self.augment and rng.integers(2)):
            return image
        return {name: image[name][:, ::-1] for name in ("image", *self.source.extras)}

    def _tokens(self, captions: list[str], prefix: str, squeeze: bool = False) -> Batch:
        if self.text_encoder is None:
            return {}
        encoded = self.text_encoder.encode(captions)
        return {prefix + name: ids[0] if squeeze else ids for name, ids in encoded.items()}

    @property
    def _null_text(self) -> Batch:
        """The text that stands for no text, where there is one."""
        encoder = self.text_encoder
        if encoder is None or encoder.null_text is None:
            return {}
        return self._tokens([encoder.null_text], NULL, squeeze=True)


class _Rows(grain.MapDataset):
    """Some rows of every batch of `batch_size`, in order."""

    def __init__(self, parent: grain.MapDataset, rows: Sequence[int], batch_size: int):
        super().__init__(parent)
        self._rows, self._batch_size = rows, batch_size

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[place]]


class ClipDataset:
    """Batches of clips, endless and shuffled anew each epoch (train), or once in order.

    A batch has `video` uint8 [b, f, h, w, 3]; with a text encoder `tokens` int32 [b, L], or of a
    frozen one `text_embeddings` float16 [b, L, d], and `token_mask` bool [b, L], and both with the
    prefix null_ of the text that stands for no text, if it has one; of a source with
    labels `label` int32 [b]; the source's `extras` by name, uint8 [b, f, h, w, c], cut and turned
    as `video` is; with image_frames = k `images` uint8 [b, k, h, w, 3] of random other
    clips with `image_tokens` or `image_text_embeddings` and `image_token_mask` [b, k, ...], and
    their `extras` with the prefix image_. b is batch_size, or the number of `rows` of each batch
    asked for.

    reading: which part of each clip is read. `video` and `images` then are of its window, and the
    batch has its `entries`: `crop_place` int32 [b, 3] of crops, `fps` float32 [b] of several
    strides. The part is drawn with the example's other draws. Images are cut where their clip is.

    augment: of "mirror" and "reverse", half of the clips each are (images are mirrored too).

    Training batches run across the ends of epochs, so every clip is seen equally often; in order,
    the remainder that does not fill a batch is dropped.
    """

    def __init__(
        self,
        source: ClipSource,
        *,
        text_encoder: TextEncoder | None,
        batch_size: int,
        seed: int = 0,
        image_frames: int = 0,
        workers: int = 0,
        rows: Sequence[int] | None = None,
        train: bool = True,
        augment: Sequence[str] = (),
        reading: Reading | None = None,
    ):
        if batch_size < 1:
            raise DataError(f"train.batch_size = {batch_size}: must be positive")
        rows = tuple(range(batch_size)) if rows is None else tuple(rows)
        if not rows or not set(rows) <= set(range(batch_size)):
            raise DataError(f"rows = {rows}: must be rows of a batch of {batch_size}")
        if len(source) < batch_size and not train:
            raise DataError(
                f"train.batch_size = {batch_size}: the data has only {len(source)} clips"
            )
        if reading is not None and reading.data_shape != source.video_shape[:3]:
            raise DataError(
                f"clips of {source.video_shape[:3]} (frames, height, width): the stage reads "
                f"{reading.data_shape}; set data.num_frames, data.image_size and data.image_width"
            )
        self.source = source
        self.workers = workers
        self.augment = tuple(augment)
        examples = grain.MapDataset.range(len(source)).seed(seed)
        if train:
            examples = examples.shuffle().repeat()
        else:
            examples = examples[: len(source) - len(source) % batch_size]
        # Randomness before choosing rows: an example's draws do not depend on who reads it.
        examples = examples.random_map(
            _Example(
                source=source,
                text_encoder=text_encoder,
                image_frames=image_frames,
                augment=self.augment,
                reading=reading,
            )
        )
        mine = _Rows(examples, rows, batch_size)
        self._batches = mine.batch(len(rows), drop_remainder=True)

    def __iter__(self) -> "ClipIterator":
        return ClipIterator(self)

    def starting_at(self, batch: int) -> grain.IterDataset:
        """The stream from batch number `batch` on, as a grain data set."""
        if self.workers and not absl.flags.FLAGS.is_parsed():
            # Worker processes are given this process's flags, and most programs here have none.
            absl.flags.FLAGS([sys.argv[0]])
        batches = self._batches[batch:].to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        )
        if self.workers:
            # Workers take batches in turn: their order is that of a single process.
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=2)
            )
        return batches


class ClipIterator(Iterator[Batch]):
    """Iterates over a `ClipDataset`, with its position to be saved and restored.

    A position may be restored with another number of workers, and on every process of another
    number of processes.
    """

    def __init__(self, dataset: ClipDataset):
        self._dataset = dataset
        self._given = 0
        self._streams: list[Any] = []  # none or one
        # Python takes its modules apart before it deletes an iterator that nobody closed. The
        # workers' batches could then not be given back: "leaked shared_memory objects".
        weakref.finalize(self, _close, self._streams)

    def __next__(self) -> Batch:
        self.start_prefetch()
        batch = next(self._streams[0])
        self._given += 1
        if not self._dataset.workers:
            return batch
        # Workers hand arrays over in shared memory, which lives as long as the array: a batch that
        # is kept to the end of the program would leak it.
        return {name: np.array(value, subok=False) for name, value in batch.items()}

    def get_state(self) -> dict[str, int]:
        """The position: how many batches were given."""
        return {"batches_given": self._given}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position of `get_state`; the next batch is the one that would have come."""
        self.close()
        self._given = int(state["batches_given"])

    def start_prefetch(self) -> None:
        """Starts reading ahead, if it is not going on already."""
        if not self._streams:
            self._streams.append(iter(self._dataset.starting_at(self._given)))

    def close(self) -> None:
        """Stops reading ahead and ends the worker processes; the position stays."""
        _close(self._streams)


def _close(streams: list[Any]) -> None:
    while streams:
        stream = streams.pop()
        if hasattr(stream, "close"):
            stream.close()
