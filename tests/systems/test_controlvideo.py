"""ControlVideo against calculations of its own, frame by frame, on drawn weights."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

import vdm_jax
from tests.systems.test_latent_image import write_folder
from vdm_jax.diffusion.plms import PLMS
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.models import rife
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.blocks.transformer import SelfAttention
from vdm_jax.models.controlnet import ControlNet
from vdm_jax.pipelines import controlvideo as pipeline
from vdm_jax.pipelines import text2video_zero
from vdm_jax.systems import controlvideo
from vdm_jax.weights import controlnet as controlnet_weights
from vdm_jax.weights import fetch
from vdm_jax.weights import rife as rife_weights

FRAMES, STEPS, GUIDANCE, REMAINING = 5, 4, 3.0, (3, 2)
PROMPT = "a cat"
CHANGES = {"steps": STEPS, "guidance": GUIDANCE}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlvideo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield vdm_jax.load(write_folder(folder / "model"))


def drawn(shapes, seed=0):
    """Parameters none of which is zero."""
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    made = []
    for leaf in leaves:
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.3
        made.append((scale * rng.standard_normal(leaf.shape)).astype(np.float32))
    return jax.tree.unflatten(tree, made)


@pytest.fixture(scope="module")
def controlnet(model):
    ours = model.stage.network
    network = ControlNet(unet=ours.unet, settings=ours.settings, hint_widths=(4, 8))
    params = drawn(controlnet_weights.shapes(network))
    return controlnet_weights.Loaded(network, params)


@pytest.fixture(scope="module")
def interpolator():
    network = rife.MotionNetwork(widths=(4, 4, 4, 4), scales=(4, 2, 1, 1))
    images = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images, images, 0.5)["params"]
    return rife_weights.Loaded(network, drawn(nn.meta.unbox(shapes), seed=1))


@pytest.fixture(scope="module")
def hints():
    return np.random.default_rng(0).integers(0, 256, (1, 9, 16, 16, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Plainly:
    """A slot for attention that is written out: each frame's pixels attend to those of the frames
    at some places of the clip."""

    places: tuple[int, ...]

    def __call__(self, place):
        return PlainAttention(
            place.heads, place.dtype, place.layout, places=self.places, name=place.name
        )


class PlainAttention(SelfAttention):
    places: tuple[int, ...] = ()

    @nn.nowrap
    def attend(self, q, k, v, context):
        q, k, v = (rearrange(x, "(b f) p h d -> b f p h d", f=context.frames) for x in (q, k, v))
        keys, values = (jnp.concatenate([x[:, i] for i in self.places], axis=1) for x in (k, v))
        logits = jnp.einsum("bfphd,blhd->bfhpl", q, keys) / np.sqrt(q.shape[-1])
        attended = jnp.einsum("bfhpl,blhd->bfphd", jax.nn.softmax(logits, axis=-1), values)
        return rearrange(attended, "b f p h d -> (b f) p h d")


def plainly(stage, places, frames):
    """The raw output (params, z, logsnr, cond) of a stage's clips of `frames` frames, with the
    U-Net's attention written out and the ControlNet's as in an image."""
    (control,) = stage.network.controls
    control = dataclasses.replace(control, network=control.network.clone(slots=Slots()))
    slots = Slots(self_attention=Plainly(tuple(places)))
    network = stage.network.clone(slots=slots, controls=(control,))

    @jax.jit
    def run(params, z, logsnr, cond):
        assert z.shape[1] == frames
        return network.apply({"params": params}, z, logsnr, cond)

    return run


def condition(stage, hints, prompt=PROMPT):
    cond = stage.encode([prompt], inputs={"hint": hints})
    return stage.begin(jax.tree.map(jnp.asarray, cond), 1, jax.random.key(0), {})


def part_of(cond, places):
    kept = {"text_embeddings": cond["text_embeddings"], "token_mask": cond["token_mask"]}
    return {**kept, "hint": cond["hint"][:, np.array(places)]}


def test_all_frames_attend_to_all_and_the_controlnet_within_frames(model, controlnet, hints):
    adapted = pipeline.adapt(model, controlnet, FRAMES)
    stage, params = adapted.model.stage, adapted.model.params
    cond = part_of(condition(stage, hints[:, :FRAMES]), range(FRAMES))
    z, logsnr = jax.random.normal(jax.random.key(1), (1, FRAMES, 8, 8, 4)), jnp.zeros(1)
    run = jax.jit(stage.raw_output)
    found = run(params, z, logsnr, cond)
    expected = plainly(stage, range(FRAMES), FRAMES)(params, z, logsnr, cond)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    # The last frame's pixels reach the first frame, through the U-Net and not by the control video.
    assert np.abs(run(params, z.at[:, -1].add(1.0), logsnr, cond) - found)[:, 0].max() > 1e-3
    no_control = {**cond, "keep_hint": jnp.zeros(1, bool)}
    assert np.abs(run(params, z, logsnr, no_control) - found).max() > 1e-2


@pytest.mark.parametrize(
    "reference_bug,keys,clips",
    [
        (False, [0, 3, 6, 8], [[0, 3, 1, 2], [3, 6, 4, 5], [6, 8, 7]]),
        (True, [0, 3, 6], [[0, 3, 1, 2], [3, 6, 4, 5]]),
    ],
)
def test_clips_attend_to_both_key_frames(model, controlnet, hints, reference_bug, keys, clips):
    adapted = pipeline.adapt(
        model, controlnet, 9, hierarchical=True, reference_bug=reference_bug, norm_over_frames=True
    )
    stage = dataclasses.replace(adapted.model.stage, window=4)
    params, cond, frames = adapted.model.params, condition(stage, hints), keys[-1] + 1
    z, logsnr = jax.random.normal(jax.random.key(1), (1, frames, 8, 8, 4)), jnp.full(1, 1.0)
    found = jax.jit(stage.raw_output)(params, z, logsnr, part_of(cond, range(frames)))
    run = plainly(stage, range(len(keys)), len(keys))
    among = run(params, z[:, np.array(keys)], logsnr, part_of(cond, keys))
    expected = dict(zip(keys, among[0], strict=True))
    for clip in clips:
        attended = (0, len(clip) - 1) if reference_bug else (0, 1)
        run = plainly(stage, attended, len(clip))
        output = run(params, z[:, np.array(clip)], logsnr, part_of(cond, clip))
        expected |= dict(zip(clip[2:], output[0, 2:], strict=True))
    expected = np.stack([expected[frame] for frame in range(frames)])
    np.testing.assert_allclose(found[0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "frames,parity,targets,before,after",
    [
        (5, 1, [1, 3], [0, 2], [2, 4]),
        (5, 0, [0, 2, 4], [0, 1, 3], [1, 3, 4]),
        (6, 1, [1, 3], [0, 2], [2, 4]),
        (6, 0, [0, 2, 4], [0, 1, 3], [1, 3, 5]),
    ],
)
def test_the_smoother_replaces_the_frames_that_the_published_code_replaces(
    frames, parity, targets, before, after
):
    found = controlvideo.interleaved(frames, parity)
    assert [list(part) for part in found] == [targets, before, after]


def test_the_smoother_acts_at_the_papers_steps():
    actions = controlvideo.Smoother().actions(50)
    assert (actions[30], actions[31], actions.sum()) == (1, 2, 3)


@pytest.fixture(scope="module")
def smoothing(model, controlnet, interpolator):
    smoother = controlvideo.Smoother(remaining=REMAINING)
    return pipeline.adapt(model, controlnet, FRAMES, smoother=smoother, interpolator=interpolator)


def test_sampling_is_ddim_from_one_frames_noise_with_smoothed_estimates(
    smoothing, interpolator, hints
):
    """The loop written out: guidance, DDIM's step, and two steps whose estimates are decoded,
    interpolated frame by frame, and encoded."""
    adapted = smoothing
    stage, params, frozen = adapted.model.stage, adapted.model.params, adapted.model.frozen
    hints, levels = hints[:, :FRAMES], adapted.sampler(**CHANGES).logsnrs()
    (found,) = adapted.sample(jax.random.key(3), hints, [PROMPT], **CHANGES)
    key = jax.random.fold_in(jax.random.key(3), 0)
    noise = jax.random.normal(jax.random.split(key)[0], (1, 1, 8, 8, 4))
    z = jnp.repeat(noise, FRAMES, axis=1)
    run = plainly(stage, range(FRAMES), FRAMES)
    conds = [part_of(condition(stage, hints, prompt), range(FRAMES)) for prompt in (PROMPT, "")]
    decode = jax.jit(lambda z: stage.space.decode(z, frozen))
    encode = jax.jit(lambda video: stage.space.encode(video, frozen))
    between = jax.jit(lambda a, b: rife.between(*interpolator, a, b))
    smoothed = []
    for i in range(STEPS):
        eps, null = (run(params, z, levels[i : i + 1], cond) for cond in conds)
        eps = null + GUIDANCE * (eps - null)
        (alpha, sigma), (alpha_s, sigma_s) = (alpha_sigma(levels[j]) for j in (i, i + 1))
        x = (z - sigma * eps) / alpha
        if STEPS - i in REMAINING:
            video = (jnp.clip(decode(x), -1, 1) + 1) / 2
            frames = list(video[0])
            for j in (1, 3) if STEPS - i == REMAINING[0] else (0, 2, 4):
                pair = (video[:, max(j - 1, 0)], video[:, min(j + 1, FRAMES - 1)])
                frames[j] = between(*pair)[0]
            smoothed.append(np.abs(np.stack(frames) - video[0]).max())
            x = encode(2 * jnp.stack(frames)[None] - 1)
        z = alpha_s * x + sigma_s * eps
    expected = np.round((np.clip(decode(z)[0], -1, 1) + 1) * 127.5)
    assert np.abs(found - expected).max() <= 1
    assert min(smoothed) > 0.05  # of 1: without the smoother the comparison would fail


def test_the_video_follows_prompt_and_control(smoothing, hints):
    def sample(prompt, hints):
        return smoothing.sample(jax.random.key(3), hints, [prompt], **CHANGES).astype(int)

    plain = sample(PROMPT, hints[:, :FRAMES])
    assert np.abs(plain - sample("a dog", hints[:, :FRAMES])).max() > 2
    assert np.abs(plain - sample(PROMPT, 255 - hints[:, :FRAMES])).max() > 2
    assert smoothing.sampler(**CHANGES) is smoothing.sampler(**CHANGES)  # compiled once


@pytest.mark.parametrize(
    "change,options,message",
    [
        ({"hint_widths": (4, 8, 8)}, {}, r"shrinks the control video 4 times.*autoencoder 2"),
        ({"hint_channels": 1}, {}, r"conditioning_channels = 1: not 3"),
        ({"in_channels": 9}, {}, r"controlnet: its in_channels is 9, the model's 4"),
        ({}, {"frames": 1}, r"frames = 1: must be at least 2"),
        ({}, {"frames": 8, "hierarchical": True}, r"window = 2: must be at least 3.*9 frames"),
        ({}, {"attention": "first", "hierarchical": True}, r"attention = 'first'"),
        ({}, {"attention": "second"}, r"frames = 'second': allowed are own, first"),
    ],
)
def test_what_does_not_fit_is_refused(model, controlnet, change, options, message):
    network = controlnet.network.clone(**change)
    options = {"frames": 9, **options}
    with pytest.raises(ValueError, match=message):
        controlvideo.build(model.stage, network, options.pop("frames"), **options)


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"sampler": "ancestral"},
            r"sampler = 'ancestral': the smoother is made for 'ddim' with eta = 0",
        ),
        ({"eta": 0.5}, r"sampler = 'ddim': the smoother is made for 'ddim' with eta = 0"),
        ({"steps": 2}, r"acts with 3 steps left: must be from 1 to 2"),
        ({"num_frames": 7}, r"num_frames = 7: ControlVideo has the control video's frames"),
    ],
)
def test_samplers_that_do_not_fit_are_refused(smoothing, changes, message):
    with pytest.raises(ValueError, match=message):
        smoothing.sampler(**changes)


def test_stable_diffusions_own_scheduler_gives_way_to_ddim(tmp_path, controlnet):
    folder = write_folder(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler", "skip_prk_steps": True}))
    model = vdm_jax.load(folder)
    for adapted in (
        pipeline.adapt(model, controlnet, FRAMES, smoother=None),
        text2video_zero.adapt(model),
    ):
        chosen = adapted.sampler(sampler="plms").rule
        assert (adapted.sampler().rule, chosen) == (DDIM(), PLMS())
        assert adapted.sampler().grid == model.sampler().grid


def test_two_frames_have_none_between_two_others(model, controlnet, interpolator):
    smoother = controlvideo.Smoother()
    with pytest.raises(ValueError, match="a video of 2 frames has none between two"):
        pipeline.adapt(model, controlnet, 2, smoother=smoother, interpolator=interpolator)


def test_a_hint_of_another_shape_is_refused(model, controlnet, hints):
    adapted = pipeline.adapt(model, controlnet, FRAMES)
    with pytest.raises(ValueError, match=r"hint: uint8\[1, 4, 16, 16, 3\] was given.*\[n, 5, 16"):
        adapted.sample(jax.random.key(0), hints[:, :4], [PROMPT])
    with pytest.raises(ValueError, match="follows a control video, and none was given"):
        adapted.model.stage.encode([PROMPT])
