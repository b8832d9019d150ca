"""Prompts of a command line and of files."""

from collections.abc import Sequence
from pathlib import Path


def read(texts: Sequence[str], file: str | None = None) -> list[str]:
    """The prompts of --prompt, then those of --prompts_file, one a line; empty ones are left out.

    Raises FileNotFoundError and ValueError, naming the flag: for a file that is not Unicode text,
    and for a prompt with half a surrogate pair.
    """
    from vdm_jax.data import text_files

    check(texts, "--prompt")
    prompts = list(texts)
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"--prompts_file={path}: there is no such file")
        try:
            lines = text_files.read_text(path).splitlines()
        except ValueError as error:
            raise ValueError(f"--prompts_file={path}: {error}") from None
        stripped = [line.strip() for line in lines]
        check(stripped, f"--prompts_file={path}")
        prompts += stripped
    return [prompt for prompt in prompts if prompt]


def check(texts: Sequence[str], flag: str) -> None:
    """Raises ValueError, naming the flag, for a text that no encoder takes."""
    from vdm_jax.data import text_files

    for text in texts:
        try:
            text_files.check_text(text)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
