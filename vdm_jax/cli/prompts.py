"""Prompts of a command line and of files."""

import codecs
from collections.abc import Sequence
from pathlib import Path

# UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read(texts: Sequence[str], file: str | None = None) -> list[str]:
    """The prompts of --prompt, then those of --prompts_file, one a line; empty ones are left out.

    The file is UTF-8, or what its byte order mark says (UTF-8, UTF-16 or UTF-32). Raises
    FileNotFoundError and ValueError, naming the flag: for other encodings, and for a prompt with
    half a surrogate pair.
    """
    check(texts, "--prompt")
    prompts = list(texts)
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"--prompts_file={path}: there is no such file")
        try:
            text = _decoded(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"--prompts_file={path}: {error}") from None
        lines = [line.strip() for line in text.splitlines()]
        check(lines, f"--prompts_file={path}")
        prompts += lines
    return [prompt for prompt in prompts if prompt]


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


def _decoded(content: bytes) -> str:
    encoding = "utf-8"
    for mark, marked in _MARKS:
        if content.startswith(mark):
            encoding, content = marked, content[len(mark) :]
            break
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"is not {encoding.upper()}: byte {content[error.start]:#04x} in line {line}; save it "
            "as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            "has zero bytes, as UTF-16 without a byte order mark has; save it as UTF-8"
        )
    return text
