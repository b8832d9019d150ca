"""Shapes of parameters, kept beside compiled programs: the same as traced, or traced again."""

import jax
import pytest

from vdm_jax import systems
from vdm_jax.pipelines import kept_shapes
from vdm_jax.pipelines import model as pretrained


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_shapes, "_cache", lambda: str(tmp_path))
    return tmp_path / "shapes"


@pytest.fixture(scope="module")
def config():
    return pretrained.read_config("moving_shapes")


def test_a_second_load_reads_what_the_first_traced(folder, config, monkeypatch):
    stage = systems.build(config)
    traced = kept_shapes.abstract_params(stage, config)
    assert len([*folder.iterdir()]) == 1
    monkeypatch.setattr(type(stage), "abstract_params", lambda self: pytest.fail("traced again"))
    read = kept_shapes.abstract_params(stage, config)
    assert jax.tree.structure(read) == jax.tree.structure(traced)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), traced, read)
    assert all(jax.tree.leaves(same))


def test_a_damaged_file_and_other_code_are_traced_again(folder, config, monkeypatch):
    class Stage:
        times = 0

        def abstract_params(self):
            self.times += 1
            return systems.build(config).abstract_params()

    stage = Stage()
    kept_shapes.abstract_params(stage, config)
    (file,) = folder.iterdir()
    file.write_text(file.read_text()[:100])
    kept_shapes.abstract_params(stage, config)
    kept_shapes.abstract_params(stage, config)
    assert stage.times == 2
    monkeypatch.setattr(kept_shapes, "_sources", lambda: [("unet.py", 1, 1)])
    kept_shapes.abstract_params(stage, config)
    assert stage.times == 3


def test_without_a_cache_or_a_place_to_write_shapes_are_traced(config, monkeypatch, tmp_path):
    stage = systems.build(config)
    (tmp_path / "file").write_text("")
    for place in (None, "gs://bucket/cache", str(tmp_path / "file")):
        monkeypatch.setattr(kept_shapes, "_cache", lambda place=place: place)
        assert jax.tree.leaves(kept_shapes.abstract_params(stage, config))
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]
