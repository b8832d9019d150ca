"""The page shows every score and every failure, and is one file that asks for nothing else."""

import re

import numpy as np
import pytest

from tests.data.curation import films
from vdm_jax.data.curation import curate, engine, report
from vdm_jax.data.curation.settings import Range, Settings


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    films.write(root / "videos" / "<b>bold & 'quoted'.mp4", films.scene(1, 60))
    films.write(root / "videos" / "two.mp4", films.scene(2, 60, pan=(0, 1)))
    films.write(root / "videos" / "two again.mp4", films.scene(2, 60, pan=(0, 1))[2:], gop=10)
    (root / "videos" / "broken.mp4").write_text("no film")
    work = engine.Work(videos=str(root / "videos"), out=str(root / "out"), settings=Settings())
    results = curate.run(work, films.serially, shards=False)
    return results.report.read_text(encoding="utf-8")


def test_every_score_has_a_histogram_and_pictures(page):
    names = ("motion", "camera", "objects", "still", "shake", "coded_motion", "sharpness")
    names += ("colourfulness", "brightness", "clipped", "black", "border")
    sections = {
        match[1]: match[2] for match in re.finditer(r"<h2>([^<]+)</h2>(.*?)(?=<h2>|</body>)", page)
    }
    for name in names:
        assert "<svg" in sections[name]
        assert sections[name].count("<img") == 3
        counts = re.findall(r": (\d+) clips</title>", sections[name])
        assert sum(map(int, counts)) == 3
    assert (
        "--config.keep.motion=0.02:" in sections["motion"] and "keeps 3 of 3" in sections["motion"]
    )


def test_failures_and_copies_are_listed(page):
    assert "broken.mp4</td><td>unreadable" in page
    assert "1 clips show what an earlier clip shows" in page
    assert "seconds of film a second a core" in page


def test_names_are_escaped_and_nothing_is_loaded(page):
    assert "&lt;b&gt;bold &amp; &#x27;quoted&#x27;.mp4" in page and "<b>bold" not in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert 'name="viewport"' in page


def test_outliers_share_the_last_bar():
    values = np.append(np.linspace(0, 1, 999), 1000.0)
    drawn = report._histogram(np.sort(values), Range(least=0.5))
    counts = list(map(int, re.findall(r": (\d+) clips</title>", drawn)))
    assert sum(counts) == 1000
    assert max(counts) < 60
    assert "≥ " in drawn
    bars = re.findall(r"var\(--(kept|dropped)\)", drawn)
    assert bars == ["dropped"] * bars.count("dropped") + ["kept"] * bars.count("kept")
    assert abs(bars.count("kept") - 20) <= 1
