"""Saved configurations of earlier versions, brought to today's fields.

A model file or a working directory keeps the configuration that it was trained with. What an
earlier version wrote differently is mapped here, and nowhere else.
"""

from collections.abc import Callable
from typing import Any

Section = dict[str, Any]

# The rule and grid fields of `sample` that were always written, with their defaults of then.
_RULE_DEFAULTS = {"eta": 0.0, "gamma": 0.3, "churn": 0.0, "churn_min": 0.05, "churn_max": 50.0}
_RULE_DEFAULTS |= {"churn_noise": 1.003, "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0}
_RULES = {"ddim": ("eta",), "ancestral": ("gamma",)}
_RULES |= dict.fromkeys(("euler", "heun"), ("churn", "churn_min", "churn_max", "churn_noise"))
_GRIDS = {"karras": ("rho", "sigma_min", "sigma_max"), "logsnr": ("sigma_min", "sigma_max")}


def _sample(sample: Section) -> Section:
    """A field of another rule or grid than the chosen one had no effect: it becomes None."""
    used = _RULES.get(sample["sampler"], ()) + _GRIDS.get(sample.get("grid"), ())
    changed = dict(sample)
    for name, default in _RULE_DEFAULTS.items():
        if name in sample and (name not in used or sample[name] == default):
            changed[name] = None
    return changed


def _stage(stage: Section) -> Section:
    """Fields that came later are off."""
    names = ("residual", "residual_of_acceleration", "residual_of_contrast")
    return {**dict.fromkeys(names, 0.0), **stage}


SECTIONS: dict[str, Callable[[Section], Section]] = {"sample": _sample, "stage": _stage}


def upgrade(config: Section) -> Section:
    """A saved configuration with today's fields. What is of today already stays as it is."""
    return {
        name: SECTIONS[name](value) if name in SECTIONS else value for name, value in config.items()
    }
