"""Prompts of a command line and of files."""

from collections.abc import Sequence
from pathlib import Path


def read(texts: Sequence[str], file: str | None = None) -> list[str]:
    """The prompts of --prompt, then those of --prompts_file, one a line.

    Empty lines, and lines of the file that begin with #, are left out.

    The file is in any encoding of Unicode (`text_files.read_text`). Raises FileNotFoundError and
    ValueError, naming the flag: for other encodings, and for a prompt with half a surrogate pair.
    """
    from vdm_jax.data import text_files

    check(texts, "--prompt")
    prompts = list(texts)
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"--prompts_file={path}: there is no such file")
        try:
            text = text_files.read_text(path)
        except ValueError as error:
            raise ValueError(f"--prompts_file={path}: {error}") from None
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if not line.startswith("#")]
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
