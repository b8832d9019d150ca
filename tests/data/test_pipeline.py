"""Batches against the source: every clip once an epoch, and positions exact to the example."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.data import pipeline, video_io
from vdm_jax.data.pipeline import ClipDataset
from vdm_jax.data.source import ClipSource, DataError
from vdm_jax.models.text.words import WordEncoder
from vdm_jax.stage.window import Reach, Reading
from vdm_jax.systems import vdm

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


# Reads with workers, keeps the batches, and ends in one of three ways.
TRAINING = """
import sys
from tests.data.test_pipeline import Large
from vdm_jax.data.pipeline import ClipDataset

if __name__ == "__main__":
    iterator = iter(ClipDataset(Large(), text_encoder=None, batch_size=4, workers=1))
    kept = [next(iterator) for _ in range(3)]
    print("read", flush=True)
    if sys.argv[1] == "closed":
        iterator.close()
    if sys.argv[1] == "raised":
        raise RuntimeError
"""


class Large(ClipSource):
    """Clips that workers hand over in shared memory."""

    video_shape = (8, 64, 64, 3)

    def __len__(self):
        return 11

    def read(self, index, rng=None):
        return {"video": np.full(self.video_shape, index, np.uint8), "caption": ""}

    def captions(self):
        return [""]


class Numbered(ClipSource):
    """Clip i is filled with i, and its caption says i; a frame too is told by its fill."""

    video_shape = (3, 4, 4, 3)
    num_labels = 11

    def __init__(self, count=11):
        self._count = count

    def __len__(self):
        return self._count

    def read(self, index, rng=None):
        video = np.full(self.video_shape, index, np.uint8)
        if rng is not None:  # stands for a random crop: draws must be resumed too
            video[0, 0, 0, 0] = rng.integers(256)
        return {"video": video, "caption": NUMBERS[index], "label": index}

    def captions(self):
        return NUMBERS[: self._count]


ENCODER = WordEncoder(NUMBERS, max_length=2, vocabulary_size=11)


def dataset(batch_size=4, **kwargs):
    kwargs = {"text_encoder": ENCODER, "seed": 5, **kwargs}
    return ClipDataset(Numbered(), batch_size=batch_size, **kwargs)


def take(dataset, batches):
    iterator = iter(dataset)
    try:
        return [next(iterator) for _ in range(batches)]
    finally:
        iterator.close()


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype, name
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_batch_has_what_is_documented():
    (batch,) = take(dataset(image_frames=2), 1)
    shapes = {name: (value.shape, str(value.dtype)) for name, value in batch.items()}
    assert shapes == {
        "video": ((4, 3, 4, 4, 3), "uint8"),
        "tokens": ((4, 2), "int32"),
        "token_mask": ((4, 2), "bool"),
        "label": ((4,), "int32"),
        "images": ((4, 2, 4, 4, 3), "uint8"),
        "image_tokens": ((4, 2, 2), "int32"),
        "image_token_mask": ((4, 2, 2), "bool"),
    }
    numbers = batch["video"][:, -1, -1, -1, -1]
    np.testing.assert_array_equal(batch["label"], numbers)
    np.testing.assert_array_equal(batch["tokens"][:, 0], numbers + 2)  # after <pad> and <unk>
    images = batch["images"][:, :, -1, -1, -1]
    np.testing.assert_array_equal(batch["image_tokens"][:, :, 0], images + 2)


def test_without_text_there_are_no_tokens():
    (batch,) = take(dataset(text_encoder=None), 1)
    assert batch.keys() == {"video", "label"}


def test_images_are_of_other_clips():
    for batch in take(dataset(image_frames=8), 10):
        clips = batch["video"][:, -1, -1, -1, -1]
        assert (batch["images"][:, :, -1, -1, -1] != clips[:, None]).all()


def test_every_epoch_has_every_clip_once_in_another_order():
    labels = np.concatenate([batch["label"] for batch in take(dataset(), 11)]).reshape(4, 11)
    for epoch in labels:
        assert sorted(epoch) == list(range(11))
    assert len({tuple(epoch) for epoch in labels}) == 4
    other = np.concatenate([batch["label"] for batch in take(dataset(seed=6), 11)])
    assert (labels.ravel() != other).any()


def test_in_order_the_remainder_is_dropped():
    batches = list(dataset(train=False))
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_processes_share_the_global_batch():
    whole = take(dataset(), 4)
    # Whatever rows a process asks for, also such as other processes have, or not neighbours.
    for rows in ([0, 1], [2, 3], [1, 3], [0, 1, 2, 3]):
        part = take(dataset(rows=rows), 4)
        # Bit for bit, random draws too.
        assert_same([{n: v[rows] for n, v in batch.items()} for batch in whole], part)


@pytest.mark.parametrize("position", [0, 1, 5])
def test_a_restored_iterator_goes_on_exactly(position):
    iterator = iter(dataset(image_frames=1))
    for _ in range(position):
        next(iterator)
    saved = json.dumps(iterator.get_state())
    expected = [next(iterator) for _ in range(4)]

    restored = iter(dataset(image_frames=1))
    next(restored)
    restored.set_state(json.loads(saved))
    assert_same(expected, [next(restored) for _ in range(4)])
    for it in (iterator, restored):
        it.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    """The stream is that of no worker at all, and so is a position taken with workers."""
    expected = take(dataset(), 8)
    several = iter(dataset(workers=workers))
    assert_same(expected[:3], [next(several) for _ in range(3)])
    plain = iter(dataset())
    plain.set_state(several.get_state())
    several.set_state(iter(dataset()).get_state())
    assert_same(expected[:2], [next(several) for _ in range(2)])
    assert_same(expected[3:], [next(plain) for _ in range(5)])
    several.close()
    plain.close()


class Noise(Numbered):
    """Clips of random pixels; `drawn` notes which parts were read."""

    video_shape = (8, 12, 24, 3)

    def read(self, index, rng=None):
        video = np.random.default_rng(index).integers(256, size=self.video_shape, dtype=np.uint8)
        return {"video": video, "caption": NUMBERS[index], "label": index}

    def read_frame(self, index, rng):
        return {"image": self.read(index)["video"][0], "caption": NUMBERS[index]}


# Four of eight frames, a coarse pixel of 2 x 2, and crops of 2 frames of 3 x 4.
READING = Reading(
    data_shape=(8, 12, 24),
    shape=(4, 6, 12),
    strides=(1, 2),
    data_fps=24.0,
    crop=(2, 3, 4),
    reach=(Reach(), Reach(2, 1, 1), Reach(2, 1, 1)),
)


def read(batch_size=4, **kwargs):
    kwargs = {"text_encoder": ENCODER, "seed": 5, "reading": READING, **kwargs}
    return ClipDataset(Noise(), batch_size=batch_size, **kwargs)


def test_a_batch_has_the_parts_that_the_stage_reads():
    batches = take(read(image_frames=1), 8)
    strides = set()
    for batch in batches:
        assert batch["video"].shape == (4, 2, 12, 16, 3)
        assert batch["images"].shape == (4, 1, 12, 16, 3)
        assert (batch["crop_place"].dtype, batch["fps"].dtype) == (np.int32, np.float32)
        for row in range(4):
            clip = Noise().read(int(batch["label"][row]))["video"]
            stride = round(24 / batch["fps"][row])
            strides.add(stride)
            fits = [
                (start, left)
                for start in range(8 - stride)
                for left in (0, 4, 8)
                if (clip[start : start + stride + 1 : stride, :, left : left + 16]
                    == batch["video"][row]).all()
            ]  # fmt: skip
            assert len(fits) == 1
            frame, top, left = batch["crop_place"][row]
            assert frame == 0 and top + 3 <= 6 and left + 4 <= 8
            others = [Noise().read(i)["video"][0, :, fits[0][1] :][:, :16] for i in range(11)]
            assert any((image == batch["images"][row, 0]).all() for image in others)
    assert strides == {1, 2}


def test_parts_depend_on_neither_workers_nor_processes_nor_interruptions():
    whole = take(read(image_frames=1), 6)
    assert_same(whole, take(read(image_frames=1, workers=2), 6))
    mine = take(read(image_frames=1, rows=[1, 3]), 6)
    assert_same([{n: v[[1, 3]] for n, v in batch.items()} for batch in whole], mine)
    resumed = iter(read(image_frames=1))
    resumed.set_state({"batches_given": 4})
    assert_same(whole[4:], [next(resumed) for _ in range(2)])
    resumed.close()


def test_parts_of_turned_clips_are_parts_of_the_clips():
    """Mirrored and backwards, a part is still what the turned clip has there."""
    whole = Reading(data_shape=(8, 12, 24), shape=(8, 12, 24), crop=(2, 3, 4))
    fits = dict.fromkeys(((1, 1), (1, -1), (-1, 1), (-1, -1)), 0)
    for batch in take(read(reading=whole, augment=("mirror", "reverse")), 10):
        for label, part in zip(batch["label"], batch["video"], strict=True):
            clip = Noise().read(int(label))["video"]
            for time, across in fits:
                windows = np.lib.stride_tricks.sliding_window_view(
                    clip[::time, :, ::across], part.shape[:3], axis=(0, 1, 2)
                )
                there = (windows == np.moveaxis(part, 3, 0)).all((3, 4, 5, 6)).any()
                fits[time, across] += int(there)
    assert sum(fits.values()) == 40 and min(fits.values()) >= 4


def test_clips_of_another_shape_than_the_stage_reads_are_refused():
    with pytest.raises(DataError, match=r"clips of \(3, 4, 4\).*stage reads \(8, 12, 24\)"):
        dataset(reading=READING)


class Marked(Numbered):
    """Every clip's pixel (frame f, row, column x) is 10 f + x."""

    def read(self, index, rng=None):
        video = (10 * np.arange(3)[:, None] + np.arange(4))[:, None, :, None]
        video = np.broadcast_to(video, self.video_shape).astype(np.uint8)
        return {"video": video, "caption": NUMBERS[index], "label": index}


def test_clips_and_images_are_mirrored_and_clips_reversed_half_of_the_time():
    marked = {"text_encoder": None, "batch_size": 8, "image_frames": 2}
    clip = Marked().read(0)["video"]
    forms = [clip, clip[:, :, ::-1], clip[::-1], clip[::-1, :, ::-1]]

    def counts(augment):
        batches = take(ClipDataset(Marked(), augment=augment, **marked), 20)
        clips = np.concatenate([batch["video"] for batch in batches])
        images = np.concatenate([batch["images"] for batch in batches])
        mirrored = images[..., 0, 0, 0] > images[..., 0, 3, 0]
        return [int((clips == form).all((1, 2, 3, 4)).sum()) for form in forms], mirrored.mean()

    assert counts(()) == ([160, 0, 0, 0], 0.0)
    (plain, mirrored, *reverse), images = counts(("mirror",))
    assert reverse == [0, 0] and plain + mirrored == 160 and 50 < plain < 110
    assert 0.35 < images < 0.65
    both, _ = counts(("mirror", "reverse"))
    assert sum(both) == 160 and min(both) > 20


def test_only_training_clips_are_augmented(tmp_path):
    video_io.write_mp4(tmp_path / "clip.mp4", np.zeros((9, 16, 16, 3), np.uint8), fps=8)
    config = vdm.default_config()
    config.data.update(name="video_folder", data_dir=str(tmp_path), num_frames=3, image_size=16)
    config.data.update(augment=("start", "mirror"), workers=0)

    def made(train):
        options = {"text_encoder": None, "batch_size": 2, "seed": 0, "report": None}
        example = pipeline.make_dataset(config, train=train, **options)
        return example.augment, example.source.random_start

    assert made(True) == (("start", "mirror"), True)
    assert made(False) == ((), False)
    config.data.augment = ("start", "flip")
    for train in (True, False):
        with pytest.raises(DataError, match="data.augment = .*'flip' unknown; allowed are start"):
            made(train)


@pytest.mark.parametrize("left", ["open", "closed", "raised"])
def test_shared_memory_is_given_back(left, tmp_path):
    """Python warned of leaked objects where an iterator was not closed, or a batch was kept."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    command = [sys.executable, str(script), left]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "read\n", done.stderr
    assert "leaked" not in done.stderr and "Exception ignored" not in done.stderr
    assert (done.stderr == "") == (left != "raised")


def test_bad_numbers_are_named():
    with pytest.raises(DataError, match=r"rows = \(3, 4\): must be rows of a batch of 4"):
        dataset(rows=[3, 4])
    with pytest.raises(DataError, match="only 11 clips"):
        dataset(batch_size=12, train=False)
