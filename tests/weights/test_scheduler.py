"""Published schedulers sample as in the library that wrote them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from vdm_jax.diffusion import samplers
from vdm_jax.diffusion.plms import PLMS
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.weights import scheduler

GOLDEN = Path(__file__).parent / "golden" / "schedulers.safetensors"
STEPS = 20


def golden():
    with safetensors.safe_open(GOLDEN, framework="numpy") as file:
        metadata = file.metadata()
        for name in sorted(file.keys(), key=int):
            config = json.loads(metadata[name])
            label = "-".join(
                str(config.get(key))
                for key in ("_class_name", "timestep_spacing", "prediction_type")
            )
            yield pytest.param(config, file.get_tensor(name), id=f"{name}-{label}")


@pytest.mark.parametrize("config,trajectory", golden())
def test_every_step_equals_the_original(config, trajectory, monkeypatch):
    # What the recording has in the place of random noise.
    added = jnp.cos(jnp.arange(16.0)).reshape(1, 4, 2, 2)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: added)
    published = scheduler.from_config(config, Path("scheduler_config.json"))
    sampling = published.sampling(STEPS)
    levels = np.asarray(sampling["grid"].levels, np.float32)
    assert sampling["grid"].steps == STEPS

    @jax.jit
    def step(z, state, logsnr_t, logsnr_s):
        def denoise(z, logsnr):
            t = published.time(logsnr)
            raw = 0.3 * z * jnp.cos(t / 200) + 0.1 * jnp.roll(z, 1, 1) + 0.05 * jnp.sin(t / 50)
            return to_prediction(published.prediction, raw, z, jnp.full(len(z), logsnr))

        return sampling["rule"].step(jax.random.key(0), denoise, z, state, logsnr_t, logsnr_s)

    noise = np.random.default_rng(0).normal(size=trajectory.shape[1:]).astype(np.float32)
    z = jnp.asarray(noise * sampling.get("noise", samplers.FirstNoise()).scale)
    state, largest = sampling["rule"].init(z), np.abs(trajectory).max()
    for wanted, at, to in zip(trajectory, levels[:-1], levels[1:], strict=True):
        z, state = step(z, state, at, to)
        assert np.abs(z - wanted).max() < 1e-4 * largest


CONFIG = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"_class_name": "UniPCMultistepScheduler"}, "_class_name = 'UniPC.*DDIMScheduler"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule.*allowed are.*scaled_linear"),
        ({"thresholding": True}, "thresholding = True"),
        ({"timestep_spacing": "cosine"}, "timestep_spacing = 'cosine'"),
        ({"prediction_type": "flow"}, "prediction_type = 'flow'"),
        ({"stochasticity": 1.0}, "stochasticity: not known for DDIMScheduler"),
        ({"trained_betas": [0.1]}, "trained_betas"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        scheduler.from_config({**CONFIG, **change}, Path("scheduler_config.json"))


STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def test_the_scheduler_of_stable_diffusion_is_sampled_by_its_own_rule(tmp_path):
    (tmp_path / scheduler.FILE).write_text(json.dumps(STABLE_DIFFUSION))
    published = scheduler.read_folder(tmp_path)
    sampling = published.sampling(50)
    assert sampling["rule"] == PLMS(prediction="eps")
    times = published.schedule.timestep(jnp.asarray(sampling["grid"].levels, jnp.float32))
    np.testing.assert_allclose(times[:3], [981, 961, 941], atol=1e-3)
    np.testing.assert_allclose(times[-2:], [1, 0], atol=1e-3)
    assert not published.clips
    assert published.sampling(1)["rule"] == samplers.DDIM()  # as the published code, one evaluation
    with pytest.raises(ValueError, match="steps = 1001"):
        published.sampling(1001)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"skip_prk_steps": False}, "skip_prk_steps = False: allowed are"),
        ({"prediction_type": "sample"}, "prediction_type = 'sample': allowed are"),
    ],
)
def test_what_pndm_does_not_do_here_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        scheduler.from_config({**STABLE_DIFFUSION, **change}, Path("scheduler_config.json"))


def test_the_multistep_rule_needs_its_field():
    config = {k: v for k, v in STABLE_DIFFUSION.items() if k != "skip_prk_steps"}
    with pytest.raises(ValueError, match="lacks skip_prk_steps"):
        scheduler.from_config(config, Path("scheduler_config.json"))
