"""Ratings of players from votes on pairs of them, in Elo's unit, with intervals.

Stable Video Diffusion (Blattmann et al. 2023, appendix E) ranks small models, each trained on
another cut of the data, by people's votes on pairs of samples. There ratings are Elo's updates,
which depend on the order of the votes. Here they are the maximum of the likelihood of the same
model (Bradley & Terry 1952), which does not.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MEAN = 1000.0  # of all ratings
UNIT = 400 / np.log(10)  # rating points of a factor of e in the odds of winning
_STEPS = 200  # of Newton's method
_MOST_STEP = 2.0  # of a step, in the logarithm of the odds
_FAR = 40.0  # a logarithm of odds beyond which a rating has no finite maximum


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """Which of two players made the better sample.

    Attributes:
      first, second: the players' names.
      sample: the number of the sample. All players make it of the same caption and noise.
      share: 1 where the first is better, 0 where the second is, 0.5 where they are equal.
    """

    first: str
    second: str
    sample: int
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rating:
    """A player's rating with its confidence interval, and the share of its votes that it wins."""

    name: str
    value: float
    low: float
    high: float
    share: float


def rate(
    players: Sequence[str],
    votes: Sequence[Vote],
    *,
    draws: float = 1.0,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Rating]:
    """The ratings of all players, best first.

    The intervals are percentiles of a bootstrap over samples: votes on one sample are resampled
    together, because its caption may suit some players more. draws: see `fit`. Raises ValueError
    for no votes and for votes on other players.
    """
    if not votes:
        raise ValueError("there are no votes to rate players by")
    places = {name: place for place, name in enumerate(players)}
    samples = {number: row for row, number in enumerate(sorted({one.sample for one in votes}))}
    wins = np.zeros((len(samples), len(players), len(players)))
    for one in votes:
        if unknown := {one.first, one.second} - {*players}:
            raise ValueError(
                f"a vote on {sorted(unknown)[0]!r}: the players are {', '.join(players)}"
            )
        row, a, b = samples[one.sample], places[one.first], places[one.second]
        wins[row, a, b] += one.share
        wins[row, b, a] += 1 - one.share
    total = wins.sum(0)
    drawn = np.random.default_rng(seed).multinomial(
        len(samples), np.full(len(samples), 1 / len(samples)), size=replicates
    )
    spread = fit(np.tensordot(drawn, wins, axes=1), draws=draws)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], axis=0)
    shares = total.sum(1) / np.maximum(total.sum(1) + total.sum(0), 1e-12)
    rows = zip(players, fit(total, draws=draws), low, high, shares, strict=True)
    found = [
        Rating(name=name, value=float(v), low=float(a), high=float(b), share=float(s))
        for name, v, a, b, s in rows
    ]
    return sorted(found, key=lambda one: -one.value)


def fit(wins: Float[np.ndarray, "... n n"], *, draws: float = 1.0) -> Float[np.ndarray, "... n"]:
    """The likeliest ratings, with a mean of 1000.

    If the ratings of two players differ by d, the better player wins with odds of 10^(d / 400).

    Args:
      wins: how often the player of the row beats that of the column; a draw is half a win of each.
      draws: imagined draws of each pair, which keep ratings finite where one wins every vote.

    Raises ValueError where ratings are infinite.
    """
    count = wins.shape[-1]
    wins = wins + draws / 2 * (1 - np.eye(count))
    games = wins + np.swapaxes(wins, -1, -2)
    odds = np.zeros(wins.shape[:-1])
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(odds[..., None, :] - odds[..., :, None]))
        slope = (wins - games * expected).sum(-1)
        weight = games * expected * (1 - expected)
        curve = weight.sum(-1)[..., None] * np.eye(count) - weight
        # A constant that is added to all ratings changes nothing; ones / n hold their mean.
        try:
            step = np.linalg.solve(curve + 1 / count, slope[..., None])[..., 0]
        except np.linalg.LinAlgError:
            odds[...] = np.inf
            break
        odds = odds + np.clip(step, -_MOST_STEP, _MOST_STEP)
        if np.abs(step).max(initial=0) < 1e-10 or np.abs(odds).max() > _FAR:
            break
    if np.abs(odds).max(initial=0) > _FAR:
        raise ValueError(
            "ratings are infinite: a player wins every vote, or players share none; draws above 0 "
            "keep them finite"
        )
    return MEAN + UNIT * (odds - odds.mean(-1, keepdims=True))
