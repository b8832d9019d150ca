"""What `vdm sample` is asked for, a sample at a time, and the recipe that asks for it again.

A recipe, which every file holds (`data.recipes`), has the model and its digest, the flags that
samples depend on, and the samples of the file. `vdm sample --like=FILE` reads it.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import vdm_jax
from vdm_jax.cli import prompts as prompts_lib

# Flags that no sample depends on, or that its request holds.
_APART = ("prompt", "prompts_file", "seed", "num_samples", "like", "out", "format", "preview")
_APART += ("device", "mesh", "offload", "batch_size", "coordinator", "num_processes", "process_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One sample.

    Attributes:
      place: its number among the samples of its seed; its noise is a function of seed and place.
      settings: sampler flags that differ from the command's, see `prompts.LINE_SETTINGS`.
    """

    prompt: str
    seed: int
    place: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Samples that are drawn together: of one seed and one setting, with places in a row.

    Attributes:
      indices: their numbers in the command's list.
    """

    indices: tuple[int, ...]
    requests: tuple[Request, ...]

    @property
    def prompts(self) -> list[str]:
        return [request.prompt for request in self.requests]

    @property
    def seed(self) -> int:
        return self.requests[0].seed

    @property
    def first(self) -> int:
        return self.requests[0].place

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.requests[0].settings


def from_lines(
    lines: Sequence[prompts_lib.Line], seeds: Sequence[int], num_samples: int
) -> list[Request]:
    """The samples of prompts: of each seed in turn, each line's.

    A sample is that of a command with one seed and the same lines. A line with seeds of its own is
    sampled once for each of these, and its samples depend on no other line.
    """
    found = []
    for number, seed in enumerate(seeds):
        place = 0
        for line in lines:
            count = line.num_samples or num_samples
            own = line.seeds
            if own is None:
                places, own = range(place, place + count), (seed,)
                place += count
            elif number == 0:
                places = range(count)
            else:
                continue
            found += [
                Request(prompt=line.prompt, seed=one, place=at, settings=line.settings)
                for one in own
                for at in places
            ]
    return found


def changed(
    requests: Sequence[Request], prompts: Sequence[str], seeds: Sequence[int]
) -> list[Request]:
    """The same samples with other prompts or seeds; none of either: as they are."""
    found = list(requests)
    if prompts:
        found = [dataclasses.replace(one, prompt=text) for text in prompts for one in found]
    if seeds:
        found = [dataclasses.replace(one, seed=seed) for seed in seeds for one in found]
    return list({_text(one): one for one in found}.values())


def groups(requests: Sequence[Request], wanted: Sequence[int]) -> Iterator[Group]:
    """The requests with the numbers `wanted`, as they are drawn together."""
    alike: dict[str, list[int]] = {}
    for index in wanted:
        one = requests[index]
        alike.setdefault(json.dumps([one.seed, one.settings], sort_keys=True), []).append(index)
    for indices in alike.values():
        indices.sort(key=lambda index: requests[index].place)
        at = 0
        for end in range(1, len(indices) + 1):
            before = requests[indices[end - 1]].place
            if end == len(indices) or requests[indices[end]].place != before + 1:
                part = tuple(indices[at:end])
                yield Group(indices=part, requests=tuple(requests[index] for index in part))
                at = end


def identities(requests: Sequence[Request], base: Mapping[str, Any]) -> list[str]:
    """What names the content of each sample.

    base: what they depend on beside their requests, whose settings take precedence.
    """
    names = []
    for one in requests:
        fields = {**base, **one.settings, "sample": [one.prompt, one.seed, one.place]}
        names.append(hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest())
    return names


def recipe(model: str, digest: str, flags: Sequence[str], requests: Sequence[Request]) -> dict:
    """The recipe of a file with these samples. flags: of `kept_flags`."""
    return {
        "vdm_jax": vdm_jax.__version__,
        "command": "vdm sample",
        "model": model,
        "digest": digest,
        "flags": list(flags),
        "samples": [dataclasses.asdict(one) for one in requests],
    }


def from_recipe(found: Mapping[str, Any], path: str | Path) -> tuple[list[str], list[Request]]:
    """The flags and the samples of a recipe. Raises ValueError for one of another command."""
    if found.get("command") != "vdm sample":
        raise ValueError(
            f"--like={path}: was made by {found.get('command', 'another command')}, and only "
            "samples are made again; its flags: " + " ".join(map(str, found.get("flags", ())))
        )
    try:
        flags = [f"--model={found['model']}", *map(str, found["flags"])]
        samples = [
            Request(
                prompt=str(one["prompt"]),
                seed=int(one["seed"]),
                place=int(one["place"]),
                settings=dict(one["settings"]),
            )
            for one in found["samples"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"--like={path}: its recipe is damaged: {error!r}") from None
    unknown = {name for one in samples for name in one.settings} - {*prompts_lib.LINE_SETTINGS}
    apart = [flag for flag in flags if flag.removeprefix("--").partition("=")[0] in _APART]
    if unknown or apart or not samples:
        raise ValueError(f"--like={path}: its recipe is damaged: {sorted(unknown) or apart}")
    return flags, samples


def kept_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """The flags of a command line that samples depend on, each as `--name=value`, but --model."""
    found, queue = [], list(arguments)
    while queue:
        name, equals, value = queue.pop(0).partition("=")
        action = parser._option_string_actions.get(name)
        takes_value = action is None or action.nargs != 0
        if takes_value and not equals and queue:
            value = queue.pop(0)
        if name.startswith("--") and name.removeprefix("--") not in (*_APART, "model"):
            found.append(f"{name}={value}" if takes_value else name)
    return found


def _text(request: Request) -> str:
    return json.dumps(dataclasses.asdict(request), sort_keys=True)
