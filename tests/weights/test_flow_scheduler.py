"""Published samplers of rectified flow against the times that they step through
(`record_wan.py`)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vdm_jax.diffusion.schedules import flow_time
from vdm_jax.diffusion.solvers import FlowEuler
from vdm_jax.diffusion.unipc import UniPC
from vdm_jax.weights import flow_scheduler

GOLDEN = Path(__file__).parent / "golden" / "flow_schedulers.safetensors"
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def test_times_and_timesteps_are_the_published_ones():
    recorded = safetensors.numpy.load_file(GOLDEN)
    cases = sorted({name.split("/")[0] for name in recorded})
    assert len(cases) == 50
    for case in cases:
        kind, shift, steps = case.rsplit("_", 2)
        flow = flow_scheduler.FlowScheduler(kind=kind, shift=float(shift))
        levels = np.asarray(flow.sampling(int(steps))["grid"].levels, np.float32)
        assert levels[-1] == np.inf
        np.testing.assert_allclose(
            flow_time(jnp.asarray(levels)), recorded[f"{case}/sigmas"], atol=6e-7, err_msg=case
        )
        timesteps = flow.time(jnp.asarray(levels[:-1]))
        tolerance = 0 if kind == "unipc" else 1e-3  # the first are whole
        np.testing.assert_allclose(
            timesteps, recorded[f"{case}/timesteps"], atol=tolerance, rtol=0, err_msg=case
        )


def test_configurations_are_read(tmp_path):
    def read(**values):
        (tmp_path / flow_scheduler.FILE).write_text(json.dumps(values))
        return flow_scheduler.read_folder(tmp_path)

    found = read(**UNIPC, flow_shift=5.0, solver_type="bh1", solver_order=1, beta_start=0.1)
    assert (found.kind, found.shift) == ("unipc", 5.0)
    assert found.sampling(8)["rule"] == UniPC(variant="bh1", order=1)
    found = read(**EULER, shift=8.0, base_shift=0.3)
    assert (found.kind, found.shift) == ("flow_euler", 8.0)
    assert found.sampling(8)["rule"] == FlowEuler() and not found.time.whole


@pytest.mark.parametrize(
    "config,message",
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "_class_name = .*: allowed are"),
        ({"_class_name": "UniPCMultistepScheduler"}, "prediction_type = 'epsilon': allowed are"),
        ({**UNIPC, "solver_order": 3}, r"solver_order = 3: allowed are \(1, 2\)"),
        ({**UNIPC, "use_karras_sigmas": True}, "use_karras_sigmas = True: allowed are"),
        ({**UNIPC, "disable_corrector": [0]}, r"disable_corrector = \[0\]: allowed are"),
        ({**UNIPC, "shift": 3.0}, "shift: not known for UniPCMultistepScheduler"),
        ({**EULER, "use_dynamic_shifting": True}, "use_dynamic_shifting = True: allowed are"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(config, message, tmp_path):
    (tmp_path / flow_scheduler.FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        flow_scheduler.read_folder(tmp_path)


def test_steps_beyond_the_timesteps_are_refused():
    with pytest.raises(ValueError, match="steps = 1001: must be between 1 and 1000"):
        flow_scheduler.FlowScheduler().sampling(1001)
