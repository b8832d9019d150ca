"""Texts in every encoding of Unicode; names that are no text."""

import os

import pytest

from vdm_jax.data import text_files


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]
)
@pytest.mark.parametrize("text", ["a red box\n\u00fcber \U0001f600\n", "a", ""])
def test_texts_are_read_whatever_their_encoding(encoding, text, tmp_path):
    if encoding == "utf-32-le" and len(text) < 2:
        pytest.skip("too short to tell")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert text_files.read_text(tmp_path / "a.txt") == text


def test_another_encoding_is_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt is not utf-8 \(.* at byte 3\); save it as UTF-8"):
        text_files.read_text(tmp_path / "a.txt")


def test_what_is_no_text_is_made_one():
    assert text_files.clean("a \ud83d\ude00 \udc00 b") == "a \U0001f600 \ufffd b"
    name = os.fsdecode(b"caf\xe9")
    assert text_files.readable(name) == "caf\ufffd"
    assert text_files.shown(name) == r"caf\xe9"
    assert text_files.shown("\u00fcber") == "\u00fcber"
