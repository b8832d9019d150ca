"""Models that stay loaded between the commands of one process."""

import jax
import pytest

from vdm_jax import pipelines
from vdm_jax.cli import common, kept_models, parsing
from vdm_jax.pipelines import model as pretrained


def options(source):
    parser = parsing.parser("vdm test", "")
    common.add_model_arguments(parser)
    return parser.parse_args([f"--model={source}", "--device=cpu"])


def test_a_model_is_loaded_once_while_its_file_is_the_same(model_file, tmp_path, monkeypatch):
    copy, loads = tmp_path / "model.safetensors", []
    copy.write_bytes(model_file.read_bytes())
    load = pipelines.load
    monkeypatch.setattr(
        pipelines, "load", lambda *of, **more: loads.append(of) or load(*of, **more)
    )
    with kept_models.keeping(kept_models.KeptModels()):
        first = common.load_any(options(copy))
        assert common.load_model(options(copy)) is first and len(loads) == 1
        # Another content under the same name.
        twice = jax.tree.map(lambda leaf: 2 * leaf, first.params)
        pretrained.save_model(copy, twice, first.config)
        assert common.load_any(options(copy)) is not first and len(loads) == 2
    assert common.load_any(options(copy)) is not common.load_any(options(copy))  # as before


def test_the_model_that_was_used_longest_ago_goes_first():
    kept, loads = kept_models.KeptModels(most=2), []

    def get(name):
        return kept.get((name,), lambda: loads.append(name) or name)

    for name in "abacab":
        assert get(name) == name
    assert "".join(loads) == "abcb"


def test_a_cascade_is_refused_where_one_model_is_needed():
    with pytest.raises(ValueError, match="is a cascade, and one model is needed here"):
        common.load_model(options("lumiere_tiny"))
