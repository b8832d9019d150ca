"""Beam's pipeline gives what the pool of processes gives."""

import pytest

from tests.data.curation import films
from vdm_jax.data.curation import beam, curate, engine
from vdm_jax.data.curation.settings import Settings
from vdm_jax.data.source import DataError

try:
    import apache_beam  # noqa: F401

    INSTALLED = True
except ImportError:
    INSTALLED = False


@pytest.mark.skipif(INSTALLED, reason="Apache Beam is installed")
def test_the_missing_package_is_named():
    with pytest.raises(DataError, match=r'pip install "vdm_jax\[beam\]"'):
        beam.in_pipeline(2)


@pytest.mark.skipif(not INSTALLED, reason="Apache Beam is not installed")
def test_tables_and_shards_are_equal(tmp_path):
    import pyarrow.parquet

    for seed in range(3):
        films.write(tmp_path / "videos" / f"{seed}.mp4", films.scene(seed, 60))
    (tmp_path / "videos" / "broken.mp4").write_text("no film")
    tables, shards = [], []
    for name, pool in (("pool", films.serially), ("beam", beam.in_pipeline(2))):
        out = tmp_path / name
        work = engine.Work(videos=str(tmp_path / "videos"), out=str(out), settings=Settings())
        curate.run(work, pool)
        tables.append(pyarrow.parquet.read_table(out / "clips.parquet").to_pylist())
        shards.append([path.read_bytes() for path in sorted((out / "train").iterdir())])
    assert tables[0] == tables[1] and len(tables[0]) == 4
    assert shards[0] == shards[1] and shards[0]
