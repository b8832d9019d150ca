"""What text goes with a clip.

A film's own captions are in a text or JSON file beside it, as `video_folder` reads them. A film
without one is captioned by its name and its folder's, which says what somebody called the file and
not what is seen; the table says so.

Learned captions come from commands, each of which prints one caption: of the middle frame, of the
clip, and of both merged by a language model. Training draws them with probabilities .5, .25 and .25
(Stable Video Diffusion, section 3.1), because the first is stored twice.
"""

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

from vdm_jax.data import text_files, video_folder
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable

_SECONDS = 600  # that a command may take for one clip


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


def run_command(command: str, **values: str) -> str:
    """The text that a command prints.

    command: in which `{name}` stands for a value; it is not run by a shell. Raises Unusable where
    it fails or prints nothing, DataError where it cannot be started or names another value.
    """
    try:
        arguments = [part.format(**values) for part in shlex.split(command)]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise DataError(
            f"captions: {command!r} is no command ({error}); it may use {known}"
        ) from None
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except OSError as error:
        raise DataError(f"captions: {arguments[0]!r} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Unusable(f"its caption took more than {_SECONDS} s") from None
    text = " ".join(done.stdout.split())
    if done.returncode or not text:
        lines = done.stderr.strip().splitlines()
        detail = f": {lines[-1]}" if lines else ""
        raise Unusable(f"its caption failed with status {done.returncode}{detail}")
    return text_files.clean(text)
