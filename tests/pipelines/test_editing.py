"""Editing: which frames are known of which clip and where what is made goes, and real sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import measurements
from vdm_jax.pipelines import editing
from vdm_jax.stage import sampler as sampling

CLIP, SIZE = 5, 4
KEY = jax.random.key(0)


class Recorder:
    """In the place of a Sampler: frame j of what it makes in call i is all 100 + 10 i + j."""

    video_shape = (CLIP, SIZE, SIZE, 3)

    def __init__(self):
        self.calls = []

    def stream(self, params, key, prompts, *, known, start):
        assert start is None
        shape = (len(prompts), *self.video_shape)
        values = 100 + 10 * len(self.calls) + np.arange(CLIP, dtype=np.uint8)
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
        expected = np.asarray(sampling.to_uint8(by_hand[0]), int)
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
