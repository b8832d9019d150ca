"""A causal autoencoder and a video transformer on its latents are trained, sampled and written, on
clips of one size and of several."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn, tiny
from tests.models.text import test_minilm
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.cli import embed_text, train
from vdm_jax.data import mixed_sizes, video_io
from vdm_jax.diffusion.measurements import Mask
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import editing
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.causal_space import CausalLatentSpace
from vdm_jax.stage.native_sizes import Size, SizedStage
from vdm_jax.stage.stage import key_for
from vdm_jax.systems import autoencoder, distillation
from vdm_jax.training import optimizer, state, step
from vdm_jax.weights import causal_autoencoder, published

AUTOENCODER = """
from vdm_jax.systems import autoencoder

def get_config():
    config = autoencoder.default_config()
    config.device = "cpu"
    with config.model.unlocked():
        config.model.autoencoder = {{
            "_class_name": "AutoencoderKLWan",
            "base_dim": 4,
            "dim_mult": [1, 2],
            "num_res_blocks": 1,
            "z_dim": 4,
            "temperal_downsample": [True],
            "latents_mean": [0.0] * 4,
            "latents_std": [1.0] * 4,
        }}
    config.loss.kl = 1e-4
    config.data.name = "video_folder"
    config.data.data_dir = {videos!r}
    config.data.num_frames = 5
    config.data.image_size = 8
    config.data.part = (3, 8, 8)
    config.data.workers = 0
    config.train.steps = 12
    config.train.batch_size = 4
    config.train.learning_rate = 2e-2
    config.train.warmup_steps = 1
    return config
"""
TRANSFORMER = """
from vdm_jax.systems import video_dit

def get_config():
    config = video_dit.default_config()
    config.device = "cpu"
    with config.model.unlocked():
        config.model.transformer.update(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=12,
            freq_dim=8,
            ffn_dim=16,
            num_layers=2,
        )
        config.model.scheduler = {{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}}
    config.model.autoencoder = {vae!r}
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.text.encoder = "minilm"
    config.text.weights = {weights!r}
    config.text.max_length = 6
    config.data.name = "video_folder"
    config.data.data_dir = {videos!r}
    config.data.num_frames = 5
    config.data.image_size = config.data.image_width = 8
    config.data.fps = 0.0
    config.data.workers = 0
    config.train.steps = 2
    config.train.batch_size = 2
    config.train.warmup_steps = 1
    config.train.log_every = 1
    config.train.sample_every = 0
    config.sample.sampler = "flow_euler"
    config.sample.steps = 2
    config.sample.guidance = 2.0
    return config
"""
SIZES = ((5, 8, 8, 1), (3, 8, 12, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    tiny.write_config(folder)
    return folder


@pytest.fixture(scope="module")
def trained_autoencoder(folder):
    """The configuration, the losses of some updates, and the folder that was written."""
    file = folder / "autoencoder.py"
    file.write_text(AUTOENCODER.format(videos=str(folder / "videos")))
    config = config_lib.load_config(file)
    stage = systems.build(config)
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    tx = optimizer.make_optimizer(config.train)
    update = step.make_train_step(stage, tx, config, plan)
    current = state.create_state(stage, tx, 0, plan)
    iterator = iter(mixed_sizes.make_dataset(config, stage, rows=range(4), report=None))
    errors = []
    for _ in range(config.train.steps):
        current, metrics = update(current, plan.put_batch(next(iterator), 4))
        errors.append(float(metrics["l1"]))
    iterator.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "_MEASURED", 32)
        parts = systems.write_published(folder / "vae", config, current.params, "float32")
    return config, errors, parts


@pytest.fixture(scope="module")
def config(folder, trained_autoencoder):
    weights = test_minilm.write_folder(folder / "weights")
    file = folder / "transformer.py"
    names = {"vae": folder / "vae", "weights": weights, "videos": folder / "videos"}
    file.write_text(TRANSFORMER.format(**{name: str(path) for name, path in names.items()}))
    assert embed_text.main([f"--config={file}"]) == 0
    return config_lib.load_config(file)


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in fields.items():
            section, field = name.split("_", 1)
            config[section][field] = value
    return config


def random_batch(shapes):
    """A batch of random values."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def params(config):
    """Parameters whose output is not zero."""
    return drawn.params(systems.build(config), 3)


@pytest.fixture(scope="module")
def frozen(config):
    return {name: part.params for name, part in systems.read_frozen(config).items()}


@pytest.fixture(scope="module")
def drawn_frozen(config):
    """A drawn autoencoder: that of the run has only seen dark frames, and decodes any z to them."""
    shapes = causal_autoencoder.shapes(systems.build(config).space.autoencoder)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), shapes)
    return {"autoencoder": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}


# --- the autoencoder ------------------------------------------------------------------------------


def test_an_autoencoder_of_clips_learns_and_is_written_with_its_statistics(
    trained_autoencoder, folder
):
    config, errors, parts = trained_autoencoder
    assert parts == ["the autoencoder"] and errors[-1] < 0.8 * errors[0]
    network, params = causal_autoencoder.read_folder(folder / "vae")
    assert (network.factor, network.frame_factor) == (2, 2)
    stage = systems.build(config)
    assert stage.clip_shape == (3, 8, 8, 3)
    # Its z has a mean of 0 and a deviation of 1 in each channel, about.
    space = CausalLatentSpace(data_shape=stage.clip_shape, autoencoder=network)
    iterator = iter(mixed_sizes.make_dataset(config, stage, rows=range(4), report=None))
    clips = np.concatenate([next(iterator)["video"] for _ in range(8)])
    iterator.close()
    clips, key = clips / np.float32(127.5) - 1, jax.random.key(0)
    z = jax.jit(space.encode)(clips, {"autoencoder": params}, key)
    moments = np.asarray(z).mean((0, 1, 2, 3)), np.asarray(z).std((0, 1, 2, 3))
    np.testing.assert_allclose(moments[0], 0.0, atol=0.3)
    np.testing.assert_allclose(moments[1], 1.0, atol=0.3)


def test_a_clip_is_not_split_into_images(trained_autoencoder):
    stage = systems.build(trained_autoencoder[0])
    batch = stage.abstract_batch(2)
    posterior = jax.eval_shape(stage.posterior, stage.abstract_params(), batch["video"])
    assert posterior.mean.shape == (2, 2, 4, 4, 4)
    wrong = dataclasses.replace(stage.view, shape=(4, 8, 8, 3))
    with pytest.raises(ValueError, match="frames = 4: must be 1 more than a multiple of 2"):
        dataclasses.replace(stage, view=wrong)


# --- several sizes --------------------------------------------------------------------------------


def test_packed_clips_learn_what_each_learns_alone(config, params, drawn_frozen):
    stage = systems.build(changed(config, data_sizes=SIZES, data_packed=True))
    assert isinstance(stage, SizedStage) and stage.z_shape == (3, 4, 4, 4)
    batch = random_batch(stage.abstract_batch(2))
    key = jax.random.key(1)

    @jax.jit
    def both(params, batch):
        alone = [
            one.loss(
                params,
                jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch[size.name]),
                key_for(key, size.name),
                drawn_frozen,
            )[0]
            for one, size in zip(stage.stages, stage.sizes, strict=True)
        ]
        return stage.loss(params, batch, key, drawn_frozen), alone

    (packed, metrics), alone = jax.device_get(both(params, batch))
    # Rows have one clip of the first size and two of the second.
    np.testing.assert_allclose(packed, (alone[0] + 2 * alone[1]) / 3, rtol=1e-4)
    assert abs(alone[0] - alone[1]) > 1e-3 * packed and metrics.keys() == {"x_mse", "eps_mse"}


def test_a_clip_with_more_tokens_is_noised_more(config):
    stage = systems.build(changed(config, data_sizes=SIZES))
    levels = [one.process.training_schedule(jnp.array(0.5)) for one in stage.stages]
    # The flow's t at the median: shift 2, times the root of the tokens' share.
    odds = np.exp(-0.5 * np.asarray(levels))
    np.testing.assert_allclose(odds, [2.0, 2.0 * np.sqrt(2 * 24 / (3 * 16))], rtol=1e-5)


def test_buckets_take_turns_and_resume_where_they_stopped(config):
    config = changed(config, data_sizes=SIZES)
    stage = systems.build(config)
    dataset = mixed_sizes.make_dataset(config, stage, rows=range(2), report=None)
    iterator = iter(dataset)
    whole = [next(iterator) for _ in range(6)]
    names = [list(batch) for batch in whole]
    assert all(len(name) == 1 for name in names)
    for round_ in range(3):
        turn = {names[2 * round_][0], names[2 * round_ + 1][0]}
        assert turn == {"5x8x8", "3x8x12"}
    wide = next(batch for batch in whole if "3x8x12" in batch)
    assert wide["3x8x12"]["video"].shape == (2, 2, 3, 8, 12, 3)
    iterator.set_state({"batches_given": 3})
    for wanted in whole[3:]:
        jax.tree.map(np.testing.assert_array_equal, next(iterator), wanted)
    iterator.close()
    half = iter(mixed_sizes.make_dataset(config, stage, rows=[1], report=None))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[1]), next(half), whole[0])
    half.close()


def test_files_are_read_in_the_size_nearest_to_theirs(config, tmp_path):
    for name, width in (("square", 8), ("wide", 14)):
        video = np.full((6, 8, width, 3), width, np.uint8)
        video_io.write_mp4(tmp_path / f"{name}.mp4", video, min_size=8)
        (tmp_path / f"{name}.txt").write_text("a red square")
    native = changed(
        config, data_sizes=SIZES, data_native=True, data_data_dir=str(tmp_path), text_encoder="none"
    )
    stage = systems.build(changed(config, data_sizes=SIZES))
    stage = dataclasses.replace(
        stage, stages=tuple(dataclasses.replace(s, conditions=()) for s in stage.stages)
    )
    stage = dataclasses.replace(stage, conditions=())
    dataset = mixed_sizes.make_dataset(native, stage, rows=range(2), report=None)
    sources = [part.source for part, _ in dataset.parts.values()]
    names = [[Path(file.path).stem for file in source.files] for source in sources]
    assert names == [["square"], ["wide"]]


def test_what_cannot_be_packed_is_refused(config):
    for fields, message in (
        ({"model_masks": ("beginning",)}, "packed rows have text alone .*, not text, masked_video"),
        ({"data_sizes": (SIZES[0], SIZES[0])}, "each size must be there once"),
        ({"data_sizes": ((5, 8, 8, 0),)}, "a row holds one clip of a size or more"),
        ({"data_sizes": ((5, 8, 6, 1),)}, "must be multiples of 4, the pixels of a patch"),
    ):
        fields = {"data_sizes": SIZES, "data_packed": True, **fields}
        with pytest.raises(ValueError, match=message):
            systems.build(changed(config, **fields))


# --- training and sampling ------------------------------------------------------------------------


def test_a_packed_run_is_trained_sampled_and_written(config, folder, tmp_path):
    workdir = tmp_path / "run"
    flags = [f"--config={folder / 'transformer.py'}", f"--workdir={workdir}"]
    flags += [f"--config.data.sizes={SIZES!r}", "--config.data.packed=True"]
    assert train.main(flags) == 0
    model = pretrained.load(workdir)
    video = model.sample(jax.random.key(0), "a red square")
    assert video.shape == (1, 5, 8, 8, 3) and model.stage.sizes == (
        Size(*SIZES[0]),
        Size(*SIZES[1]),
    )
    out = tmp_path / "written"
    assert "transformer" in systems.write_published(out, model.config, model.params, "float32")
    again = pretrained.read_config(out)
    assert again.text.encoder == "minilm" and systems.build(again).sizes == model.stage.sizes
    assert again.sample.steps == 2 and again.model.masks == ()
    copy = systems.read_published_params(out)
    jax.tree.map(np.testing.assert_array_equal, copy, jax.device_get(model.params))
    assert (out / published.PIPELINE).is_file()


def test_predictions_are_reused_where_the_noise_level_hardly_moves(config, params, drawn_frozen):
    stage = systems.build(config)
    model = pretrained.Model(stage=stage, params=params, config=config, frozen=drawn_frozen)
    settings = {"steps": 4, "guidance": 1.0, "num_frames": 3}
    plain, reused = (
        model.sample(jax.random.key(0), "a", **settings, reuse=reuse) for reuse in (None, 9.0)
    )
    assert plain.shape == reused.shape and (plain != reused).any()
    with pytest.raises(ValueError, match="preview: goes with reuse = 0"):
        model.sample(jax.random.key(0), "a", **settings, reuse=9.0, preview=print)
    with pytest.raises(ValueError, match="reuse = 0.1: goes with corrector = 0"):
        model.sampler(reuse=0.1, corrector=0.1)


def test_images_beside_a_clip_are_encoded_and_read_alone(config, params, frozen):
    stage = systems.build(config)
    batch = random_batch(stage.abstract_batch(2, 2))

    def example(batch):
        return stage.example(batch, jax.random.key(0), frozen)[:2]

    x, cond = jax.eval_shape(example, batch)
    assert x.shape == (2, 3 + 2, 4, 4, 4)
    assert cond["image_text_embeddings"].shape == (2, 2, 6, 12)

    @jax.jit
    def encode(video):
        alone = stage.space.encode(video[:, :1], frozen)
        return stage.space.encode(video, frozen, num_images=2), alone

    video = jnp.asarray(batch["video"], jnp.float32)[:, :3] / 127.5 - 1
    video = jnp.concatenate([video, video[:, :2]], axis=1)
    together, alone = encode(video)
    np.testing.assert_allclose(together[:, 2], alone[:, 0], atol=1e-5)


def test_a_student_takes_the_guidance_scale_and_a_sampler_of_its_own(config, params, frozen):
    teacher = systems.build(config)
    ladder = distillation.default_config().unlock()
    ladder.distill.threshold = "none"  # of latents
    this = distillation.rounds(ladder.distill)[0]
    student_config = distillation.round_config(config, ladder, this, "teacher", "digest")
    student = distillation.build_round(teacher, student_config, this)
    assert student.takes_guidance and systems.scheduler(student_config) is None
    assert systems.scheduler(config).kind == "flow_euler"
    batch, everything = student.abstract_batch(2), {**frozen, "teacher": params}
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    assert "guidance_in" in shapes["time_embedding"]
    loss, _ = jax.eval_shape(student.loss, shapes, batch, jax.random.key(0), everything)
    assert loss.shape == ()


# --- known frames ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(config):
    return systems.build(changed(config, model_masks=("beginning", "end", "ends")))


def test_what_is_known_enters_without_noise_and_is_not_learned(masked, params, frozen):
    z = jax.random.normal(jax.random.key(0), (2, *masked.z_shape))
    logsnr = jnp.array([-1.0, 2.0])
    text = {masked.network.text: jnp.ones((2, 6, 12))}
    mask = jnp.zeros((2, *masked.z_shape[:3], 1)).at[:, 0].set(1.0)
    half = jnp.broadcast_to(0.5 * mask, z.shape)
    known = {"mask": mask, "masked_video": half}

    @jax.jit
    def run(z, known):
        cond = {**text, **known}
        raw = masked.network.apply({"params": params}, z, logsnr, cond)
        return raw, masked.denoiser(params, frozen)(z, logsnr, cond).x

    raw, x = run(z, known)
    np.testing.assert_allclose(x[:, 0], 0.5, atol=1e-5)
    # z has no effect at known frames, and known frames have an effect elsewhere.
    other, _ = run(z.at[:, 0].add(3.0), known)
    np.testing.assert_array_equal(other, raw)
    other, _ = run(z, {**known, "masked_video": -half})
    assert np.abs(other[:, 1:] - raw[:, 1:]).max() > 1e-3
    weight = masked.parametrisation.weight(logsnr, known)
    np.testing.assert_allclose(weight[:, 0], 0.0)
    np.testing.assert_allclose(weight[:, 1:], 1.5)
    np.testing.assert_array_equal(masked.parametrisation.weight(logsnr, text), jnp.ones(2))


def test_a_clean_frame_is_at_time_zero(masked, params):
    """All of a clip known is the clip at t = 0."""
    z = jax.random.normal(jax.random.key(0), (1, *masked.z_shape))
    text = {masked.network.text: jnp.ones((1, 6, 12))}
    mask = jnp.ones((1, *masked.z_shape[:3], 1))

    @jax.jit
    def both(z):
        apply = masked.network.apply
        known = {**text, "mask": mask, "masked_video": z}
        given = apply({"params": params}, 0 * z, jnp.array([-3.0]), known)
        return given, apply({"params": params}, z, jnp.array([jnp.inf]), text)

    given, clean = both(z)
    np.testing.assert_allclose(given, clean, atol=1e-5)


def test_masks_are_drawn_and_encoded_in_training(masked, params, frozen):
    batch = random_batch(masked.abstract_batch(4))
    _, cond, _ = jax.jit(masked.example)(batch, jax.random.key(2), frozen)
    assert cond["mask"].shape == (4, *masked.z_shape[:3], 1)
    known = np.asarray(cond["mask"]).mean(axis=(1, 2, 3, 4))
    assert known.max() > 0 and known.max() < 1
    loss, _ = jax.eval_shape(masked.loss, params, batch, jax.random.key(0), frozen)
    assert loss.shape == ()


def test_clips_are_extended_and_closed_by_the_trained_method(config, masked, params, frozen):
    model = pretrained.Model(stage=masked, params=params, config=config, frozen=frozen)
    sampler = model.sampler(method="trained", guidance=1.0)
    video = np.random.default_rng(0).integers(0, 256, (1, 5, 8, 8, 3), np.uint8)
    key = jax.random.key(0)
    longer = editing.extend(sampler, params, key, video, ["a"], frames=7, context=3)
    assert longer.shape == (1, 7, 8, 8, 3)
    np.testing.assert_array_equal(longer[:, :5], video)
    before = editing.extend(sampler, params, key, video, ["a"], frames=7, context=3, backwards=True)
    np.testing.assert_array_equal(before[:, 2:], video)
    joined = editing.join(sampler, params, key, video, video[:, ::-1], ["a"], context=1)
    assert joined.shape == (1, 5 + 3 + 5, 8, 8, 3)
    np.testing.assert_array_equal(joined[:, :5], video)
    np.testing.assert_array_equal(joined[:, -5:], video[:, ::-1])
    closed = editing.loop(sampler, params, key, video, ["a"], context=1)
    assert closed.shape == (1, 5 + 3, 8, 8, 3)


def test_known_latents_are_those_whose_frames_are_all_known(masked, frozen):
    known = np.arange(5) < 4  # of the frames 0 | 1 2 | 3 4
    mask = Mask(known=jnp.asarray(known)[None, :, None, None, None])
    pixels = jnp.broadcast_to(mask.known, (1, 5, 8, 8, 1)).astype(jnp.float32)
    in_z = masked.space.encode_mask(pixels)[0, :, 0, 0, 0]
    np.testing.assert_array_equal(in_z, [1, 1, 0])
