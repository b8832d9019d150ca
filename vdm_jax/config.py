"""Configurations: find a file by name, override fields, validate, save as JSON.

A configuration is an `ml_collections.ConfigDict`, returned by `get_config()` of a Python file under
`configs/`. Each mistake that is visible in it (an unknown field, a value of the wrong type, a
choice that is not offered, a number out of range, sizes that do not divide) is a `ConfigError`. It
is raised before anything is compiled, and names the field, the value and what is allowed.

Files and flags (`--config=FILE[:ARGUMENT] --config.FIELD=VALUE`) are those of
`ml_collections.config_flags`, which reads them too (tests/test_config.py). Its parser is not used
here: it needs absl's global flags, stops at the first error without the nearest field's name, reads
no tuple of plain texts (--config.train.sample_prompts="a red circle,a blue square"), and accepts a
tuple of numbers of another type.
"""

import ast
import difflib
import importlib.util
import inspect
import json
import math
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from vdm_jax import data, parallel, stage, training
from vdm_jax.rules import Choice

# Fields that a resumed run may change: they decide for how long it trains, how often it reports,
# where and in which precision it runs. An entry ending in "." names a whole section.
MAY_CHANGE_ON_RESUME = (
    "device",
    "mesh.",
    "model.dtype",
    "model.remat",
    "data.data_dir",
    "data.source_fps",
    "data.workers",
    "text.weights",
    "train.steps",
    "train.minutes",
    "train.moment_dtype",
    "train.skip_nonfinite",
    "train.init_from",
    "train.lora.base",  # its digest may not
    "train.control.base",
    "train.tuning.base",
    "train.log_every",
    "train.sample_every",
    "train.sample_prompts",
    "checkpoint.",
    "sample.",
)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field and what is allowed."""


def config_folder() -> Path:
    """The directory of the configurations: the installed package's, or `configs/` of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """The names of the configurations, such as vdm/moving_shapes."""
    files = config_folder().rglob("*.py")
    found = [path for path in files if not path.name.startswith("_")]  # else it is a recipe
    return sorted(path.relative_to(config_folder()).with_suffix("").as_posix() for path in found)


def load_recipe(file: str, relative: str) -> ModuleType:
    """The module of a recipe: what several configurations have in common.

    file: `__file__` of the configuration; relative: the recipe's path from there. Configurations
    are found by path, in a checkout or an installed package, and so is what they share.
    """
    path = (Path(file).parent / relative).resolve()
    spec = importlib.util.spec_from_file_location(f"vdm_jax_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: its recipe {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_config(config: str | Path) -> tuple[Path, str | None]:
    """The file of a configuration and the argument of its `get_config`.

    config: NAME or FILE, or either with `:ARGUMENT` behind it. A NAME is one of `config_names()`.
    Raises ConfigError with the nearest name.
    """
    text, argument = str(config), None
    if not Path(text).exists() and ":" in text:
        text, argument = text.rsplit(":", 1)
    if Path(text).is_file():
        return Path(text), argument
    named = config_folder() / f"{text}.py"
    if text in config_names():
        return named, argument
    known = text.removeprefix("configs/").removesuffix(".py")
    near = difflib.get_close_matches(known, config_names(), n=1, cutoff=0.0)
    nearest = f"; the nearest name is {near[0]}" if near else ""
    raise ConfigError(f"--config={text}: there is no such file or configuration{nearest}")


def named_config(arguments: Sequence[str]) -> str | None:
    """What --config names on a command line; None where it does not."""
    for at, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
        if argument == "--config" and at + 1 < len(arguments):
            return arguments[at + 1]
    return None


def load_config(config: str | Path, overrides: Mapping[str, str] | None = None):
    """Runs `get_config()` of a configuration, applies `overrides`, validates and locks.

    Args:
      config: as in `find_config`.
      overrides: dotted fields to text, as typed on a command line.

    Raises ConfigError.
    """
    path, argument = find_config(config)
    loaded = _run_file(path, argument, str(config))
    for field, text in (overrides or {}).items():
        override(loaded, field, text)
    validate(loaded)
    return loaded.lock()


def _run_file(path: Path, argument: str | None, name: str):
    spec = importlib.util.spec_from_file_location(f"vdm_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={name}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"--config={name}: the file defines no get_config()")
        parameters = inspect.signature(module.get_config).parameters.values()
        needed = [one.name for one in parameters if one.default is one.empty]
        if argument is not None and not parameters:
            raise ConfigError(f"--config={name}: get_config() takes no argument")
        if needed and argument is None:
            raise ConfigError(f"--config={name}: needs an argument: {name}:{needed[0].upper()}")
        return module.get_config() if argument is None else module.get_config(argument)
    except (AttributeError, KeyError, TypeError) as error:
        if mistake := _mistake_in_file(path, error):
            raise ConfigError(mistake) from error
        raise


def split_overrides(
    arguments: Sequence[str], flag: str = "config"
) -> tuple[dict[str, str], list[str]]:
    """Takes `--config.field=value` and `--config.field value` out of a command line.

    flag: the name in the place of `config`. Returns the overrides by dotted field, and the
    arguments that are left, in order.
    """
    overrides, rest = {}, []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith(f"--{flag}."):
            rest.append(argument)
            continue
        field, equals, value = argument.removeprefix(f"--{flag}.").partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"--{flag}.{field}: no value given; write --{flag}.{field}=VALUE")
            value = queue.pop(0)
        overrides[field] = value
    return overrides, rest


def override(config, field: str, text: str, flag: str = "config") -> None:
    """Sets the dotted `field` of `config` to `text`, read as the type of its present value.

    flag: what a command line calls the configuration. Raises ConfigError.
    """
    section = config
    names = field.split(".")
    for depth, name in enumerate(names):
        is_last = depth == len(names) - 1
        known = isinstance(section, ml_collections.ConfigDict) and name in section
        if not known or (is_last and isinstance(section[name], ml_collections.ConfigDict)):
            raise ConfigError(_unknown_field(config, field, flag))
        if not is_last:
            section = section[name]
    expected = section.get_type(names[-1])
    with section.unlocked():
        section[names[-1]] = _read(f"--{flag}.{field}", text, section[names[-1]], expected)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted field, value) for every leaf of a configuration."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_json(config) -> str:
    """The configuration as JSON text; `from_json` gives back an equal configuration."""
    return json.dumps(to_dict(config), indent=2)


def to_dict(config) -> dict[str, Any]:
    """The configuration as nested plain dictionaries (tuples become lists, as in JSON)."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(text: str):
    """A locked configuration from `to_json` text (lists become tuples)."""
    return from_dict(json.loads(text))


def from_dict(values: Mapping[str, Any]):
    """A locked configuration from nested plain dictionaries (lists become tuples)."""
    return ml_collections.ConfigDict(_lists_to_tuples(values)).lock()


def resume_differences(saved, current) -> list[str]:
    """The fields that forbid resuming a run of `saved` with `current`: "field: old -> new" each.

    Fields of `MAY_CHANGE_ON_RESUME` are left out, and those that are off (false, zero or empty) in
    one of the two and not in the other: a run of a version that did not have them yet goes on.
    """
    # Through JSON, so that a tuple equals the list that it was saved as.
    old, new = dict(flatten(to_dict(saved))), dict(flatten(to_dict(current)))
    absent = "(absent)"
    differences = []
    for field in sorted(old.keys() | new.keys()):
        before, now = old.get(field, absent), new.get(field, absent)
        added_off = absent in (before, now) and not (before and now)
        if before != now and not added_off and not _may_change(field):
            differences.append(f"{field}: {before!r} -> {now!r}")
    return differences


# --- validation ---------------------------------------------------------------------------------


# What a value may be, in every configuration that has the field: each component's own rules.
RULES: dict[str, Any] = {
    "device": Choice(("any", "cpu", "gpu", "tpu")),
    **parallel.RULES,
    **data.RULES,
    **stage.RULES,
    **training.RULES,
}


def validate(config) -> None:
    """Raises ConfigError, listing every value that is not allowed."""
    fields = dict(flatten(config))
    problems = [
        f"{field} = {fields[field]!r}: must be {rule}"
        for field, rule in RULES.items()
        if fields.get(field) is not None and not rule.allows(fields[field])
    ]
    problems += [
        f"{field} = {value!r}: must be finite"
        for field, value in fields.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if not problems:
        problems = training.check(fields)
    if problems:
        raise ConfigError("\n".join(problems))


# --- reading text -------------------------------------------------------------------------------

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _read(flag: str, text: str, present: Any, expected: type) -> Any:
    def refuse(wanted: str) -> ConfigError:
        return ConfigError(f"{flag}={text}: {text!r} is not {wanted}")

    if expected is bool:
        if text.lower() not in _BOOLEANS:
            raise refuse("a boolean (true or false)")
        return _BOOLEANS[text.lower()]
    if expected is int:
        try:
            return int(text)
        except ValueError:
            raise refuse(f"an integer (the default is {present!r})") from None
    if expected is float:
        try:
            return float(text)
        except ValueError:
            raise refuse(f"a number (the default is {present!r})") from None
    if expected is str:
        return text
    if expected in (tuple, list):
        return _read_sequence(text, present, refuse)
    # The default is None, which has no type: read a literal, or else plain text.
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _read_sequence(text: str, present: Sequence[Any], refuse) -> tuple[Any, ...]:
    kinds = {type(item) for item in present}
    wanted = f"a tuple such as {tuple(present)!r}" if present else "a tuple such as (1,2,4)"
    # Plain texts, as typed: --config.train.sample_prompts="a red circle,a blue square".
    texts = tuple(word.strip() for word in text.split(",") if word.strip())
    if kinds == {str} and not text.strip().startswith(("(", "[")):
        return texts
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if not present:
            return texts
        raise refuse(wanted) from None
    value = tuple(value) if isinstance(value, list | tuple) else (value,)
    if kinds == {float}:
        value = tuple(float(item) if type(item) is int else item for item in value)
    if len(kinds) == 1 and any(type(item) is not next(iter(kinds)) for item in value):
        raise refuse(wanted)
    return value


# --- messages -----------------------------------------------------------------------------------


def _unknown_field(config, field: str, flag: str) -> str:
    fields = [name for name, _ in flatten(config)]
    inside = [name for name in fields if name.startswith(field + ".")]
    if inside:
        return f"--{flag}.{field} is a section; its fields are {', '.join(inside)}"
    # The same last name in another section is likelier meant than a similar whole path.
    last = field.rsplit(".", 1)[-1]
    same_name = [name for name in fields if name.rsplit(".", 1)[-1] == last]
    near = same_name or difflib.get_close_matches(field, fields, n=1, cutoff=0.0)
    return f"--{flag}.{field}: unknown field; the nearest is --{flag}.{near[0]}"


def _mistake_in_file(path: Path, error: Exception) -> str:
    """What a configuration file does wrong, with the line; "" where `error` is another one's."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    if not lines or "ml_collections" not in frames[-1].filename:
        return ""
    # ml_collections quotes its own messages, some of them twice.
    text = str(error).replace("\\n", "\n").replace("\\", "")
    unknown = re.search(r"^['\"]*(?:Key \")?(\w+)['\"]", text)
    meant = re.search(r'Did you mean "(\w+)"', text)
    problem = text
    if not isinstance(error, TypeError) and unknown:
        fields = re.findall(r"['\"](\w+)['\"]: ", text)
        near = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.0)
        nearest = meant[1] if meant else next(iter(near), "")
        problem = f"unknown field {unknown[1]}" + (f"; the nearest is {nearest}" if nearest else "")
    return f"{path}, line {lines[-1].lineno}: {lines[-1].line}: {problem}"


def _may_change(field: str) -> bool:
    return any(
        field.startswith(name) if name.endswith(".") else field == name
        for name in MAY_CHANGE_ON_RESUME
    )


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _lists_to_tuples(item) for name, item in value.items()}
    if isinstance(value, list):
        return tuple(_lists_to_tuples(item) for item in value)
    return value
