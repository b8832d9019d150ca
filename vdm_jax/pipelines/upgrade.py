"""Saved configurations of older versions, brought to today's fields."""

from collections.abc import Callable, Mapping
from typing import Any

_GONE = {
    "heads": 0,
    "initial_kernel": 3,
    "initial_temporal": False,
    "null_condition": "learned",
}
_NEW = {"output_gate": False, "text_kernel": 0, "guidance_embedding": False}


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration, as plain dictionaries, with the fields of today's.

    Raises ValueError if it has a value that no longer exists.
    """
    config = dict(config)
    for name, change in _SECTIONS.items():
        if name in config:
            config[name] = change(dict(config[name]))
    return config


def _model(model: dict[str, Any]) -> dict[str, Any]:
    for name, only in _GONE.items():
        value = model.pop(name, only)
        if value != only:
            raise ValueError(
                f"model.{name} = {value!r}: this version has no such field, and builds networks as "
                f"with {only!r} only; load the model with the version that made it"
            )
    model = _NEW | model
    # 0, or the number of gains a pixel. More than one: see `models.unet.Output.gate`.
    if model["output_gate"] in (0, 1):
        model["output_gate"] = bool(model["output_gate"])
    return model


_SECTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"model": _model}
