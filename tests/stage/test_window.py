"""Windows of clips: what a stage learns from them is what it learns from whole clips."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_stage import Network
from vdm_jax.diffusion.process import Process
from vdm_jax.stage.conditions.video import LowResVideo, MaskedVideo
from vdm_jax.stage.refinement import Plain, Refinement
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.stage.window import Part, Reading

KEY = jax.random.key(0)


def make_stage(shape, low, fill="repeat", crop=(), data=None, refinement=None, **view):
    """A stage that refines a video; refinement: fields of `Refinement`."""
    shape, low, process = (*shape, 3), (*low, 3), Process()
    shapes = {"shape": shape, "low_res_shape": low, "fill": fill}
    if refinement is not None:
        refinement = Refinement(**shapes, deviation=0.1, **refinement)
    return Stage(
        network=Network(),
        process=process,
        space=PixelSpace(data_shape=shape),
        view=View(shape=shape, data_shape=(*(data or shape[:3]), 3), crop=crop, **view),
        conditions=(LowResVideo(**shapes, schedule=process.schedule, refinement=refinement),),
        parametrisation=refinement or Plain(),
    )


class Chosen(np.random.Generator):
    """A generator that gives these numbers in turn."""

    def __init__(self, *numbers):
        super().__init__(np.random.PCG64(0))
        self._numbers = list(numbers)

    def integers(self, high):
        number = self._numbers.pop(0)
        assert 0 <= number < high
        return number

    def choice(self, options):
        return options[self.integers(len(options))]


ACCELERATION, CONTRAST = {"acceleration": 0.5}, {"contrast": 0.5}
CASES = {
    "pixels": ((2, 16, 16), (2, 8, 8), "repeat", (2, 3, 6), None, None),
    "four times the pixels": ((1, 16, 24), (1, 4, 6), "repeat", (1, 5, 7), None, None),
    "three times": ((1, 18, 15), (1, 6, 5), "repeat", (1, 4, 5), None, CONTRAST),
    "contrast": ((1, 32, 32), (1, 8, 8), "repeat", (1, 7, 8), None, CONTRAST),
    "repeated frames": ((12, 4, 6), (4, 4, 6), "repeat", (5, 2, 2), None, None),
    "blank frames": ((12, 4, 4), (4, 4, 4), "blank", (4, 4, 4), None, {}),
    "blended frames": ((12, 4, 4), (4, 4, 4), "blend", (2, 4, 4), None, {}),
    "acceleration": ((14, 9, 10), (7, 9, 10), "blend", (3, 2, 2), None, ACCELERATION),
    "one interval": ((18, 2, 2), (6, 2, 2), "blend", (1, 2, 2), None, ACCELERATION),
    "all": ((12, 12, 14), (6, 6, 7), "blend", (3, 4, 5), None, ACCELERATION | CONTRAST),
    "finer data": ((6, 4, 12), (3, 2, 6), "blend", (3, 4, 4), (12, 8, 36), ACCELERATION),
}


@pytest.mark.parametrize("name", CASES)
def test_a_window_gives_what_the_whole_clip_gives(name, monkeypatch):
    """z and every condition, at crops from one border to the other along every axis."""
    *shapes, crop, data, refinement = CASES[name]
    images = 0 if name == "pixels" else 2
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, *_: jnp.zeros(shape))
    whole, stage = (make_stage(*shapes, c, data, refinement) for c in ((), crop))
    axes = zip(stage.view.shape[:3], crop, strict=True)
    starts = [sorted({0, 1, 2, n // 2 + 1, n - 1, n} & set(range(n + 1))) for n in _rest(axes)]
    places = list(itertools.product(*starts))
    parts, values = zip(*(stage.reading.draw(Chosen(*place)) for place in places), strict=True)
    rng = np.random.default_rng(0)
    clip = rng.integers(256, size=stage.view.data_shape, dtype=np.uint8)
    still = rng.integers(256, size=(images, *clip.shape[1:]), dtype=np.uint8)
    batch = {name: np.stack([v[name] for v in values]) for name in values[0]}
    batch["video"] = np.stack([part.of(clip) for part in parts])
    every = clip.shape[0] // stage.view.shape[0]
    full = {"video": np.broadcast_to(clip[::every], (len(places), *clip[::every].shape))}
    if images:
        batch["images"] = np.stack([part.box(still) for part in parts])
        full["images"] = np.broadcast_to(still, (len(places), *still.shape))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stage.abstract_batch(len(places), images).items()
    }
    (x, cond, _), (x2, cond2, _) = (
        jax.device_get(jax.jit(stage.example)(of, KEY))
        for stage, of in ((stage, batch), (whole, full))
    )
    cut = {"x": x2, **cond2}
    for row, (start, top, left) in enumerate(places):
        for name, found in {"x": x, **cond}.items():
            expected = cut[name][row]
            if expected.ndim:
                frames, rows, columns = crop
                kept = (
                    *range(start, start + frames),
                    *range(len(expected) - images, len(expected)),
                )
                expected = expected[np.array(kept), top : top + rows, left : left + columns]
            np.testing.assert_allclose(
                found[row], expected, atol=2e-6, err_msg=f"{name} at {places[row]}"
            )


def _rest(axes):
    return [whole - part for whole, part in axes]


def test_a_window_is_hardly_larger_than_its_crop():
    # Imagen Video's last stage and Lumiere's super-resolution: one coarse pixel on each side.
    last = make_stage((2, 768, 1280), (2, 192, 320), crop=(256, 256)).reading
    assert last.window == last.video_shape == (2, 264, 264)
    lumiere = make_stage((32, 1024, 1024), (32, 128, 128), crop=(16, 256, 256)).reading
    assert lumiere.window == (16, 272, 272)
    # Nothing around a crop that nothing is refined from.
    plain = View(shape=(8, 16, 16, 3), crop=(3, 4, 5)).reading()
    assert plain.window == (3, 4, 5) and not plain.whole
    assert View(shape=(8, 16, 16, 3)).reading().whole


def test_frames_are_chosen_before_they_are_read():
    reading = View(
        shape=(3, 4, 4, 3), data_shape=(12, 8, 8, 3), data_fps=24.0, frame_strides=(1, 4)
    ).reading()
    rng = np.random.default_rng(0)
    drawn = [reading.draw(rng) for _ in range(200)]
    assert reading.entries == {"fps": ((), np.float32)}
    seen = {(part.frames, float(values["fps"])) for part, values in drawn}
    one, four = ({f[0] for f, rate in seen if rate == fps} for fps in (24.0, 6.0))
    assert one == set(range(10)) and four == {0, 1, 2, 3}
    assert {part.frames[1] - part.frames[0] for part, _ in drawn} == {1, 4}
    assert all(part.rows == part.columns == (0, 8) for part, _ in drawn)
    spanning = View(shape=(3, 4, 4, 3), data_shape=(9, 4, 4, 3)).reading()
    assert spanning.draw(rng)[0].frames == (0, 3, 6) and not spanning.entries
    image = View(shape=(1, 4, 4, 3), data_shape=(80, 4, 4, 3), frame_strides=(1,)).reading()
    assert image.video_shape == (1, 4, 4)
    frames = {image.draw(rng)[0].frames for _ in range(1000)}
    assert frames == {(frame,) for frame in range(80)}


def test_crops_are_drawn_evenly_and_by_the_generator_alone():
    reading = View(shape=(2, 4, 4, 3), crop=(1, 3, 3)).reading()
    one, other = (np.random.default_rng(3) for _ in range(2))
    drawn = [reading.draw(one) for _ in range(400)]
    assert [part for part, _ in drawn] == [reading.draw(other)[0] for _ in range(400)]
    places = [(part.frames[0], part.rows[0], part.columns[0]) for part, _ in drawn]
    counts = {place: places.count(place) for place in places}
    assert len(counts) == 8 and min(counts.values()) > 25


def test_parts_of_turned_clips():
    clip = np.random.default_rng(0).integers(256, size=(7, 5, 6, 3), dtype=np.uint8)
    part = Part((1, 2, 5), (1, 3), (1, 2))
    mirrored = part.mirrored(6).of(clip)[:, :, ::-1]
    np.testing.assert_array_equal(mirrored, part.of(clip[:, :, ::-1]))
    np.testing.assert_array_equal(part.reversed(7).of(clip)[::-1], part.of(clip[::-1]))


def test_masks_that_are_drawn_over_whole_clips_refuse_a_crop():
    masked = MaskedVideo(shape=(4, 8, 8, 3), kinds=("first_frame",))
    fields = {"network": Network(), "process": Process(), "conditions": (masked,)}
    fields["space"] = PixelSpace(data_shape=(4, 8, 8, 3))
    Stage(view=View(shape=(4, 8, 8, 3)), **fields)
    with pytest.raises(ValueError, match=r"stage.crop = \(4, 4\): the condition masked_video"):
        Stage(view=View(shape=(4, 8, 8, 3), crop=(4, 4)), **fields)


def test_a_batch_that_was_not_read_for_the_stage_is_refused():
    stage = make_stage((2, 16, 16), (2, 8, 8), crop=(4, 4))
    batch = {"video": jnp.zeros((1, *stage.clip_shape), jnp.uint8)}
    with pytest.raises(ValueError, match="batch: lacks crop_place"):
        stage.example(batch, KEY)
    with pytest.raises(ValueError, match=r"wants \(2, 8, 8, 3\).*the stage's `reading`"):
        stage.example({"video": jnp.zeros((1, 2, 16, 16, 3), jnp.uint8)}, KEY)


def test_workers_need_no_jax():
    code = "import sys, vdm_jax.stage.window; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_reading_survives_being_sent_to_workers():
    import copy

    reading = make_stage((4, 16, 16), (4, 8, 8), crop=(4, 4)).reading
    assert copy.deepcopy(reading) == reading and isinstance(reading, Reading)


def test_a_part_of_a_clip_backwards_and_mirrored():
    clip = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), np.uint8)
    part = Part((0, 2, 3), (1, 4), (2, 3))
    cut = part.of(clip)
    np.testing.assert_array_equal(cut, clip[[0, 2, 3], 1:5, 2:5])
    assert part.reversed(6).frames == (2, 3, 5)  # and none counted from the end
    np.testing.assert_array_equal(part.reversed(6).of(clip[::-1]), cut[::-1])
    np.testing.assert_array_equal(part.mirrored(10).of(clip[:, :, ::-1]), cut[:, :, ::-1])


def test_a_part_is_frames_in_a_row_and_a_box_as_large_as_fits():
    view = View(shape=(3, 4, 6, 3), data_shape=(8, 16, 16, 3), part=True)
    reading = view.reading()
    assert reading.scale == (2, 2) and reading.video_shape == (3, 8, 12)
    assert not reading.whole and not reading.crops and not reading.entries
    rng, seen = np.random.default_rng(0), set()
    clip = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    for _ in range(200):
        part, values = reading.draw(rng)
        assert not values and part.of(clip).shape == (3, 8, 12, 3)
        assert np.diff(part.frames).tolist() == [1, 1]
        seen.add((part.frames[0], part.rows[0], part.columns[0]))
    # Every first frame, row and column that leaves room, and no other.
    assert [{place[axis] for place in seen} for axis in range(3)] == [
        set(range(6)),
        set(range(9)),
        set(range(5)),
    ]
    read = jnp.asarray(part.of(clip)[None], jnp.float32)
    means = np.asarray(read).reshape(1, 3, 4, 2, 6, 2, 3).mean((3, 5))
    np.testing.assert_allclose(view.frames(read), means, rtol=1e-5)
    for fields, message in (
        ({"shape": (9, 4, 4, 3)}, r"parts of \(9, 4, 4\).*the data's clips are \(8, 16, 16\)"),
        ({"crop": (2, 2)}, "part: goes with no frame_strides and no crop"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(view, **fields)
