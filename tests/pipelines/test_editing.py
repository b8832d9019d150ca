"""Editing: which frames are known of which clip and where what is made goes, and real sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import conditional, measurements, samplers
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.pipelines import editing
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.space import to_uint8

CLIP, SIZE = 5, 4
KEY = jax.random.key(0)


@dataclasses.dataclass
class Refining:
    """In the place of a Stage: has a low-resolution video, or not."""

    condition: LowResVideo | None

    def find(self, kind):
        return self.condition if kind is LowResVideo else None

    def coarse(self, clips):
        return clips[:, :, ::2, ::2]


class Recorder:
    """In the place of a Sampler: frame j of what it makes in call i is all 100 + 10 i + j."""

    video_shape = (CLIP, SIZE, SIZE, 3)
    batch_size = 4
    method = conditional.ByReconstruction()
    rule = samplers.DDIM()

    def __init__(self, refines=None):
        """refines: (f, h, w, c) that the stage refines, None = it is no super-resolution stage."""
        self.calls, self.inputs, self.firsts = [], [], []
        condition = None
        if refines is not None:
            self.video_shape = (refines[0] * (2 if refines[1] == SIZE else 1), SIZE, SIZE, 3)
            condition = LowResVideo(
                shape=self.video_shape, low_res_shape=refines, schedule=CosineSchedule()
            )
        self.stage = Refining(condition)

    def stream(self, params, key, prompts, *, known, start, inputs=None, first=0):
        assert start is None
        self.inputs.append((inputs or {}).get("low_res"))
        self.firsts.append(first)
        if known is None:
            known = sampling.Known(
                measurement=measurements.Mask(known=np.zeros((len(prompts), 1, 1, 1, 1), bool)),
                y=np.zeros((len(prompts), *self.video_shape), np.float32),
            )
        shape = (len(prompts), *self.video_shape)
        values = 100 + 10 * len(self.calls) + np.arange(self.video_shape[0], dtype=np.uint8)
        self.calls.append((list(prompts), known))
        yield np.broadcast_to(values.reshape(1, -1, 1, 1, 1), shape).astype(np.uint8)

    def given(self, call):
        """Of a clip: the values of its known frames, None where a frame is not known."""
        known = self.calls[call][1]
        rows = np.broadcast_to(known.measurement.known, known.y.shape)
        levels = np.rint((np.asarray(known.y) + 1) * 127.5).astype(int)
        return [
            [
                int(frame[0, 0, 0]) if there.all() else None
                for frame, there in zip(video, row, strict=True)
            ]
            for video, row in zip(levels, rows, strict=True)
        ]


def numbered(frames, count=1):
    """Videos whose frame j is all 1 + j, of video i 50 more."""
    values = 1 + np.arange(frames)[None] + 50 * np.arange(count)[:, None]
    return np.broadcast_to(values[:, :, None, None, None], (count, frames, SIZE, SIZE, 3)).astype(
        np.uint8
    )


def values(videos):
    assert videos.dtype == np.uint8 and (videos == videos[:, :, :1, :1, :1]).all()
    return videos[:, :, 0, 0, 0].tolist()


def test_extension_begins_each_clip_with_the_last_frames():
    sampler, done = Recorder(), []
    made = editing.extend(
        sampler,
        None,
        KEY,
        numbered(3),
        [["a", "b"]],
        frames=12,
        context=2,
        progress=lambda *of: done.append(of),
    )
    assert values(made) == [[1, 2, 3, 102, 103, 104, 112, 113, 114, 122, 123, 124]]
    assert sampler.given(0) == [[2, 3, None, None, None]]
    assert sampler.given(1) == [[103, 104, None, None, None]]
    assert [prompts for prompts, _ in sampler.calls] == [["a"], ["b"], ["a"]]
    assert done == [(1, 3), (2, 3), (3, 3)]
    # What is beyond the frames that were asked for is cut.
    shorter = editing.extend(Recorder(), None, KEY, numbered(3), ["a"], frames=11, context=2)
    assert values(shorter) == [values(made)[0][:11]]


@pytest.mark.parametrize(
    ("frames", "factor", "given", "made"),
    [
        # Three frames a clip; two clips that meet in a frame.
        (5, 2, [[1, None, 2, None, 3], [3, None, 4, None, 5]], [1, 101, 2, 103, 3, 101, 4, 103, 5]),
        # The last clip begins earlier, and what it shares is taken from the first.
        (4, 2, [[1, None, 2, None, 3], [2, None, 3, None, 4]], [1, 101, 2, 103, 3, 103, 4]),
        # One gap fills a clip as good as; what the clip holds beyond it is dropped.
        (3, 3, [[1, None, None, 2, None], [2, None, None, 3, None]], [1, 101, 102, 2, 101, 102, 3]),
        (2, 2, [[1, None, 2, None, None]], [1, 101, 2]),
    ],
)
def test_interpolation_fills_between_the_frames(frames, factor, given, made):
    sampler = Recorder()
    out = editing.interpolate(sampler, None, KEY, numbered(frames), ["a"], factor=factor)
    assert sampler.given(0) == given
    assert len(sampler.calls) == 1  # all clips at once
    assert values(out) == [made]


def test_clips_of_several_videos_are_told_apart():
    sampler = Recorder()
    out = editing.interpolate(sampler, None, KEY, numbered(5, 2), ["a", "b"], factor=2)
    assert sampler.calls[0][0] == ["a", "b", "a", "b"]
    assert [row[0] for row in sampler.given(0)] == [1, 51, 3, 53]
    assert [row[::2] for row in values(out)] == [[1, 2, 3, 4, 5], [51, 52, 53, 54, 55]]


def test_extension_backwards_ends_each_clip_with_the_first_frames():
    sampler = Recorder()
    made = editing.extend(
        sampler, None, KEY, numbered(3), ["a"], frames=8, context=2, backwards=True
    )
    assert sampler.given(0) == [[None, None, None, 1, 2]]
    assert sampler.given(1) == [[None, None, None, 100, 101]]
    # What is beyond the frames that were asked for is cut at the beginning.
    assert values(made) == [[111, 112, 100, 101, 102, 1, 2, 3]]
    with pytest.raises(ValueError, match="low_res: of a video that is extended backwards"):
        editing.extend(
            Recorder(),
            None,
            KEY,
            numbered(3),
            ["a"],
            frames=8,
            context=2,
            backwards=True,
            low_res=np.zeros((1, 8, SIZE // 2, SIZE // 2, 3), np.uint8),
        )


def test_a_way_leads_from_one_video_to_another():
    sampler = Recorder()
    first, second = numbered(4, 2)[:1], numbered(4, 2)[1:]
    out = editing.join(sampler, None, KEY, first, second, ["over"], context=2)
    assert sampler.given(0) == [[3, 4, None, 51, 52]]
    assert values(out) == [[1, 2, 3, 4, 102, 51, 52, 53, 54]]
    with pytest.raises(ValueError, match="context = 2: the video has only 1 frames"):
        editing.join(sampler, None, KEY, first, second[:, :1], ["over"], context=2)


def test_a_loop_returns_to_the_beginning():
    sampler = Recorder()
    out = editing.loop(sampler, None, KEY, numbered(4), ["back"], context=2)
    assert sampler.given(0) == [[3, 4, None, 1, 2]]
    assert values(out) == [[1, 2, 3, 4, 102]]


def test_inpainting_keeps_what_is_known():
    known = np.ones((1, SIZE, SIZE), bool)
    known[0, 1:3, 2:] = False
    sampler, videos = Recorder(), numbered(CLIP, 2)
    out = editing.inpaint(sampler, None, KEY, videos, ["a", "b"], known=known)
    np.testing.assert_array_equal(out[:, :, known[0]], videos[:, :, known[0]])
    assert (out[:, :, ~known[0]] == np.arange(100, 105).reshape(1, CLIP, 1, 1)).all()
    y = sampler.calls[0][1].y
    assert y.dtype == np.float32 and (y[:, :, ~known[0]] == 0).all()


def test_restyling_begins_at_a_noisy_version(stage, params):
    sampler = sampling.Sampler.from_config(stage, {}, steps=8, sampler="ddim", threshold="none")
    videos = np.random.default_rng(0).integers(0, 256, (2, *sampler.video_shape), np.uint8)
    prompts = ["red left", "green right"]
    found = editing.restyle(sampler, params, KEY, videos, prompts, strength=0.25)
    # By hand: the last two of the eight steps, from the videos with that much noise.
    logsnrs = sampler.logsnrs()[-3:]
    rule = sampling.samplers.DDIM(eta=0.0)
    for index, prompt in enumerate(prompts):
        key = jax.random.fold_in(KEY, index)
        start_key, steps_key = jax.random.split(key)
        noise = jax.random.normal(start_key, (1, *sampler.video_shape))
        x = jnp.asarray(videos[index : index + 1], jnp.float32) / 127.5 - 1
        z = stage.process.add_noise(x, noise, logsnrs[:1])
        cond = jax.tree.map(jnp.asarray, stage.encode([prompt]))
        denoiser = stage.denoiser(params)
        by_hand = sampling.samplers.sample(steps_key, denoiser, rule, logsnrs, z, cond)
        expected = np.asarray(to_uint8(by_hand[0]), int)
        assert np.abs(found[index].astype(int) - expected).max() <= 1
    nearly = editing.restyle(sampler, params, KEY, videos, prompts, strength=0.1)
    assert np.abs(nearly.astype(int) - videos).mean() < np.abs(found.astype(int) - videos).mean()
    with pytest.raises(ValueError, match=r"strength = 0: must be above 0"):
        editing.restyle(sampler, params, KEY, videos, prompts, strength=0)


def test_super_resolution_knows_means_of_blocks():
    low = np.random.default_rng(0).integers(0, 256, (2, CLIP, 2, 2, 3), np.uint8)
    sampler = Recorder()
    out = editing.super_resolve(sampler, None, KEY, low, ["a", "b"])
    assert out.shape == (2, CLIP, SIZE, SIZE, 3)
    known = sampler.calls[0][1]
    assert known.measurement == measurements.Downsample(space=2)
    np.testing.assert_allclose(known.y, low / 127.5 - 1, atol=1e-6)


def test_an_extension_follows_a_low_resolution():
    sampler, low = Recorder(), numbered(9)[:, :, ::2, ::2] + np.uint8(150)
    made = editing.extend(sampler, None, KEY, numbered(3), ["a"], frames=9, context=2, low_res=low)
    assert values(made) == [[1, 2, 3, 102, 103, 104, 112, 113, 114]]
    for call, (known, coarse) in enumerate(
        [([2, 3], [154, 155, 156]), ([103, 104], [157, 158, 159])]
    ):
        what = sampler.calls[call][1]
        assert isinstance(what.measurement, measurements.MaskedMeans)
        assert (what.measurement.space, what.measurement.time) == (2, 1)
        levels = np.rint((what.y + 1) * 127.5).astype(int)
        assert (levels == levels[:, :, :1, :1, :1]).all()
        assert levels[0, :, 0, 0, 0].tolist() == known + coarse
    # A stage that refines has the low resolution as its own input.
    sampler = Recorder(refines=(CLIP, 2, 2, 3))
    editing.extend(sampler, None, KEY, numbered(3), ["a"], frames=6, context=2, low_res=low[:, :6])
    assert sampler.given(0) == [[2, 3, None, None, None]]
    assert sampler.inputs[0][0, :, 0, 0, 0].tolist() == [152, 153, 154, 155, 156]
    with pytest.raises(ValueError, match=r"low_res \[1, 9, 2, 2, 3\]: must be 1 videos of all 6"):
        editing.extend(Recorder(), None, KEY, numbered(3), ["a"], frames=6, context=2, low_res=low)


def test_inpainting_follows_a_low_resolution_in_space_and_time():
    known = np.ones((1, SIZE, SIZE), bool)
    known[0, 1:3, 2:] = False
    sampler = Recorder()
    with pytest.raises(ValueError, match="must be whole multiples of it"):
        low = np.zeros((1, CLIP, 3, 3, 3), np.uint8)
        editing.inpaint(sampler, None, KEY, numbered(CLIP), ["a"], known=known, low_res=low)
    low = np.zeros((1, 1, 2, 2, 3), np.uint8)
    editing.inpaint(sampler, None, KEY, numbered(CLIP), ["a"], known=known, low_res=low)
    measurement = sampler.calls[0][1].measurement
    assert (measurement.space, measurement.time) == (2, CLIP)


def test_predictions_go_on_from_each_video_several_times():
    sampler = Recorder()
    batches = list(
        editing.predict(sampler, None, KEY, numbered(CLIP, 3), ["a", "b", "c"], frames=2, each=2)
    )
    assert [len(batch) for batch in batches] == [4, 2]  # the last one is filled up, and cut
    assert [len(prompts) for prompts, _ in sampler.calls] == [4, 4]
    assert sampler.calls[0][0] == ["a", "a", "b", "b"]
    assert sampler.firsts == [0, 4]  # so that every sample has a key of its own
    assert [row[:2] for row in values(np.concatenate(batches))] == [
        [first, first + 1] for first in (1, 1, 51, 51, 101, 101)
    ]
    assert values(batches[0])[0][2:] == [102, 103, 104]
    with pytest.raises(ValueError, match="frames = 5 of videos of 5: must be from 1 to 4"):
        next(editing.predict(sampler, None, KEY, numbered(CLIP), ["a"], frames=5))
    both = Recorder()
    next(editing.predict(both, None, KEY, numbered(CLIP), ["a"], frames=2, low_res=2))
    assert isinstance(both.calls[0][1].measurement, measurements.MaskedMeans)
    refining = Recorder(refines=(CLIP, 2, 2, 3))
    next(editing.predict(refining, None, KEY, numbered(CLIP), ["a"], frames=2))
    np.testing.assert_array_equal(refining.inputs[0], numbered(CLIP)[:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("refines", "length", "context", "starts"),
    [
        ((4, 2, 2, 3), 4, 1, [0]),  # a video that fits
        ((4, 2, 2, 3), 10, 1, [0, 3, 6]),
        ((4, 2, 2, 3), 9, 1, [0, 3, 5]),  # the last part begins earlier
        ((4, SIZE, SIZE, 3), 7, 2, [0, 2, 3]),  # in time: a frame becomes two
    ],
)
def test_a_longer_video_is_refined_in_parts(refines, length, context, starts):
    sampler, done = Recorder(refines), []
    low = numbered(length)[:, :, : refines[1], : refines[2]]
    made = editing.refine(
        sampler, None, KEY, low, ["a"], context=context, progress=lambda *of: done.append(of)
    )
    ratio = sampler.video_shape[0] // 4
    assert made.shape == (1, length * ratio, SIZE, SIZE, 3) and len(done) == len(starts)
    found, expected = values(made)[0], []
    for part, start in enumerate(starts):
        assert sampler.inputs[part][0, :, 0, 0, 0].tolist() == [start + 1 + i for i in range(4)]
        shared = len(expected) - start * ratio
        assert shared >= context * ratio or part == 0
        known = sampler.given(part)[0]
        assert known == expected[start * ratio :] + [None] * (4 * ratio - shared)
        expected += [100 + 10 * part + i for i in range(shared, 4 * ratio)]
    assert found == expected


def test_what_cannot_be_refined_is_told():
    refines = (4, 2, 2, 3)
    low = numbered(6)[:, :, :2, :2]
    with pytest.raises(ValueError, match="refines no video: choose a super-resolution stage"):
        editing.refine(Recorder(), None, KEY, low, ["a"], context=1)
    with pytest.raises(ValueError, match="with f of 4 or more"):
        editing.refine(Recorder(refines), None, KEY, low[:, :3], ["a"], context=1)
    with pytest.raises(ValueError, match="context = 4: must be from 1 to 3"):
        editing.refine(Recorder(refines), None, KEY, low, ["a"], context=4)
    distilled = Recorder(refines)
    distilled.rule = samplers.Distilled()
    with pytest.raises(ValueError, match="6 frames and the stage refines 4 at once.*projection"):
        editing.refine(distilled, None, KEY, low, ["a"], context=1)
    assert not distilled.calls


@pytest.mark.parametrize(
    ("job", "videos", "options", "message"),
    [
        ("extend", numbered(3), {"frames": 9, "context": 5}, "context = 5: must be from 1 to 4"),
        ("extend", numbered(1), {"frames": 9, "context": 2}, "the video has only 1 frames"),
        ("extend", numbered(3), {"frames": 3, "context": 2}, "frames = 3: the video has 3 already"),
        (
            "extend",
            numbered(3)[..., :2, :],
            {"frames": 9, "context": 2},
            r"must be uint8 \[n, f, 4",
        ),
        ("extend", numbered(3, 2), {"frames": 9, "context": 2}, "must be 2, one for each video"),
        ("interpolate", numbered(3), {"factor": 5}, "factor = 5: must be from 2 to 4"),
        ("interpolate", numbered(1), {"factor": 2}, "one frame"),
        ("loop", numbered(5), {"context": 3}, "context = 3: must be from 1 to 2"),
        (
            "inpaint",
            numbered(4),
            {"known": np.ones((1, 4, 4), bool)},
            "4 frames: the model's clips",
        ),
        ("inpaint", numbered(5), {"known": np.ones((1, 4, 4), bool)}, "known: all pixels"),
        ("super_resolve", numbered(5), {}, "must be a whole multiple"),
        ("super_resolve", numbered(3)[:, :, ::2, ::2], {}, "the model's clips are 5 of 3"),
    ],
)
def test_what_makes_no_sense_is_told(job, videos, options, message):
    sampler = Recorder()
    with pytest.raises(ValueError, match=message):
        getattr(editing, job)(sampler, None, KEY, videos, ["a"], **options)
    assert not sampler.calls


@pytest.fixture(scope="module")
def params(stage):
    return stage.init(jax.random.key(0))


METHODS = ["reconstruction", "replacement", "pigdm", "projection"]


@pytest.mark.parametrize("method", METHODS)
def test_sampling_with_something_known(stage, params, method):
    """Given frames come back bit for bit; the others do not depend on the batch, and do on the
    given frames or the noise."""
    videos = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3), np.uint8)
    prompts = ["red left", "green right", "red right"]

    def extended(size, given=videos):
        sampler = sampling.Sampler.from_config(
            stage, {}, steps=3, guidance=2.0, batch_size=size, method=method
        )
        return editing.extend(sampler, params, KEY, given, prompts, frames=4, context=1)

    out = extended(2)
    assert out.shape == (3, 4, 4, 4, 3)
    np.testing.assert_array_equal(out[:, :2], videos)
    assert np.abs(out.astype(int) - extended(3)).max() <= 1
    assert len(np.unique(out[:, 2:])) > 20


def test_known_needs_a_row_for_each_prompt(stage, params):
    sampler = sampling.Sampler.from_config(stage, {}, steps=2)
    mask = measurements.Mask(known=jnp.zeros((2, 3, 1, 1, 1), bool))
    known = sampling.Known(measurement=mask, y=jnp.zeros((2, 3, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"known has \[2\] rows: must be 3, one a prompt"):
        next(sampler.stream(params, KEY, ["red", "red", "red"], known=known))
    for fields, message in (
        ({"method": "magic"}, "method='magic' is unknown"),
        ({"method": "replacement", "weight": 2.0}, "has no effect"),
        ({"weight": -1.0}, "weight=-1.0 must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            sampling.Sampler.from_config(stage, {}, **fields)
