"""What text goes with the clips of a film.

A film's own captions are in a text or JSON file beside it, as `video_folder` reads them. A film
without one is captioned by its name, or its folder's, which says what somebody called the file and
not what is seen; the table says so. `captioning` replaces both by captions of learned models.
"""

import dataclasses
import re
from pathlib import Path

from vdm_jax.data import text_files, video_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """Texts of which training draws one, and where they come from: "file", "name" or "command"."""

    texts: tuple[str, ...]
    source: str


def film_captions(path: Path) -> Captions:
    """The captions of a film. Raises Unusable where a file with captions cannot be read."""
    if any(path.with_suffix(suffix).is_file() for suffix in (".txt", ".json")):
        return Captions(texts=video_folder.captions_beside(path), source="file")
    words = [_words(path.stem), _words(path.absolute().parent.name)]
    texts = [text for text in words if re.search(r"[^\W\d_]{2}", text)]
    return Captions(texts=(texts[0] if texts else words[0] or "video",), source="name")


def _words(name: str) -> str:
    """A file's name as words: separators become spaces, numbers that stand alone are left out."""
    words = re.split(r"[\s_.+\-]+", text_files.clean(text_files.readable(name)))
    return " ".join(word for word in words if word and not word.isdigit())
