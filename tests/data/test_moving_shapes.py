"""The TFDS builder: written and read back without TensorFlow."""

import dataclasses
import sys

import numpy as np
import pytest

from vdm_jax.data import moving_shapes, shapes
from vdm_jax.data.moving_shapes import MovingShapes

CONFIGS = {config.name: config for config in MovingShapes.BUILDER_CONFIGS}


@pytest.mark.parametrize("name", ["16x16x8", "32x32x16_two"])
def test_builder_writes_what_is_rendered(name, tmp_path):
    config = dataclasses.replace(
        CONFIGS[name], name=f"{name}_tiny", train_clips=70, held_out_clips=9
    )
    builder = MovingShapes(config=config, data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    assert "tensorflow" not in sys.modules
    for split, count in (("train", 70), ("held_out", 9)):
        source = builder.as_data_source(split)
        assert len(source) == count
        written = {}
        for example in source:
            scene = shapes.parse_caption(example["caption"].decode())
            assert set(scene) <= set(shapes.SPLITS[split])
            for factor in ("color", "shape", "direction"):
                names = builder.info.features[factor].feature.names
                assert [names[i] for i in example[factor]] == [getattr(c, factor) for c in scene]
            written[example["video"].tobytes()] = scene
        # Shuffled on disk; the same clips with the same scenes.
        rendered = {v.tobytes(): s for s, v in moving_shapes.clips(config, split, count)}
        assert written == rendered


def test_every_config_is_there():
    sizes = [f"{s}x{s}x{f}{two}" for two in ("", "_two") for s in (16, 32, 64) for f in (8, 16, 32)]
    assert list(CONFIGS) == sizes
    assert CONFIGS["16x16x8"].train_clips == 20_000


def test_clips_do_not_depend_on_how_many_are_asked_for():
    config = CONFIGS["16x16x8"]
    few = [video for _, video in moving_shapes.clips(config, "train", 3)]
    many = [video for _, video in moving_shapes.clips(config, "train", 130)]
    assert len(few) == 3 and len(many) == 130
    np.testing.assert_array_equal(few, many[:3])
    assert len({video.tobytes() for video in many}) == 130


def test_every_combination_is_shown_equally_often():
    shown = [scene for scene, _ in moving_shapes.clips(CONFIGS["16x16x8"], "held_out", 140)]
    assert {shown.count((c,)) for c in shapes.HELD_OUT} == {10}
