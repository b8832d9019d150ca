"""Saved configurations of older versions."""

import pytest

from vdm_jax.upgrade import upgrade

# The section `model` of a file that was saved before networks were composed.
OLD = {
    "channels": 64,
    "heads": 0,
    "initial_kernel": 3,
    "initial_temporal": False,
    "null_condition": "learned",
}


def test_fields_that_are_gone_are_left_out_and_new_ones_added():
    saved = {"system": "vdm", "model": dict(OLD), "data": {"heads": 1}}
    assert upgrade(saved) == {
        "system": "vdm",
        "model": {
            "channels": 64,
            "output_gate": False,
            "text_kernel": 0,
            "guidance_embedding": False,
        },
        "data": {"heads": 1},
    }
    assert saved["model"] == OLD  # unchanged


@pytest.mark.parametrize(("saved", "today"), [(0, False), (1, True), (True, True)])
def test_the_gate_becomes_a_bool(saved, today):
    gate = upgrade({"model": {**OLD, "output_gate": saved}})["model"]["output_gate"]
    assert gate == today and type(gate) is type(today)


def test_todays_configuration_stays_and_one_without_a_model_too():
    today = upgrade({"model": OLD})
    assert upgrade(today) == today
    assert upgrade({"stages": ("base",)}) == {"stages": ("base",)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heads", 8),
        ("initial_kernel", 7),
        ("null_condition", "zero"),
        ("output_gate", 3),
    ],
)
def test_values_that_are_gone_are_refused(field, value):
    with pytest.raises(ValueError, match=f"model.{field} = {value!r}: this version"):
        upgrade({"model": {**OLD, field: value}})
