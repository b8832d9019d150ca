"""Texts that people wrote, in whatever Unicode encoding their editor saved them."""

import codecs
import json
import os
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    A lone surrogate becomes U+FFFD, the replacement character. Raises ValueError for another
    encoding, and OSError.
    """
    raw = Path(path).read_bytes()
    marked = [encoding for mark, encoding in _MARKS if raw.startswith(mark)]
    # Without a mark, the places of zero bytes tell (RFC 4627, section 3).
    encoding = marked[0] if marked else json.detect_encoding(raw)
    try:
        return clean(raw.decode(encoding, "surrogatepass"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown(Path(path).name)} is not {encoding} ({error.reason} at byte {error.start}); "
            "save it as UTF-8"
        ) from None


def clean(text: str) -> str:
    """The text with U+FFFD in the place of each lone surrogate, which no encoding can write."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(path: str | os.PathLike) -> str:
    r"""A path as it can be printed: bytes that are not UTF-8 as \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def readable(name: str) -> str:
    """A file's name as a text: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")
