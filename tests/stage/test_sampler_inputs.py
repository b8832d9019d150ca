"""What a sampler's compiled function takes, and what `stream` hands to it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.measurements import Mask
from vdm_jax.parallel import sharding
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.space import from_uint8

PROMPTS = ["red left", "green right", "red right"]
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def plan(stage, make_plan):
    return make_plan(stage)


def make(stage, **fields):
    return sampling.Sampler.from_config(stage, {}, steps=2, **{"batch_size": 2, **fields})


class Recorded:
    """In the place of the compiled function: keeps its arguments and returns videos of zeros."""

    def __init__(self, shape):
        self.shape, self.calls = shape, []

    def __call__(self, *arguments):
        self.calls.append(arguments)
        count = len(arguments[3])
        return np.zeros((count, *self.shape), np.uint8), np.ones(count, bool)


def recorded(sampler, *arguments, **options):
    """What the compiled function is called with, a tuple a batch."""
    function = Recorded(sampler.video_shape)
    sampler.__dict__["compiled"] = function
    videos = list(sampler.stream(*arguments, **options))
    return function.calls, videos


def test_a_batch_is_what_the_compiled_function_takes(stage):
    count, shape = len(PROMPTS), stage.video_shape
    y = np.arange(count, dtype=np.float32)[:, None, None, None, None] + np.zeros(shape, np.float32)
    mask = np.zeros((count, shape[0], 1, 1, 1), bool)
    mask[1, 0] = True
    known = sampling.Known(measurement=Mask(known=mask), y=y)
    start = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    params, frozen = {"weight": 1}, {"teacher": 2}
    calls, videos = recorded(
        make(stage, negative="green left", guidance=2.0, frozen=frozen),
        params,
        KEY,
        PROMPTS,
        None,
        known,
        start=start,
        first=5,
    )
    assert [len(video) for video in videos] == [2, 1]
    for (*fixed, indices, cond, begin, part), rows, numbers in zip(
        calls, ([0, 1], [2, 2]), ([5, 6], [7, 8]), strict=True
    ):
        assert fixed[0] is params and fixed[1] is frozen and fixed[2] is KEY
        assert indices.dtype == np.uint32 and indices.tolist() == numbers
        wanted = stage.encode([PROMPTS[row] for row in rows], negatives=["green left"] * 2)
        jax.tree.map(np.testing.assert_array_equal, dict(cond), wanted)
        np.testing.assert_array_equal(begin, start[rows])
        np.testing.assert_array_equal(part.y, y[rows])
        np.testing.assert_array_equal(part.measurement.known, mask[rows])


def test_nothing_is_given_but_prompts(stage):
    calls, _ = recorded(make(stage), {}, KEY, PROMPTS[:1])
    ((_, frozen, _, indices, cond, begin, part),) = calls
    assert (frozen, indices.tolist(), begin, part) == ({}, [0], None, None)
    jax.tree.map(np.testing.assert_array_equal, dict(cond), stage.encode(PROMPTS[:1]))


def test_rows_that_do_not_fit_the_prompts_are_refused(stage):
    sampler = make(stage)
    start = np.zeros((2, *stage.video_shape), np.uint8)
    with pytest.raises(ValueError, match=r"start has \[2\] rows: must be 3, one a prompt"):
        next(sampler.stream({}, KEY, PROMPTS, start=start))
    known = sampling.Known(measurement=Mask(known=np.ones((3, 3, 1, 1, 1), bool)), y=start)
    with pytest.raises(ValueError, match=r"known has \[2, 3\] rows: must be 3"):
        next(sampler.stream({}, KEY, PROMPTS, known=known))
    with pytest.raises(ValueError, match=r"low_res has \[2\] rows"):
        next(sampler.stream({}, KEY, PROMPTS, inputs={"low_res": start}))
    with pytest.raises(ValueError, match="no prompts"):
        next(sampler.stream({}, KEY, []))


@pytest.mark.parametrize(("finite", "refused"), [([1, 1, 1, 0], False), ([1, 1, 0, 1], True)])
def test_only_samples_of_prompts_must_be_finite(stage, finite, refused):
    """The second batch is one prompt, padded."""
    sampler, batches = make(stage), iter(np.array(finite, bool).reshape(2, 2))
    videos = np.zeros((2, *sampler.video_shape), np.uint8)
    sampler.__dict__["compiled"] = lambda *arguments: (videos, next(batches))
    if refused:
        with pytest.raises(FloatingPointError, match=r"samples 2\.\.2 are not finite"):
            list(sampler.stream({}, KEY, PROMPTS))
    else:
        assert len(list(sampler.stream({}, KEY, PROMPTS))) == 2


@pytest.mark.filterwarnings("ignore:num_frames = 5")
@pytest.mark.parametrize("frames", [None, 5])
def test_abstract_inputs_are_what_the_compiled_function_takes(stage, plan, frames):
    sampler = make(stage, plan=plan, batch_size=4, num_frames=frames)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        nn.meta.unbox(stage.abstract_params()),
        plan.params,
    )
    inputs = sampler.abstract_inputs(frames_known=True)
    frozen, key, indices, cond, start, known = inputs
    count = frames or stage.video_shape[0]
    assert frozen == {} and start is None
    assert (key.shape, key.dtype, key.sharding) == ((), KEY.dtype, plan.everywhere)
    assert (indices.shape, indices.dtype) == ((4,), jnp.uint32)
    same = jax.tree.map(
        lambda leaf, other: leaf.shape == other.shape, cond, stage.abstract_inputs(4)
    )
    assert all(jax.tree.leaves(same))
    assert (known.y.shape, known.y.dtype) == ((4, count, *stage.z_shape[1:]), jnp.float32)
    mask = known.measurement.known
    assert (mask.shape, mask.dtype) == ((4, count, 1, 1, 1), bool)
    assert {leaf.sharding for leaf in jax.tree.leaves((indices, cond, known))} == {plan.batch}
    videos, finite = jax.eval_shape(sampler.compiled, params, *inputs)
    assert (videos.shape, videos.dtype) == ((4, count, *stage.video_shape[1:]), jnp.uint8)
    assert finite.shape == (4,)
    assert sampler.abstract_inputs()[-1] is None


def test_a_batch_can_be_cut_as_the_mesh_asks(stage, plan, monkeypatch):
    monkeypatch.setattr(sharding.Plan, "batch_shards", 3)
    sampler = make(stage, plan=plan, batch_size=4)
    assert [sampler._size(wanted) for wanted in (1, 3, 4, 7)] == [3, 3, 6, 9]
    assert make(stage)._size(4) == 4


def test_a_plan_does_not_change_the_videos(stage, plan):
    params = stage.init(KEY)
    plain = np.concatenate(list(make(stage).stream(params, KEY, PROMPTS)))
    planned = np.concatenate(list(make(stage, plan=plan).stream(params, KEY, PROMPTS)))
    np.testing.assert_array_equal(plain, planned)


def test_sampling_begins_with_the_noised_start(stage):
    """Where the grid begins with hardly any noise, what comes out is what went in."""
    params = stage.init(KEY)
    start = np.random.default_rng(0).integers(0, 256, (1, *stage.video_shape), np.uint8)
    sampler = make(stage, grid="14,16,18", threshold="none")
    (videos,) = sampler.stream(params, KEY, PROMPTS[:1], start=start)
    assert np.abs(videos.astype(int) - start).max() <= 2
    (noise,) = make(stage, grid="-14,-12,-10").stream(params, KEY, PROMPTS[:1], start=start)
    assert np.abs(np.asarray(from_uint8(jnp.asarray(noise)))).std() > 0.1


def test_frames_of_z_are_those_of_the_video(stage):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Space:
        data_shape = (4, 4, 4, 3)
        z_shape = (2, 2, 2, 5)
        pixels = True
        multiple = 1

        def z_shape_for(self, data_shape):
            if data_shape[0] % 2:
                raise ValueError(f"{data_shape[0]} frames: must be even")
            return data_shape[0] // 2, 2, 2, 5

        def encode(self, video, frozen, key=None):
            return video

        def encode_mask(self, mask):
            return mask

        def preview(self, z, frozen):
            return z

        def decode(self, z, frozen):
            return z

    view = dataclasses.replace(stage.view, shape=(4, 4, 4, 3), data_shape=None)
    latent = dataclasses.replace(stage, space=Space(), view=view)
    assert make(latent).z_shape == (2, 2, 2, 5)
    with pytest.warns(UserWarning, match="extrapolation"):
        longer = make(latent, num_frames=6)
    assert longer.z_shape == (3, 2, 2, 5) and longer.video_shape == (6, 4, 4, 3)
    odd = make(latent, num_frames=3)
    with pytest.raises(ValueError, match="3 frames: must be even"):
        _ = odd.z_shape
