"""Ratings against closed forms, their intervals, and votes by figures and from files."""

import json

import numpy as np
import pytest

from vdm_jax.evaluation import elo, votes
from vdm_jax.evaluation.elo import Vote


@pytest.mark.parametrize("share", [0.5, 0.6, 0.75, 0.99])
def test_two_players_differ_by_the_odds_of_winning(share):
    found = elo.fit(np.array([[0, share], [1 - share, 0]]) * 100, draws=0)
    assert found[0] - found[1] == pytest.approx(400 * np.log10(share / (1 - share)), abs=1e-6)
    assert found.mean() == pytest.approx(elo.MEAN)


def test_imagined_draws_count_as_votes():
    found = elo.fit(np.array([[0.0, 7], [0, 0]]), draws=1)
    assert found[0] - found[1] == pytest.approx(400 * np.log10(7.5 / 0.5), abs=1e-6)


def test_expected_wins_of_many_players_give_their_ratings():
    true = np.array([1210.0, 1030, 980, 780])
    expected = 1 / (1 + 10 ** ((true[None] - true[:, None]) / 400))
    games = np.array([[0, 5, 1, 8], [5, 0, 3, 1], [1, 3, 0, 2], [8, 1, 2, 0]])
    np.testing.assert_allclose(elo.fit(games * expected, draws=0), true, atol=1e-6)
    several = elo.fit(np.stack([games * expected, (games * expected).T]), draws=0)
    np.testing.assert_allclose(several[1] - 1000, 1000 - several[0], atol=1e-6)


@pytest.mark.parametrize("wins", [[[0, 5], [0, 0]], [[0, 0], [0, 0]]])
def test_infinite_ratings_are_refused(wins):
    with pytest.raises(ValueError, match="ratings are infinite"):
        elo.fit(np.array(wins, float), draws=0)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 60 sets of 100 votes with a win share of 0.6."""
    truth, hits = 200 * np.log10(0.6 / 0.4), 0
    rng = np.random.default_rng(0)
    for _ in range(60):
        wins = rng.random(100) < 0.6
        cast = [Vote(first="a", second="b", sample=i, share=float(w)) for i, w in enumerate(wins)]
        found = {one.name: one for one in elo.rate("ab", cast, replicates=200)}
        hits += found["a"].low <= elo.MEAN + truth <= found["a"].high
    assert 51 <= hits <= 60


def test_votes_on_one_sample_are_resampled_together():
    """The same 40 votes, on 40 samples or on 2: the second is less certain."""

    def width(samples):
        cast = [
            Vote(first="a", second="b", sample=i % samples, share=float(i % samples < samples / 2))
            for i in range(40)
        ]
        found = elo.rate("ab", cast, replicates=300)[0]
        return found.high - found.low

    assert width(2) > 2 * width(40)


def test_players_without_votes_are_unknown_and_others_are_refused():
    with pytest.raises(ValueError, match="no votes"):
        elo.rate("ab", [])
    with pytest.raises(ValueError, match="a vote on 'c': the players are a, b"):
        elo.rate("ab", [Vote(first="a", second="c", sample=0, share=1)])


def test_better_samples_get_the_votes_and_nan_is_a_draw():
    quality = {"a": np.array([1.0, 2, np.nan]), "b": np.array([0.0, 2, 1]), "c": np.zeros(3)}
    shares = {(v.first, v.second, v.sample): v.share for v in votes.by_quality(quality)}
    assert [shares["a", "b", sample] for sample in range(3)] == [1, 0.5, 0.5]
    assert shares["b", "c", 0] == 0.5 and shares["b", "c", 2] == 1 and len(shares) == 9


def test_nearness_is_the_mean_distance_to_the_nearest_references():
    references = np.array([[0.0, 0], [3, 4], [0, 5], [100, 0]])
    found = votes.nearness(np.array([[0.0, 0], [100, 0]]), references)
    np.testing.assert_allclose(found[0], -(0 + 5 + 5) / 3)
    assert found[1] < found[0]
    with pytest.raises(ValueError, match="2 held-out clips: votes by features need 3"):
        votes.nearness(references, references[:2])


def test_more_of_a_caption_gets_the_vote():
    from vdm_jax.data import shapes

    caption = "a red circle moving left"
    scene = [shapes.parse_caption(caption)]
    right = shapes.render_clips(scene, size=16, num_frames=8)[0]
    backwards = right[::-1]
    found = votes.correctness(np.stack([right, backwards, 0 * right]), [caption] * 3)
    assert found[0] == 2 and found[0] > found[1] > found[2]


def line(**changes):
    return json.dumps({"first": "q0", "second": "q0.5", "sample": 1, "share": 0.5} | changes)


def test_votes_are_read_from_a_file(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text(line() + "\n\n" + line(share=1) + "\n")
    found = votes.read(path, ["q0", "q0.5"], 2)
    assert [one.share for one in found] == [0.5, 1] and found[0].second == "q0.5"


@pytest.mark.parametrize(
    "text,message",
    [
        ("no", "line 1: is no vote, such as"),
        (line(more=1), "line 1: is no vote"),
        (line(first="q1"), "first = 'q1', second = 'q0.5': must be two of q0, q0.5"),
        (line(first="q0.5"), "must be two of"),
        (line(share=2), "share = 2: must be 0 to 1"),
        (line(share="1"), "share = '1': must be"),
        (line(sample=2), "sample = 2: must be 0 to 1"),
    ],
)
def test_a_line_that_is_no_vote_is_named(tmp_path, text, message):
    path = tmp_path / "votes.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        votes.read(path, ["q0", "q0.5"], 2)
