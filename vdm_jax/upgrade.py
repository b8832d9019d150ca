"""Saved configurations of earlier versions, brought to today's fields.

A model file or a working directory keeps the configuration that it was trained with. What an
earlier version wrote differently is mapped here, and nowhere else.
"""

from collections.abc import Callable, Mapping
from typing import Any

Section = dict[str, Any]

# Fields of `model` that are gone, with the only value that networks still have.
_GONE = {
    "heads": 0,
    "initial_kernel": 3,
    "initial_temporal": False,
    "null_condition": "learned",
}
_NEW = {"output_gate": False, "text_kernel": 0, "guidance_embedding": False}
# Fields of `sample` that belong to a rule or a grid. They used to be written always, with these
# defaults.
_RULE_DEFAULTS = {"eta": 0.0, "gamma": 0.3, "churn": 0.0, "churn_min": 0.05, "churn_max": 50.0}
_RULE_DEFAULTS |= {"churn_noise": 1.003, "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0}
_RULES = {"ddim": ("eta",), "ancestral": ("gamma",)}
_RULES |= dict.fromkeys(("euler", "heun"), ("churn", "churn_min", "churn_max", "churn_noise"))
_GRIDS = {"karras": ("rho", "sigma_min", "sigma_max"), "logsnr": ("sigma_min", "sigma_max")}


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration, as plain dictionaries, with today's fields.

    Raises ValueError if it has a value that no longer exists.
    """
    return {
        name: _SECTIONS[name](dict(value)) if name in _SECTIONS else value
        for name, value in config.items()
    }


def _model(model: Section) -> Section:
    for name, only in _GONE.items():
        value = model.pop(name, only)
        if value != only:
            raise ValueError(
                f"model.{name} = {value!r}: this version has no such field, and builds networks as "
                f"with {only!r} only; load the model with the version that made it"
            )
    model = _NEW | model
    # It was the number of gains a pixel.
    if model["output_gate"] not in (0, 1):
        raise ValueError(
            f"model.output_gate = {model['output_gate']!r}: this version has one gain a pixel; "
            "load the model with the version that made it"
        )
    model["output_gate"] = bool(model["output_gate"])
    return model


def _sample(sample: Section) -> Section:
    """A field of another rule or grid than the chosen one had no effect: it becomes None."""
    used = _RULES.get(sample["sampler"], ()) + _GRIDS.get(sample.get("grid"), ())
    for name, default in _RULE_DEFAULTS.items():
        if name in sample and (name not in used or sample[name] == default):
            sample[name] = None
    return sample


def _stage(stage: Section) -> Section:
    """Fields that came later are off."""
    names = ("residual", "residual_of_acceleration", "residual_of_contrast")
    return {**dict.fromkeys(names, 0.0), **stage}


_SECTIONS: dict[str, Callable[[Section], Section]] = {
    "model": _model,
    "sample": _sample,
    "stage": _stage,
}
