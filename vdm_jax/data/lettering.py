"""Text in pictures: captions of any script and length, drawn without boxes for missing letters.

Letters that Pillow's own font lacks are drawn with a font of this machine that has them. Letters
that no font here has become escapes, such as `\\u4e2d`.
"""

import functools
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

SIZE = 13  # pixels
MOST = 1000  # characters of a caption that are looked at; no picture is wide enough for more
_MOST_FILES = 300  # fonts that are tried for a letter where fontconfig is missing
_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)
# A character that is never assigned: what a font draws for letters that it lacks.
_MISSING = "\uffff"


class Lettering:
    """Measures and draws lines of text in one size, with as many fonts as the text needs."""

    def __init__(self, size: int = SIZE):
        """size: of the letters, in pixels."""
        self._size = size
        self._fonts = [ImageFont.load_default(size=size)]
        self._font_of: dict[str, ImageFont.FreeTypeFont | None] = {}
        self._searched: set[int] = set()

    def line(self, text: str, width: float) -> str:
        """The text as one line of at most `width` pixels, with escapes for what cannot be drawn.

        Only the beginning of a longer text is read; "..." takes the place of the rest.
        """
        drawable = self._drawable(text[:MOST])
        whole = len(text) <= MOST
        if whole and self.width(drawable) <= width:
            return drawable
        low, high = 0, len(drawable)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(drawable[:middle] + "...") <= width:
                low = middle
            else:
                high = middle - 1
        return drawable[:low].rstrip() + "..."

    def width(self, line: str) -> float:
        """The width of a line that `line` gave, in pixels."""
        return sum(font.getlength(part) for font, part in self._runs(line))

    def draw(
        self, draw: ImageDraw.ImageDraw, place: tuple[float, float], line: str, fill: tuple
    ) -> None:
        """Draws a line that `line` gave; `place` is its left end and its top."""
        left, top = place
        baseline = top + self._fonts[0].getmetrics()[0]
        for font, part in self._runs(line):
            draw.text((left, baseline), part, fill=fill, font=font, anchor="ls")
            left += font.getlength(part)

    def _drawable(self, text: str) -> str:
        letters = []
        for letter in " ".join(text.split()):
            known = letter == " " or self._font(letter) is not None
            letters.append(letter if known else _escaped(letter))
        return "".join(letters)

    def _runs(self, line: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        """Parts of the line that one font draws."""
        font, part = self._fonts[0], ""
        for letter in line:
            wanted = font if letter == " " else self._font(letter) or self._fonts[0]
            if wanted is not font and part:
                yield font, part
                part = ""
            font = wanted
            part += letter
        if part:
            yield font, part

    def _font(self, letter: str) -> ImageFont.FreeTypeFont | None:
        """The font that draws a letter, None if none does."""
        if letter not in self._font_of:
            self._font_of[letter] = self._find(letter)
        return self._font_of[letter]

    def _find(self, letter: str) -> ImageFont.FreeTypeFont | None:
        kind = unicodedata.category(letter)
        if kind[0] == "C":  # control, format, lone surrogate, unassigned: nothing that is seen
            return None
        right_to_left = unicodedata.bidirectional(letter) in ("R", "AL")
        if (right_to_left or kind[0] == "M") and not features.check("raqm"):
            return None  # without it Pillow neither joins nor orders such letters
        for font in self._fonts:
            if _has(font, letter):
                return font
        block = ord(letter) // 128
        if block in self._searched:
            return None  # its neighbours were looked for: another search would find no more
        self._searched.add(block)
        for path in _font_files(letter):
            font = _load(path, self._size)
            if font is not None and _has(font, letter):
                self._fonts.append(font)
                return font
        return None


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font has a letter: whether it draws it unlike one that no font has."""
    try:
        return _picture(font, letter) != _picture(font, _MISSING)
    except (OSError, ValueError, UnicodeError):
        return False


def _picture(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError):  # a bitmap font of other sizes, or no font
        return None


def _font_files(letter: str) -> list[str]:
    """Files of fonts that may have a letter, the plainest first."""
    files = _by_fontconfig(letter) if shutil.which("fc-list") else None
    return sorted(_in_folders() if files is None else files, key=_plainness)


def _by_fontconfig(letter: str) -> list[str] | None:
    command = ["fc-list", "--format=%{file}\n", f":charset={ord(letter):x}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [os.fsdecode(line) for line in done.stdout.splitlines() if line]


@functools.cache
def _in_folders() -> list[str]:
    kinds = (".ttf", ".otf", ".ttc")
    found = [
        str(path)
        for folder in _FOLDERS
        if sys.platform == "win32" or not folder.startswith("C:")
        for path in Path(folder).expanduser().rglob("*")
        if path.suffix.lower() in kinds
    ]
    return sorted(found, key=_plainness)[:_MOST_FILES]


def _plainness(path: str) -> tuple[bool, bool, int, str]:
    name = Path(path).stem.lower()
    styled = any(style in name for style in ("bold", "italic", "oblique", "condensed", "mono"))
    return styled, "sans" not in name, len(name), name
