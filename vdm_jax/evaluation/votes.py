"""Votes on pairs of samples, by a figure of each sample or from a person's file."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.evaluation.elo import Vote

NEIGHBOURS = 3  # held-out clips that a sample's distance is the mean to
METRICS = {
    "features": "the sample whose I3D logits are nearer to held-out clips is better",
    "judge": "the sample that shows more of what its caption says is better; rendered data only",
    "warp": "the sample with the smaller warp error is better",
}


def by_quality(qualities: Mapping[str, Float[np.ndarray, "n"]]) -> list[Vote]:
    """A vote on every sample of every pair of players.

    qualities: by player, one a sample; the greater is better, and NaN equals everything.
    """
    found = []
    for (first, ours), (second, theirs) in itertools.combinations(qualities.items(), 2):
        for sample, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            share = 0.5 if not a < b and not a > b else float(a > b)
            found.append(Vote(first=first, second=second, sample=sample, share=share))
    return found


def nearness(
    samples: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n"]:
    """Of each sample, minus its mean distance to the nearest references.

    Raises ValueError for too few references.
    """
    if len(references) < NEIGHBOURS:
        raise ValueError(f"{len(references)} held-out clips: votes by features need {NEIGHBOURS}")
    squares = (samples**2).sum(1)[:, None] + (references**2).sum(1) - 2 * samples @ references.T
    nearest = np.partition(np.maximum(squares, 0), NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return -np.sqrt(nearest).mean(1)


def correctness(
    videos: UInt8[np.ndarray, "n f h w 3"], captions: Sequence[str]
) -> Float[np.ndarray, "n"]:
    """Of each sample, the share of its caption's factors that the judge finds; 1 more where it
    finds all of them and nothing else. Raises ValueError for captions that no judge reads."""
    from vdm_jax.evaluation import judge, vocabularies

    vocabulary = vocabularies.choose(captions)
    found = []
    for video, caption in zip(videos, captions, strict=True):
        score = judge.score(video[None], [caption], vocabulary)
        factors = [score[name] for name in vocabulary.factors if name in score]
        found.append(np.mean(factors) + score["all"])
    return np.array(found)


def read(path: str | Path, players: Sequence[str], samples: int) -> list[Vote]:
    """Votes of a JSONL file: a line is an object with the fields of `elo.Vote`.

    Raises ValueError, naming the line, for anything else, and OSError.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            vote = Vote(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: is no vote, such as "
                '{"first": "q0", "second": "q0.5", "sample": 0, "share": 1}: ' + str(error)
            ) from None
        if vote.first not in players or vote.second not in players or vote.first == vote.second:
            raise ValueError(
                f"{path}, line {number}: first = {vote.first!r}, second = {vote.second!r}: must be "
                f"two of {', '.join(players)}"
            )
        is_number = isinstance(vote.share, int | float) and math.isfinite(vote.share)
        if not is_number or not 0 <= vote.share <= 1:
            raise ValueError(f"{path}, line {number}: share = {vote.share!r}: must be 0 to 1")
        if type(vote.sample) is not int or not 0 <= vote.sample < samples:
            raise ValueError(
                f"{path}, line {number}: sample = {vote.sample!r}: must be 0 to {samples - 1}"
            )
        found.append(vote)
    return found
