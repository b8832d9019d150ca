"""The commands and the Python of README and docs, as a reader copies them."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What stands for what a reader puts in its place: MODEL, FOLDER, NAME/VARIANT.
_PLACE = re.compile(r"^[A-Z][A-Z_]*\b|[<>…]|\.\.\.")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line. where: file and line, for messages. whole: it stands in a block of its own;
    in a table it may be the beginning of one."""

    where: str
    words: tuple[str, ...]
    whole: bool


def pages() -> list[Path]:
    """README and every page of docs that a reader copies from."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def is_place(text: str) -> bool:
    """Whether a value stands for one of the reader's own."""
    return bool(_PLACE.search(text)) or text.startswith(("runs/", "/path"))


def commands(starts: tuple[str, ...]) -> list[Command]:
    """The command lines that begin with one of `starts`, of code blocks and of tables."""
    found = []
    for page in pages():
        for number, line, whole in _lines(page):
            for part in re.split(r"\s&&\s|\s\|\s", line):
                words = _words(part)
                if words and any(words[: len(start.split())] == start.split() for start in starts):
                    where = f"{page.relative_to(ROOT)}:{number}"
                    found.append(Command(where, tuple(words), whole and "…" not in part))
    return found


def python_blocks() -> list[tuple[str, str]]:
    """(file and line, program) of each block of Python; those of a page go on from each other."""
    found = []
    for page in pages():
        for number, block in _blocks(page.read_text()):
            if re.match(r"(import|from) \w", block) and "vdm_jax" in block:
                found.append((f"{page.relative_to(ROOT)}:{number}", block))
    return found


def _lines(page: Path) -> Iterator[tuple[int, str, bool]]:
    text = page.read_text()
    for number, block in _blocks(text):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            yield number, line, True
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("|"):
            for code in re.findall(r"`(vdm [^`]+)`", line):
                yield number, code, False


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """(first line's number, text) of fenced blocks and of blocks that are set in by four spaces."""
    lines, at, before = text.splitlines(), 0, ""
    while at < len(lines):
        line, start = lines[at], at
        if re.match(r"\s*(```|:::)", line):
            at += 1
            while at < len(lines) and not re.match(r"\s*(```|:::)\s*$", lines[at]):
                at += 1
            yield start + 2, "\n".join(part.strip() for part in lines[start + 1 : at])
        elif line.startswith("    ") and not before.strip():
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            yield start + 1, "\n".join(part[4:] for part in lines[start:at]).rstrip()
            at -= 1
        before, at = lines[at] if at < len(lines) else "", at + 1


def _words(line: str) -> list[str]:
    """The words of a command line: without its comment, without what may be left out."""
    line = re.sub(r"\[(--?[^\]]*|[A-Z]+)\]", "", line.strip().removeprefix("$ "))
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return [word for word in words if word not in ("...", "…", "&", "\\")]
