"""Figures with all that they depend on, and comparisons that refuse what is not comparable."""

import dataclasses
import importlib.metadata
import json
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

_MISSING = "(missing)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """What a network's features depend on. Raises ValueError for a value of another type.

    Attributes:
      name: the network and its layer, "i3d logits".
      weights: a hash of their file.
      precision: that they are computed in, "float32".
      padding: what the network is given of clips shorter than it takes, "repeat last".
    """

    name: str
    weights: str | None = None
    precision: str | None = None
    padding: str | None = None

    def __post_init__(self):
        _coerce(self)


# Files and tables have the features' fields beside the others, by these names and in this order.
_FEATURES = {
    "padding": "padding",
    "features": "name",
    "weights": "weights",
    "precision": "precision",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """All but the model that a figure depends on: figures are comparable if it is equal.

    What was sampled, and how (the model's name, sampler, steps, guidance), is no part of it, but
    `Result.subject`. None stands for what a metric does not have, such as the features of PSNR.
    Raises ValueError for a value of another type, for numbers below 1 where they count something,
    and for options that are not JSON.

    Attributes:
      metric: its name, "fvd".
      dataset, split: that the references, and the samples' prompts, are from.
      samples, references: how many clips (of a metric of frames: frames).
      frames: a clip's length.
      stride: of its frames in the video.
      size: height and width in pixels at which videos are compared.
      crop: how frames of another shape are cut, "center".
      resize: the filter of every resizing, that to the network's input too, "bilinear antialias".
      features: of the network that looks at the clips.
      seed: of the choice of clips, the samples' noise and the metric's own draws.
      options: of the metric, {"k": 3}.
      version: of this library.
    """

    metric: str
    dataset: str
    split: str
    samples: int
    references: int | None
    frames: int
    stride: int
    size: tuple[int, int]
    crop: str | None
    resize: str | None
    features: Features | None
    seed: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: str = dataclasses.field(default_factory=lambda: importlib.metadata.version("vdm_jax"))

    def __post_init__(self):
        _coerce(self)
        for name in ("samples", "references", "frames", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: must be 1 or more")
        if min(self.size) < 1:
            raise ValueError(f"size {self.size}: must be 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values. Those of `features` are beside the others."""
        fields: dict[str, Any] = {}
        for name, value in _encoded_fields(self).items():
            if name != "features":
                fields[name] = value
                continue
            found = value or {}
            fields |= {key: found.get(field) for key, field in _FEATURES.items()}
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError naming fields that are unknown or missing."""
        names = [field.name for field in dataclasses.fields(cls)]
        place = names.index("features")
        _check_names(cls, fields, [*names[:place], *_FEATURES, *names[place + 1 :]])
        rest = {name: value for name, value in fields.items() if name not in _FEATURES}
        features = {field: fields[key] for key, field in _FEATURES.items()}
        known = any(value is not None for value in features.values())
        return cls(**rest, features=Features(**features) if known else None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A figure. Raises ValueError for values of another type, and for half an interval.

    Attributes:
      protocol: what it depends on.
      subject: what was measured, {"model": ..., "sampler": ..., "steps": ..., "guidance": ...}, of
        JSON values.
      value: of the metric.
      n: how many clips (of a metric of frames: frames) went into it.
      low, high: of its confidence interval. Need not contain the value, if that is biased.
      level: of the interval.
      standard_error: of the value.
      extra: further figures by name, such as `fvd_infinity`.
      note: what a reader of the figure must know, such as clips that were left out.
    """

    protocol: Protocol
    subject: Mapping[str, Any]
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    level: float | None = None
    standard_error: float | None = None
    extra: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""

    def __post_init__(self):
        _coerce(self)
        interval = (self.low, self.high, self.level)
        if any(x is None for x in interval) and interval != (None, None, None):
            raise ValueError(f"low, high and level {interval}: must all be given, or none")
        if self.low is not None and not self.low <= self.high:
            raise ValueError(f"low {self.low}, high {self.high}: low must not be above high")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; infinities and NaN as the strings "inf", "-inf" and "nan"."""
        return _encoded_fields(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError naming fields that are unknown or missing."""
        if isinstance(fields.get("protocol"), Mapping):
            fields = {**fields, "protocol": Protocol.from_dict(fields["protocol"])}
        fields = {"note": "", **fields}  # older files have none
        _check_names(cls, fields, [field.name for field in dataclasses.fields(cls)])
        return cls(**fields)


def save(path: Path, results: Sequence[Result]) -> None:
    """The results as JSON."""
    path.write_text(json.dumps([result.to_dict() for result in results], indent=1) + "\n")


def load(path: Path) -> list[Result]:
    """What `save` wrote. Raises ValueError as `Result.from_dict` does."""
    return [Result.from_dict(fields) for fields in json.loads(path.read_text())]


def differences(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """The fields in which two protocols differ, with both values; options as `options.NAME`."""
    flat_a, flat_b = _flat(a), _flat(b)
    return {
        name: (flat_a.get(name, _MISSING), flat_b.get(name, _MISSING))
        for name in dict.fromkeys([*flat_a, *flat_b])
        if flat_a.get(name, _MISSING) != flat_b.get(name, _MISSING)
    }


def compare(
    results_a: Sequence[Result], results_b: Sequence[Result], *, ignore: Sequence[str] = ()
) -> str:
    """A Markdown table of two subjects: both figures, b - a, and whether their intervals overlap.

    Results are paired by equal protocols. Raises ValueError, naming the fields and both values,
    where a metric was measured by different protocols, or of different n or levels of the interval;
    where it was measured on one side only; and where a side has several subjects, or one protocol
    twice. `ignore` names fields that may differ nevertheless, such as `version` (or `n`, `level`);
    the table then says so.

    Figures whose intervals do not overlap differ; of those whose intervals overlap, some do too.
    """
    subject_a, subject_b = _subject(results_a, "a"), _subject(results_b, "b")
    known = {name for r in (*results_a, *results_b) for name in _flat(r.protocol)}
    if unknown := sorted(set(ignore) - known - {"n", "level"}):
        raise ValueError(f"ignore {unknown}: no fields of the protocols")
    pairs = _pairs(results_a, results_b, set(ignore))
    waived = {name: both for a, b in pairs for name, both in _differ(a, b, set()).items()}
    name_a, name_b = _titles(subject_a, subject_b)
    lines = [f"- {name_a}: {_describe(subject_a)}", f"- {name_b}: {_describe(subject_b)}"]
    if waived:
        lines.append(f"- ignored: {_listed(waived)}")
    lines += ["", f"| metric | {name_a} | {name_b} | difference | intervals |"]
    lines.append("|---|---:|---:|---:|---|")
    labels = _labels([a.protocol for a, _ in pairs])
    for (a, b), label in zip(pairs, labels, strict=True):
        difference = f"{b.value - a.value:+.4g}"
        lines.append(f"| {label} | {figure(a)} | {figure(b)} | {difference} | {_overlap(a, b)} |")
        for name in (name for name in a.extra if name in b.extra):
            x, y = a.extra[name], b.extra[name]
            lines.append(f"| {label}: {_cell(name)} | {x:.4g} | {y:.4g} | {y - x:+.4g} | |")
    notes = [
        f"- {name}, {label}: {result.note}"
        for pair, label in zip(pairs, labels, strict=True)
        for name, result in zip((name_a, name_b), pair, strict=True)
        if result.note
    ]
    lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def figure(result: Result) -> str:
    """The value with its interval, or else with its standard error."""
    text = f"{result.value:.4g}"
    if result.low is not None:
        return f"{text} [{result.low:.4g}, {result.high:.4g}]"
    return text if result.standard_error is None else f"{text} ± {result.standard_error:.2g}"


def told(protocol: Protocol) -> str:
    """On one line: the metric, and all that it depends on."""
    fields = _flat(protocol)
    metric = fields.pop("metric")
    parts = [f"{name} {value}" for name, value in fields.items() if value not in (None, "")]
    return f"{metric}: {', '.join(parts)}"


def _pairs(results_a, results_b, ignore: set[str]) -> list[tuple[Result, Result]]:
    """Each result of a with its equal of b."""
    for side, results in (("a", results_a), ("b", results_b)):
        for i, result in enumerate(results):
            found = [differences(result.protocol, other.protocol) for other in results[:i]]
            if any(set(names) <= ignore for names in found):
                raise ValueError(f"{result.protocol.metric}: twice by one protocol in {side}")
    left, pairs, unmatched = list(results_b), [], []
    for a in results_a:
        match = next((b for b in left if not _differ(a, b, ignore)), None)
        if match is None:
            unmatched.append(a)
        else:
            left.remove(match)
            pairs.append((a, match))
    for a in unmatched:
        others = [b for b in left if b.protocol.metric == a.protocol.metric]
        if others:
            nearest = min((_differ(a, b, ignore) for b in others), key=len)
            raise ValueError(f"{a.protocol.metric} is not comparable: {_listed(nearest)}")
    if unmatched or left:
        names = [f"{r.protocol.metric} (a)" for r in unmatched]
        names += [f"{r.protocol.metric} (b)" for r in left]
        raise ValueError(f"measured on one side only: {', '.join(names)}")
    return pairs


def _differ(a: Result, b: Result, ignore: set[str]) -> dict[str, tuple[Any, Any]]:
    found = differences(a.protocol, b.protocol)
    if a.n != b.n:
        found["n"] = (a.n, b.n)
    if None not in (a.level, b.level) and a.level != b.level:
        found["level"] = (a.level, b.level)
    return {name: values for name, values in found.items() if name not in ignore}


def _subject(results: Sequence[Result], side: str) -> Mapping[str, Any]:
    if not results:
        raise ValueError(f"{side}: no results")
    for result in results[1:]:
        if result.subject != results[0].subject:
            both = f"{_describe(results[0].subject)} and {_describe(result.subject)}"
            raise ValueError(f"{side}: results of several subjects, {both}")
    return results[0].subject


def _flat(protocol: Protocol) -> dict[str, Any]:
    fields = protocol.to_dict()
    options = fields.pop("options")
    return {**fields, **{f"options.{name}": value for name, value in options.items()}}


def _titles(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, str]:
    """The models' names, if they tell the subjects apart."""
    names = [_cell(str(subject.get("model", ""))) for subject in (a, b)]
    return (names[0], names[1]) if all(names) and names[0] != names[1] else ("a", "b")


def _labels(protocols: Sequence[Protocol]) -> list[str]:
    """The metric of each, with the fields that tell several of one metric apart."""
    labels = []
    for protocol in protocols:
        namesakes = [other for other in protocols if other.metric == protocol.metric]
        names = dict.fromkeys(n for other in namesakes for n in differences(protocol, other))
        flat = _flat(protocol)
        apart = ", ".join(f"{name} {flat.get(name, _MISSING)}" for name in names)
        labels.append(_cell(protocol.metric + (f" ({apart})" if apart else "")))
    return labels


def _overlap(a: Result, b: Result) -> str:
    if a.low is None or b.low is None:
        return ""
    return "overlap" if a.low <= b.high and b.low <= a.high else "apart"


def _describe(subject: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in subject.items()) or "(nothing said)"


def _listed(found: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {a!r} and {b!r}" for name, (a, b) in found.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _encode(value: Any) -> Any:
    """JSON values without NaN and infinities, of which JSON has none."""
    if isinstance(value, Protocol):
        return value.to_dict()
    if isinstance(value, Features):
        return _encoded_fields(value)
    if isinstance(value, Mapping):
        return {name: _encode(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _encoded_fields(value: Any) -> dict[str, Any]:
    return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _check_names(cls: type, fields: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"{cls.__name__}: unknown fields {', '.join(unknown)}")
    # Also those with a default: it may be another by now.
    if missing := [name for name in known if name not in fields]:
        raise ValueError(f"{cls.__name__}: missing fields {', '.join(missing)}")


def _coerce(value: Any) -> None:
    """Makes the fields of a frozen dataclass what their annotations say, or raises ValueError."""
    for name, hint in typing.get_type_hints(type(value)).items():
        given = getattr(value, name)
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        try:
            made = None if given is None and types.NoneType in options else _as(given, options[0])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} {given!r}: must be {_say(hint)}") from error
        object.__setattr__(value, name, made)


def _as(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, bool):
        raise TypeError(value)
    if hint is int:
        return operator.index(value)
    if hint is float:
        if isinstance(value, str) and value not in ("inf", "-inf", "nan"):
            raise TypeError(value)
        return float(value)
    if hint in (str, Features, Protocol):
        if not isinstance(value, hint):
            raise TypeError(value)
        return value
    if origin is tuple:
        return tuple(_as(x, a) for x, a in zip(value, arguments, strict=True))
    if arguments[1] is float:
        return {str(name): _as(x, float) for name, x in dict(value).items()}
    # A copy of JSON values, so that 16 and (1, 2) are what they will be when read back.
    return json.loads(json.dumps(dict(value), allow_nan=False))


def _say(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)
