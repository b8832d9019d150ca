"""Text files of any Unicode encoding that says what it is."""

import codecs
from pathlib import Path

# UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: str | Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says (UTF-8, UTF-16 or UTF-32).

    The mark is no part of the text. Raises ValueError, with the line and what to do, for other
    encodings, and OSError.
    """
    content = Path(path).read_bytes()
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


def check_text(text: str) -> None:
    """Raises ValueError for a text with half of a surrogate pair, which no encoder takes.

    Python makes one of each byte of a command line that is not in the terminal's encoding.
    """
    for number, letter in enumerate(text, 1):
        if "\ud800" <= letter <= "\udfff":
            raise ValueError(
                f"{ascii(text[:60])}: character {number} is half a surrogate pair "
                f"(U+{ord(letter):04X}), which is no text; give it in UTF-8"
            )
