"""The section `sample` of a configuration, and flags and arguments of the same names, as the parts
of a `stage.sampler.Sampler`."""

import dataclasses
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from vdm_jax.diffusion import conditional, grids, samplers
from vdm_jax.diffusion.reuse import Reuse
from vdm_jax.stage import guidance as guidance_lib
from vdm_jax.stage.guidance import ClassifierFree, Guidance, Temporal, Tiles, Windows

# What `read` takes, by the part that it becomes.
RULE_FIELDS = ("eta", "gamma", "churn", "churn_min", "churn_max", "churn_noise")
GRID_FIELDS = ("rho", "sigma_min", "sigma_max")
_SETTINGS = ("augmentation", "fps", "motion_bucket", "structure")
_OTHERS = (
    *("sampler", "steps", "grid", "corrector", "guidance", "oscillate_after", "tile"),
    *("tile_overlap", "window", "window_overlap", "threshold", "method", "weight"),
    *("first_guidance", "guidance_start", "guidance_end", "shared_noise", "temporal", "reuse"),
)
_DIRECT = ("negative", "batch_size", "num_frames", "height", "width", "remat", "frozen", "plan")
FIELDS = (*RULE_FIELDS, *GRID_FIELDS, *_SETTINGS, *_OTHERS, *_DIRECT)

_INTEGERS = (
    *("steps", "oscillate_after", "tile", "tile_overlap", "window", "window_overlap"),
    *("batch_size", "num_frames", "height", "width"),
)
_NUMBERS = (
    *(*RULE_FIELDS, *GRID_FIELDS, *_SETTINGS),
    *("corrector", "guidance", "guidance_start", "guidance_end", "first_guidance"),
    *("temporal", "reuse", "weight"),
)
_TEXTS = ("sampler", "threshold", "method", "negative", "remat")


def default_section() -> ml_collections.ConfigDict:
    """The section `sample` of a configuration: what `read` reads.

    A field that is None (eta and what follows it) has the default of the chosen rule or grid. Set,
    it is refused where the rule or the grid does not have it.
    """
    unset = {name: config_dict.placeholder(float) for name in (*RULE_FIELDS, *GRID_FIELDS)}
    return ml_collections.ConfigDict(
        {
            "sampler": "ancestral",
            "steps": 256,
            "guidance": 1.0,
            "oscillate_after": 0,
            "grid": "time",
            "corrector": 0.0,
            "threshold": "static",
            "augmentation": 0.0,
            "tile": 0,
            "tile_overlap": 0,
            "window": 0,
            "window_overlap": 0,
            "batch_size": 16,
            # Whether all frames begin with the same noise.
            "shared_noise": False,
            **unset,
        }
    )


def read(
    sample: Mapping[str, Any] | ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a `Sampler`, without its stage, of the section `sample` of a configuration.

    changes: of `FIELDS`; those that are None count as not given. With another rule or grid than the
    configuration's, the configuration's fields of the old one are left out. Raises ValueError for a
    field that the chosen rule, grid or model does not have, and for a value of the wrong type.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if unknown := sorted(set(changes) - set(FIELDS)):
        raise ValueError(f"sampler has no field {', '.join(unknown)}; allowed: {', '.join(FIELDS)}")
    _check_types(changes)
    given = {name: sample[name] for name in FIELDS if sample.get(name) is not None}
    for part, fields in (("sampler", RULE_FIELDS), ("grid", GRID_FIELDS)):
        if part in changes and changes[part] != given.get(part):
            given = {name: value for name, value in given.items() if name not in fields}
    given |= changes

    def chosen(names: Sequence[str]) -> dict[str, Any]:
        return {name: given[name] for name in names if name in given}

    steps = given.get("steps", 64)
    return {
        "rule": _rule(given.get("sampler", "ddim"), steps, chosen(RULE_FIELDS), given),
        "grid": grids.make_grid(given.get("grid", "time"), steps, **chosen(GRID_FIELDS)),
        "guidance": _guidance(given),
        "threshold": _threshold(given.get("threshold", "static")),
        "method": conditional.make_method(
            given.get("method", "reconstruction"), **chosen(("weight",))
        ),
        "noise": samplers.FirstNoise(shared=given.get("shared_noise", False)),
        "settings": {name: value for name, value in chosen(_SETTINGS).items() if value},
        **chosen(_DIRECT),
    }


def with_published(sampler: Any, parts: Mapping[str, Any], given: Collection[str]) -> Any:
    """A `Sampler` with the rule, the grid and the first noise of a published scheduler.

    What the sampler's own rule and noise were given holds for the published ones too.

    Args:
      parts: `weights.scheduler.Scheduler.sampling` of the sampler's steps.
      given: names of fields that were asked for.

    Raises ValueError where the published rule does not have one of them.
    """
    around = isinstance(sampler.rule, Reuse | samplers.Corrector)
    own, rule = sampler.rule.rule if around else sampler.rule, parts["rule"]
    shared = set.intersection(
        {*RULE_FIELDS, "steps"},
        *({field.name for field in dataclasses.fields(each)} for each in (own, rule)),
    )
    if unknown := sorted(set(given) & set(RULE_FIELDS) - shared):
        raise ValueError(
            f"{', '.join(unknown)}: the published scheduler of this model has no such field; name "
            "a step rule too, such as --sampler=ddim"
        )
    rule = dataclasses.replace(rule, **{name: getattr(own, name) for name in shared})
    rule = dataclasses.replace(sampler.rule, rule=rule) if around else rule
    scale = parts.get("noise", sampler.noise).scale
    noise = dataclasses.replace(sampler.noise, scale=scale)
    return dataclasses.replace(sampler, rule=rule, grid=parts["grid"], noise=noise)


def _check_types(changes: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the field, where a value is of another type than its field."""
    for names, kind, wanted in (
        (_INTEGERS, numbers.Integral, "an integer"),
        (_NUMBERS, numbers.Real, "a number"),
        (_TEXTS, str, "a text"),
    ):
        for name in names:
            value = changes.get(name)
            if value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} = {value!r}: must be {wanted}")
    if not isinstance(shared := changes.get("shared_noise", False), bool):
        raise ValueError(f"shared_noise = {shared!r}: must be True or False")


def _rule(
    name: str, steps: int, fields: Mapping[str, Any], given: Mapping[str, Any]
) -> samplers.Rule:
    """The step rule called `name`, with VDM's corrector, or reused predictions, where that is asked
    for."""
    if "churn" in fields and name in ("euler", "heun"):
        fields = {**fields, "steps": steps}  # over which all the noise is spread
    rule = samplers.make_rule(name, **fields)
    delta, reuse = given.get("corrector", 0.0), given.get("reuse", 0.0)
    if delta and reuse:
        raise ValueError(f"reuse = {reuse}: goes with corrector = 0, not {delta}")
    if reuse:
        return Reuse(rule=rule, threshold=reuse)
    return samplers.Corrector(rule=rule, delta=delta) if delta else rule


def _guidance(given: Mapping[str, Any]) -> tuple[Guidance, ...]:
    """Tiles and windows inside, then classifier-free guidance."""
    parts: list[Guidance] = []
    for name, kind in (("tile", Tiles), ("window", Windows)):
        size = given.get(name, 0)
        if size < 0:
            raise ValueError(f"{name} = {size}: must not be negative")
        if size:
            parts.append(kind(size=size, overlap=given.get(f"{name}_overlap", 0)))
        elif given.get(f"{name}_overlap", 0):
            raise ValueError(
                f"{name}_overlap = {given[f'{name}_overlap']} has no effect with {name} = 0"
            )
    fields = {
        "scale": given.get("guidance", 1.0),
        "oscillate_after": given.get("oscillate_after", 0),
        "first": given.get("first_guidance"),
        "start": given.get("guidance_start", 0.0),
        "end": given.get("guidance_end", 1.0),
    }
    if (temporal := given.get("temporal", 1.0)) != 1:
        return (*parts, Temporal(**fields, temporal=temporal))
    return (*parts, ClassifierFree(**fields))


def _threshold(name: str) -> Guidance | None:
    if name not in guidance_lib.THRESHOLDS:
        allowed = ", ".join(guidance_lib.THRESHOLDS)
        raise ValueError(f"threshold = {name!r}: must be one of {allowed}")
    return guidance_lib.THRESHOLDS[name]
