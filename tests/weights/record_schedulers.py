"""Records how the original library's schedulers sample, for `test_scheduler.py`.

    pip install torch==2.13.0 diffusers==0.42.1 && python tests/weights/record_schedulers.py

The network is a fixed function of z and the timestep. All z are recorded with the variance that
preserving processes have.
"""

from pathlib import Path

import diffusers
import numpy as np
import safetensors.numpy
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete

FILE = Path(__file__).parent / "golden" / "schedulers.safetensors"
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SVD = {
    "interpolation_type": "linear",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
EULER, DPM = "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"
ANCESTRAL, PNDM = "EulerAncestralDiscreteScheduler", "PNDMScheduler"
CASES = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}),
    (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
        },
    ),
    (EULER, {"timestep_spacing": "leading", "steps_offset": 1}),
    (EULER, {"timestep_spacing": "trailing"}),
    (EULER, {"timestep_spacing": "linspace"}),
    (EULER, {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    (EULER, SVD),
    (DPM, {"timestep_spacing": "leading", "steps_offset": 1}),
    (DPM, {"timestep_spacing": "trailing"}),
    (DPM, {"timestep_spacing": "linspace", "prediction_type": "v_prediction"}),
    (DPM, {"use_karras_sigmas": True}),
    (ANCESTRAL, {"timestep_spacing": "linspace", "steps_offset": 1}),
    (ANCESTRAL, {"timestep_spacing": "leading", "prediction_type": "v_prediction"}),
    (PNDM, {"skip_prk_steps": True, "steps_offset": 1}),
    (PNDM, {"skip_prk_steps": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}),
    (
        PNDM,
        {
            "skip_prk_steps": True,
            "timestep_spacing": "linspace",
            "prediction_type": "v_prediction",
        },
    ),
]
STEPS = 20


def network(z, t, cos, sin, roll):
    """The same numbers in every library."""
    return 0.3 * z * cos(t / 200) + 0.1 * roll(z) + 0.05 * sin(t / 50)


def added_noise(*_, **__):
    """In the place of random noise, of every step."""
    return torch.cos(torch.arange(16.0)).reshape(1, 4, 2, 2)


def record(name, settings):
    scheduler = getattr(diffusers, name)(**{**SD, **settings})
    scheduler.set_timesteps(STEPS)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 2, 2)).astype("f4"))
    z, found = noise * scheduler.init_noise_sigma, []
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(z, t)
        output = network(scaled, t.float(), torch.cos, torch.sin, lambda x: torch.roll(x, 1, 1))
        z = scheduler.step(output, t, z).prev_sample
        after = scheduler.sigmas[i + 1] if name in (EULER, ANCESTRAL) else 0.0
        if name != PNDM or i > 0:  # its first step is two calls
            found.append(np.asarray(z / (1 + after**2) ** 0.5))
    return scheduler.to_json_string(), np.stack(found)


if __name__ == "__main__":
    scheduling_euler_ancestral_discrete.randn_tensor = added_noise
    configs, tensors = {}, {}
    for i, case in enumerate(CASES):
        configs[str(i)], tensors[str(i)] = record(*case)
    metadata = {**configs, "versions": f"diffusers {diffusers.__version__}"}
    safetensors.numpy.save_file(tensors, FILE, metadata)
    print(FILE, FILE.stat().st_size, "bytes")
