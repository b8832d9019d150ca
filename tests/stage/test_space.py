"""A stage of latents trains, samples and is conditioned as the stage of pixels that it stands for.

The autoencoder is a fixed orthogonal change of blocks of 2 x 2 pixels, whose inverse is exact. A
network of latents that decodes, runs a network of pixels and encodes then is that network, and
noise of one space is noise of the other.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange, repeat

from vdm_jax.diffusion import conditional
from vdm_jax.diffusion.grids import Spaced
from vdm_jax.diffusion.measurements import Downsample, Mask
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.models import layers
from vdm_jax.models.autoencoder import AutoencoderTiny, Posterior
from vdm_jax.parallel import sharding
from vdm_jax.stage.conditions.video import LowResVideo, MaskedVideo
from vdm_jax.stage.protocols import Example
from vdm_jax.stage.refinement import Refinement
from vdm_jax.stage.sampler import Known, Sampler
from vdm_jax.stage.space import LatentSpace, PixelSpace, from_uint8
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

SHAPE, Z_SHAPE, LOW = (3, 8, 8, 3), (3, 4, 4, 12), (3, 4, 4, 3)
KEY = jax.random.key(1)
MATRIX = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0].astype(np.float32)


def to_latents(pixels, matrix=MATRIX):
    return rearrange(pixels, "... (h p) (w q) c -> ... h w (p q c)", p=2, q=2) @ matrix


def to_pixels(latents, matrix=MATRIX):
    blocks = latents @ matrix.T
    return rearrange(blocks, "... h w (p q c) -> ... (h p) (w q) c", p=2, q=2)


class Blocks(nn.Module):
    """The autoencoder. deviation: of its posterior; 0 = it returns no variance."""

    in_channels: int = 3
    latent_channels: int = 12
    deviation: float = 0.0
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    factor = 2
    frame_reach = 0

    def setup(self):
        self.matrix = self.param("matrix", nn.initializers.zeros, (12, 12))

    def encode(self, images):
        mean = to_latents(images, self.matrix)
        if not self.deviation:
            return Posterior(mean)
        return Posterior(mean, jnp.full_like(mean, 2 * np.log(self.deviation)))

    def decode(self, latents, frames=1):
        return to_pixels(latents, self.matrix)


FROZEN = {"autoencoder": {"matrix": MATRIX}}


class Pixels(nn.Module):
    """A network of pixels that reads both conditions and mixes neighbours in space and time."""

    layout: layers.Layout = layers.ANYWHERE
    remat: str = "none"
    multiple = 1
    reach = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        mask = cond.get("mask", jnp.zeros_like(z[..., :1]))
        known = cond.get("masked_video", jnp.zeros_like(z)) * mask
        neighbours = jnp.roll(z, 1, axis=1) + jnp.roll(z, 1, axis=2)
        h = jnp.concatenate([z, neighbours, cond["low_res"], known, mask], axis=-1)
        level = (logsnr + cond["low_res_logsnr"])[:, None, None, None, None] / 20
        spread = layers.named(nn.initializers.normal(0.5), None, None)
        zeros = layers.named(nn.initializers.zeros, None)
        for features in (6, 3):
            h = nn.Dense(features, kernel_init=spread, bias_init=zeros)(jnp.tanh(h + level))
        return h


class Latents(nn.Module):
    """`Pixels` between decoding and encoding."""

    layout: layers.Layout = layers.ANYWHERE
    remat: str = "none"
    multiple = 1
    reach = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        cond = dict(cond)
        for name in {"low_res", "masked_video"} & cond.keys():
            cond[name] = to_pixels(cond[name])
        if "mask" in cond:
            cond["mask"] = repeat(cond["mask"], "b f h w 1 -> b f (h p) (w q) 1", p=2, q=2)
        return to_latents(Pixels(name="pixels")(to_pixels(z), logsnr, cond))


def make_stage(latent, *, space=None, kinds=("first_frame",), **fields):
    process = Process()
    z_shape = Z_SHAPE if latent else None
    low_res = LowResVideo(
        shape=SHAPE,
        low_res_shape=LOW,
        z_shape=z_shape,
        schedule=process.schedule,
        max_augmentation=0.5,
    )
    own = LatentSpace(data_shape=SHAPE, autoencoder=Blocks(), encode_frames=2, decode_frames=2)
    settings = {
        "network": Latents() if latent else Pixels(),
        "process": process,
        "space": space or (own if latent else PixelSpace(data_shape=SHAPE)),
        "view": View(shape=SHAPE),
        "conditions": (low_res, MaskedVideo(shape=SHAPE, z_shape=z_shape, kinds=kinds)),
    }
    return Stage(**{**settings, **fields})


PIXEL_STAGE, STAGE = make_stage(False), make_stage(True)


@pytest.fixture(scope="module")
def params():
    """Of the network of pixels, and of that of latents."""
    pixels = PIXEL_STAGE.init(KEY)
    return pixels, {"pixels": pixels}


@pytest.fixture
def same_noise(monkeypatch):
    """Noise of z's shape is the encoded noise of a video's shape."""
    normal = jax.random.normal

    def drawn(key, shape=(), *dtype, **options):
        if tuple(shape[-4:]) == Z_SHAPE:
            return to_latents(normal(key, (*shape[:-4], *SHAPE), *dtype, **options))
        return normal(key, shape, *dtype, **options)

    monkeypatch.setattr(jax.random, "normal", drawn)


def make_batch(n=2, images=0):
    rng = np.random.default_rng(5)
    batch = {"video": rng.integers(256, size=(n, *SHAPE), dtype=np.uint8)}
    if images:
        batch["images"] = rng.integers(256, size=(n, images, *SHAPE[1:]), dtype=np.uint8)
    return jax.tree.map(jnp.asarray, batch)


def test_a_stage_of_latents_learns_what_the_stage_of_pixels_learns(params, same_noise):
    def loss(stage):
        return jax.jit(jax.value_and_grad(lambda p: stage.loss(p, make_batch(), KEY, FROZEN)[0]))

    pixels, gradients = loss(PIXEL_STAGE)(params[0])
    latents, latent_metrics = loss(STAGE)(params[1])
    np.testing.assert_allclose(latents, pixels, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        latent_metrics["pixels"],
        gradients,
    )


def test_conditions_that_are_videos_enter_as_latents(same_noise):
    x, cond, images = STAGE.example(make_batch(images=1), KEY, FROZEN)
    pixels, wanted, _ = PIXEL_STAGE.example(make_batch(images=1), KEY)
    assert images == 1 and x.shape == (2, 4, *Z_SHAPE[1:])
    np.testing.assert_allclose(to_pixels(x), pixels, atol=1e-5)
    for name in ("low_res", "masked_video"):
        assert cond[name].shape == x.shape
        if name == "low_res":  # the noise has another shape where there is an image
            clean = dataclasses.replace(STAGE.find(LowResVideo), max_augmentation=0.0)
            in_pixels = dataclasses.replace(PIXEL_STAGE.find(LowResVideo), max_augmentation=0.0)
            found = make_stage(True, conditions=(clean,)).example(make_batch(), KEY, FROZEN)[1]
            target = make_stage(False, conditions=(in_pixels,)).example(make_batch(), KEY)[1]
            np.testing.assert_allclose(to_pixels(found[name]), target[name], atol=1e-5)
        else:
            np.testing.assert_allclose(to_pixels(cond[name]), wanted[name], atol=1e-5)
    np.testing.assert_array_equal(cond["mask"], wanted["mask"][:, :, ::2, ::2])
    assert cond["mask"].min() == 0 and cond["mask"].max() == 1
    shapes = STAGE.cond_shapes(2, 1)
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        name: leaf.shape for name, leaf in cond.items()
    }


def test_a_latent_is_known_where_all_of_its_pixels_are():
    stage = make_stage(True, kinds=("inpaint",))
    masked = stage.find(MaskedVideo)
    clip = from_uint8(make_batch(8)["video"])

    def entries(clip):
        space = stage.space
        example = Example(
            {}, clip, None, jnp.ones(8), lambda v: space.encode(v, FROZEN), space.encode_mask
        )
        return masked.example(example, KEY)

    pixel_mask = MaskedVideo(shape=SHAPE, kinds=("inpaint",)).example(
        Example({}, clip, None, jnp.ones(8)), KEY
    )["mask"]
    found = entries(clip)
    blocks = rearrange(pixel_mask, "b f (h p) (w q) 1 -> b f h w (p q)", p=2, q=2)
    np.testing.assert_array_equal(found["mask"][..., 0], blocks.min(-1))
    assert (blocks.min(-1) != blocks.max(-1)).any()  # some blocks are known in part
    assert np.all(np.asarray(found["masked_video"])[np.asarray(found["mask"][..., 0]) == 0] == 0)
    # What is not known does not matter.
    other = entries(jnp.where(pixel_mask > 0, clip, 0.7))
    jax.tree.map(np.testing.assert_array_equal, other, found)


def sample(stage, params, *, known=None, start=None, method=None, **fields):
    sampler = Sampler(
        stage=stage,
        rule=DDIM(eta=0.5),
        grid=Spaced(steps=3),
        threshold=None,
        method=method or conditional.ByReconstruction(),
        settings={"augmentation": 2.0},
        batch_size=2,
        frozen=FROZEN,
        **fields,
    )
    low = np.random.default_rng(2).integers(256, size=(2, *LOW), dtype=np.uint8)
    inputs = {"low_res": low}
    stream = sampler.stream(params, KEY, ["", ""], known=known, start=start, inputs=inputs)
    return np.concatenate(list(stream)).astype(int)


def first_frame():
    mask = np.zeros((2, 3, 1, 1, 1), bool)
    mask[:, 0] = True
    return Known(measurement=Mask(known=mask), y=from_uint8(make_batch()["video"]))


@pytest.mark.parametrize(
    "options",
    [
        {"start": np.asarray(make_batch()["video"])},
        {"known": first_frame()},
        {"known": first_frame(), "method": conditional.ByReplacement()},
        {"known": first_frame(), "method": conditional.ByTraining()},
    ],
    ids=["start", "reconstruction", "replacement", "trained"],
)
def test_a_stage_of_latents_samples_what_the_stage_of_pixels_samples(params, same_noise, options):
    pixels = sample(PIXEL_STAGE, params[0], **options)
    latents = sample(STAGE, params[1], **options)
    assert pixels.shape == latents.shape == (2, *SHAPE)
    assert pixels.std() > 20 and np.abs(latents - pixels).max() <= 1
    if "method" not in options and "known" in options:
        known = np.asarray(make_batch()["video"][:, 0], int)
        assert np.abs(latents[:, 0] - known).max() <= 1


def test_training_draws_latents_and_all_else_takes_the_most_likely_ones():
    space = LatentSpace(
        data_shape=SHAPE, autoencoder=Blocks(deviation=0.5, scaling_factor=0.3, shift_factor=0.2)
    )
    video = from_uint8(make_batch()["video"])
    mode = space.encode(video, FROZEN)
    np.testing.assert_allclose(mode, (to_latents(video) - 0.2) * 0.3, atol=1e-6)
    np.testing.assert_allclose(space.decode(mode, FROZEN), video, atol=1e-5)
    drawn = space.encode(video, FROZEN, KEY)
    assert np.std(drawn - mode) == pytest.approx(0.5 * 0.3, rel=0.1)
    stage = make_stage(True, space=space)
    x, cond, _ = stage.example(make_batch(), KEY, FROZEN)
    assert np.std(x - mode) == pytest.approx(0.5 * 0.3, rel=0.1)
    assert not np.array_equal(x, stage.example(make_batch(), jax.random.key(2), FROZEN)[0])
    known = np.asarray(cond["mask"][..., 0]) > 0
    np.testing.assert_allclose(np.asarray(cond["masked_video"])[known], mode[known], atol=1e-6)


@pytest.mark.parametrize("frames,tile", [(1, 0), (2, 0), (8, 0), (2, 3)])
def test_frames_and_tiles_do_not_change_what_is_encoded_and_decoded(frames, tile):
    overlap = 1 if tile else 0
    space = LatentSpace(
        data_shape=SHAPE,
        autoencoder=Blocks(),
        encode_frames=frames,
        decode_frames=frames,
        tile=tile,
        tile_overlap=overlap,
    )
    video = from_uint8(make_batch()["video"])
    z = space.encode(video, FROZEN)
    assert space.z_shape == z.shape[1:] == Z_SHAPE
    np.testing.assert_allclose(z, to_latents(video), atol=1e-5)
    np.testing.assert_allclose(space.decode(z, FROZEN), video, atol=1e-5)


class Mixing(Blocks):
    """Decodes to the mean of each frame and its neighbours."""

    frame_reach = 1

    def decode(self, latents, frames=1):
        video = rearrange(to_pixels(latents, self.matrix), "(b f) h w c -> b f h w c", f=frames)
        padded = jnp.pad(video, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
        mean = (padded[:, :-2] + video + padded[:, 2:]) / 3
        return rearrange(mean, "b f h w c -> (b f) h w c")


@pytest.mark.parametrize("overlap,exact", [(0, False), (2, True)])
def test_a_decoder_that_mixes_frames_gets_chunks_of_clips(overlap, exact):
    shape = (9, *SHAPE[1:])
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, *Z_SHAPE[1:])), jnp.float32)

    def decode(**fields):
        space = LatentSpace(data_shape=shape, autoencoder=Mixing(), **fields)
        return space.decode(z, FROZEN)

    whole = decode(decode_frames=9)
    cut = decode(decode_frames=4, decode_overlap=overlap)
    assert (np.abs(np.asarray(cut - whole)).max() < 1e-5) == exact


class Sizes(Blocks):
    """Every number is that of the rows of the argument."""

    def encode(self, images):
        return Posterior(jnp.full_like(to_latents(images, self.matrix), images.shape[1]))

    def decode(self, latents, frames=1):
        return jnp.full_like(to_pixels(latents, self.matrix), latents.shape[1])


def test_tiles_are_as_large_as_asked_for():
    space = LatentSpace(data_shape=SHAPE, autoencoder=Sizes(), tile=3, tile_overlap=1)
    np.testing.assert_allclose(space.encode(jnp.zeros((1, *SHAPE)), FROZEN), 6.0)
    np.testing.assert_allclose(space.decode(jnp.zeros((1, *Z_SHAPE)), FROZEN), 3.0)


def test_a_previewer_decodes_previews_and_nothing_else(params):
    space = dataclasses.replace(STAGE.space, previewer=Blocks(scaling_factor=2.0))
    stage, seen = make_stage(True, space=space), []
    inputs = {"low_res": np.zeros((1, *LOW), np.uint8)}

    def preview(step, steps, videos):
        seen.append(videos)

    def run(frozen):
        sampler = Sampler(stage=stage, grid=Spaced(steps=2), threshold=None, frozen=frozen)
        stream = sampler.stream(params[1], KEY, [""], preview=preview, inputs=inputs)
        videos = np.concatenate(list(stream))
        jax.effects_barrier()
        return videos

    videos = run({**FROZEN, "previewer": {"matrix": -MATRIX}})
    assert videos.std() > 10
    # The last preview is of the sample itself, here its negative of half the contrast.
    inside = (videos > 0) & (videos < 255)
    assert inside.mean() > 0.2
    wanted = 127.5 - (videos - 127.5) / 2
    assert np.abs(seen[-1] - wanted)[inside].max() <= 1
    with pytest.raises(ValueError, match="frozen: lacks 'previewer'.*it has: autoencoder"):
        run(FROZEN)


def test_an_autoencoder_has_a_plan_of_its_own():
    network = AutoencoderTiny(channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    plan = sharding.make_plan(network, {}, jax.devices()[:1])
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros((1, 2, 2, 3)))["params"]
    assert jax.tree.structure(plan.params) == jax.tree.structure(nn.meta.unbox(shapes))


# --- what is refused ------------------------------------------------------------------------------


def test_what_latents_cannot_have_is_refused_by_name(params):
    with pytest.raises(ValueError, match="threshold = 'static': clips pixels.*'none'"):
        Sampler(stage=STAGE)
    with pytest.raises(ValueError, match="threshold = 'dynamic': clips pixels"):
        Sampler.from_config(STAGE, {}, threshold="dynamic")
    y = jnp.zeros((2, 3, 4, 4, 3))
    with pytest.raises(ValueError, match="known: a Downsample: this stage's z are latents"):
        sample(STAGE, params[1], known=Known(measurement=Downsample(space=2), y=y))
    channels = Known(measurement=Mask(known=np.ones((2, 1, 1, 1, 3), bool)), y=first_frame().y)
    with pytest.raises(ValueError, match="only masks of whole pixels or frames"):
        sample(STAGE, params[1], known=channels)
    refinement = Refinement(shape=SHAPE, low_res_shape=LOW, deviation=0.1)
    with pytest.raises(ValueError, match="a refinement measures pixels"):
        make_stage(True, parametrisation=refinement)
    with pytest.raises(ValueError, match=r"stage.crop = \(4, 4\): the condition low_res is a"):
        conditions = (STAGE.find(LowResVideo),)
        make_stage(True, view=View(shape=SHAPE, crop=(4, 4)), conditions=conditions)
    with pytest.raises(ValueError, match=r"stage.crop = \(3, 4\): .* must be multiples of 2"):
        make_stage(True, view=View(shape=SHAPE, crop=(3, 4)), conditions=())
    masked = MaskedVideo(shape=SHAPE, kinds=("first_frame",))
    with pytest.raises(ValueError, match=r"masked_video has shape \(3, 8, 8\).*z \(3, 4, 4\)"):
        make_stage(True, conditions=(masked,))


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"data_shape": (3, 8, 7, 3)}, "videos of 8 x 7 pixels: must be multiples of 2"),
        ({"data_shape": (3, 8, 8, 1)}, "videos of 1 channels: the autoencoder has 3"),
        ({"decode_frames": 0}, "decode_frames = 0: must be at least 1"),
        (
            {"decode_overlap": 1},
            "decode_overlap = 1: must be from 0 to 0, this autoencoder decodes",
        ),
        ({"tile": 2, "tile_overlap": 2}, "tile_overlap = 2: must be from 0 to 1"),
        ({"tile_overlap": 1}, "tile_overlap = 1: must be from 0 to 0"),
        (
            {"autoencoder": Mixing(), "decode_frames": 4, "decode_overlap": 4},
            "decode_overlap = 4: must be from 0 to 3, below decode_frames",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        LatentSpace(**{"data_shape": SHAPE, "autoencoder": Blocks(), **fields})


def test_missing_parameters_are_named():
    with pytest.raises(ValueError, match="frozen: lacks 'autoencoder'.*it has: teacher"):
        STAGE.space.encode(jnp.zeros((1, *SHAPE)), {"teacher": {}})
