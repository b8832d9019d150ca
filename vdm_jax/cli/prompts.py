"""Prompts of a command line and of files."""

import argparse
import dataclasses
import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Sampler flags that a line of a JSONL file may set; the shape of videos is the whole command's.
LINE_SETTINGS = ("steps", "guidance", "negative", "sampler", "grid", "eta", "churn", "corrector")
LINE_SETTINGS += ("oscillate_after", "threshold", "guidance_start", "guidance_end")
_LINE_FIELDS = ("prompt", "seed", "num_samples", *LINE_SETTINGS)
_JSON_LINES = (".jsonl", ".ndjson")
_MOST_ALTERNATIVES = 10_000  # prompts of one text; more is a mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A prompt, and what its line sets beside it; None = what the command's flags say.

    Attributes:
      settings: flags of `LINE_SETTINGS` and their values.
    """

    prompt: str
    seeds: tuple[int, ...] | None = None
    num_samples: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(texts: Sequence[str], flag: str = "--prompt") -> list[str]:
    """The prompts of a flag, each with its alternatives written out (`alternatives`).

    Raises ValueError, naming the flag, for a text with half of a surrogate pair.
    """
    check(texts, flag)
    return [prompt for text in texts if text for prompt in alternatives(text)]


def read_lines(
    texts: Sequence[str], file: str | None, parser: argparse.ArgumentParser
) -> list[Line]:
    """The prompts of --prompt, then those of --prompts_file.

    The file has a prompt a line, or, where it is named .jsonl or .ndjson, a JSON object a line with
    the fields prompt, seed (an integer or a list of them), num_samples and any of `LINE_SETTINGS`.
    Empty lines and lines that begin with # are left out. The file is in any encoding of Unicode
    (`text_files.read_text`).

    parser: has the flags that check the values of a line. Raises FileNotFoundError and ValueError,
    naming the flag and the line.
    """
    from vdm_jax.data import text_files

    lines = [Line(prompt=prompt) for prompt in read(texts)]
    if file is None:
        return lines
    path, flag = Path(file), f"--prompts_file={file}"
    if not path.is_file():
        raise FileNotFoundError(f"{flag}: there is no such file")
    try:
        text = text_files.read_text(path)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        found = Line(prompt=line)
        if path.suffix.lower() in _JSON_LINES:
            found = _from_json(line, parser, f"{flag}, line {number}")
        for prompt in read([found.prompt], flag) or [""]:
            lines.append(dataclasses.replace(found, prompt=prompt))
    return lines


def alternatives(text: str) -> list[str]:
    """Every text that `text` stands for: {red|blue} is red in one and blue in the next.

    The last of several lists changes fastest. Braces without | between them are ordinary letters.
    Raises ValueError where there are too many.
    """
    parts = re.split(r"\{([^{}]*\|[^{}]*)\}", text)
    lists = [part.split("|") if at % 2 else [part] for at, part in enumerate(parts)]
    count = 1
    for choices in lists:
        count *= len(choices)
    if count > _MOST_ALTERNATIVES:
        raise ValueError(f"{text[:60]!r}: stands for {count} prompts; at most {_MOST_ALTERNATIVES}")
    return ["".join(choice).strip() for choice in itertools.product(*lists)]


def check(texts: Sequence[str], flag: str) -> None:
    """Raises ValueError, naming the flag, for a text with half of a surrogate pair.

    No encoder takes it. Python makes one of each byte of a command line that is not in the
    terminal's encoding.
    """
    for text in texts:
        for number, letter in enumerate(text, 1):
            if "\ud800" <= letter <= "\udfff":
                raise ValueError(
                    f"{flag}: {ascii(text[:60])}: character {number} is half a surrogate pair "
                    f"(U+{ord(letter):04X}), which is no text; give it in UTF-8"
                )


def _from_json(text: str, parser: argparse.ArgumentParser, where: str) -> Line:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f'{where}: must be an object, such as {{"prompt": "a red circle"}}')
    for name in fields:
        if name not in _LINE_FIELDS:
            near = difflib.get_close_matches(name, _LINE_FIELDS, n=1, cutoff=0.0)[0]
            hint = f"--{name} sets it for all" if _has(parser, name) else f"the nearest is {near}"
            raise ValueError(f"{where}: a line has no field {name}; {hint}")
    prompt = fields.pop("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: prompt = {prompt!r}: must be a text")
    seeds = fields.pop("seed", None)
    if seeds is not None:
        seeds = tuple(seeds) if isinstance(seeds, list) else (seeds,)
        if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise ValueError(f"{where}: seed: must be an integer of at least 0, or a list of them")
    settings = {name: _value(parser, name, value, where) for name, value in fields.items()}
    return Line(
        prompt=prompt,
        seeds=seeds,
        num_samples=settings.pop("num_samples", None),
        settings=settings,
    )


def _has(parser: argparse.ArgumentParser, name: str) -> bool:
    return any(f"--{name}" in action.option_strings for action in parser._actions)


def _value(parser: argparse.ArgumentParser, name: str, value: Any, where: str) -> Any:
    """A JSON value as the flag of its name reads it. Raises ValueError."""
    action = next(one for one in parser._actions if f"--{name}" in one.option_strings)
    is_text = action.type is None
    if isinstance(value, bool) or not isinstance(value, str if is_text else (int, float)):
        kind = "a text" if is_text else "a number"
        raise ValueError(f"{where}: {name} = {value!r}: must be {kind}")
    try:
        return value if is_text else action.type(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{where}: {name} = {value!r}: {error}") from None
