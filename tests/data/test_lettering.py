"""Captions in pictures: any script, any length."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vdm_jax.data import lettering, video_io


@pytest.fixture
def without_fonts(monkeypatch):
    """A machine that has no font but Pillow's own."""
    monkeypatch.setattr(lettering, "_font_files", lambda letter: [])


def drawn(line):
    sheet = Image.new("L", (300, 24))
    lettering.Lettering().draw(ImageDraw.Draw(sheet), (2, 1), line, 255)
    return np.asarray(sheet)


def test_a_letter_that_no_font_has_becomes_an_escape(without_fonts):
    text = lettering.Lettering()
    assert text.line("a red cafe", 400) == "a red cafe"
    assert text.line("红 circle", 400) == "\\u7ea2 circle"
    assert text.line("a\ud800b\x07\U0001f600", 400) == "a\\ud800b\\x07\\U0001f600"
    assert text.line("two\nlines\tand  more", 400) == "two lines and more"


def test_a_font_of_this_machine_is_used_where_it_has_the_letter(monkeypatch, tmp_path):
    """Pillow's own font, in a file of another size, stands for a font that has more letters."""
    larger = ImageFont.load_default(size=30)
    asked = []

    def has(font, letter):
        return font is larger if letter in "红色" else letter != "蓝"

    def font_files(letter):
        asked.append(letter)
        return ["larger"]

    monkeypatch.setattr(lettering, "_has", has)
    monkeypatch.setattr(lettering, "_font_files", font_files)
    monkeypatch.setattr(lettering, "_load", lambda path, size: larger)
    text = lettering.Lettering()
    assert text.line("a 红色 b", 400) == "a 红色 b"
    assert asked == ["红"]  # the second letter is in a font that is open
    assert [part for _, part in text._runs("a 红色 b")] == ["a ", "红色 ", "b"]
    assert text.line("蓝", 400) == "\\u84dd"


def test_what_a_font_lacks_is_recognised():
    font = ImageFont.load_default(size=13)
    assert lettering._has(font, "a") and lettering._has(font, "~")
    assert not lettering._has(font, "红") and not lettering._has(font, "\U0001f9ff")


def test_boxes_are_not_drawn(without_fonts):
    text = lettering.Lettering()
    box = drawn("\uffff")  # what a font draws for what it lacks
    line = text.line("红", 400)
    assert not np.array_equal(drawn(line), box) and not np.array_equal(drawn("红"), drawn(line))


@pytest.mark.parametrize("letter", ["x", "红", " ", "\u0301"])
def test_the_work_does_not_grow_with_a_caption(letter, monkeypatch, without_fonts):
    """Counted in letters that a font measures: it used to be the square of the length."""
    measured = 0
    original = ImageFont.FreeTypeFont.getlength

    def getlength(self, text, *args, **kwargs):
        nonlocal measured
        measured += len(text)
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", getlength)
    line = lettering.Lettering().line(letter * 100_000, 400)
    assert len(line) < 3000 and lettering.Lettering().width(line) <= 400
    assert measured < 100_000


def test_a_sheet_of_an_endless_caption_is_written(tmp_path):
    videos = np.zeros((2, 2, 8, 8, 3), np.uint8)
    captions = ["red " * 25_000, "红色圆圈"]
    with Image.open(video_io.contact_sheet(tmp_path / "a.png", videos, captions)) as sheet:
        assert sheet.width < 1000
