"""How well the captions of the kept clips match their pictures, by CLIP.

Captions may change after a film is measured, so this is a pass of its own: embeddings of texts are
kept in `OUT/texts`, those of pictures are among the film's measurements.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from vdm_jax.data.curation import clip_scores, files, filters
from vdm_jax.data.curation.engine import Work
from vdm_jax.data.curation.filters import ClipRow
from vdm_jax.data.curation.records import Content
from vdm_jax.data.curation.settings import digest

SCORE = "similarity"
_FOLDER = "texts"


def match(work: Work, rows: Sequence[ClipRow], contents: Mapping[str, Content]) -> list[ClipRow]:
    """The rows, the kept ones with a score `similarity` where `work.settings.look.clip` is set, and
    without those that its range removes.

    The score is the greatest over the clip's captions, of which training draws one. contents: by
    digest. Raises DataError where CLIP cannot be read.
    """
    folder = work.settings.look.clip
    if not folder:
        return list(rows)
    (Path(work.out) / _FOLDER).mkdir(exist_ok=True)
    embed = _kept(work, folder)
    scored = []
    for row in rows:
        if row.kept:
            pictures = clip_scores.stored(filters.measured_row(row, contents, clip_scores.STAGE))
            found = [clip_scores.similarity(pictures, embed(text)) for text in set(row.captions)]
            row = filters.with_score(row, SCORE, max(found), work.settings)
        scored.append(row)
    return scored


def _kept(work: Work, folder: str) -> Callable[[str], Float32[np.ndarray, "d"]]:
    """The embedding of a text, computed once."""

    def embed(text: str) -> Float32[np.ndarray, "d"]:
        path = Path(work.out, _FOLDER, digest(folder, text))
        try:
            return np.frombuffer(path.read_bytes(), "<f4")
        except FileNotFoundError:
            found = clip_scores.load_texts(folder)(text).astype("<f4")
            files.replace(path, found.tobytes())
            return found

    return embed
