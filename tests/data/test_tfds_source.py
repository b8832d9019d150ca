"""TFDS data sets without TensorFlow: mocked ones, and ones that the tests prepare."""

import dataclasses
import io
import pickle
import sys

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from vdm_jax.cli import prepare_data
from vdm_jax.data import moving_shapes, pipeline, shapes, tfds_source
from vdm_jax.data.source import DataError
from vdm_jax.data.tfds_source import DATASETS, TFDSSource, make_builder
from vdm_jax.data.tfds_video import PNGVideo


class TinyVideo(tfds.core.GeneratorBasedBuilder):
    """Videos of 9 frames of 12 x 8, frame k of which is filled with 10 k; stored as TFDS does."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Video(shape=(None, 8, 12, 3)),
                    "label": tfds.features.ClassLabel(names=["JumpRope", "walk_dog"]),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        video = np.broadcast_to(
            10 * np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 8, 12, 3)
        )
        for i in range(2):
            yield i, {"video": video, "label": i}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    row = tfds_source.Dataset(module=__name__, builder="TinyVideo", video="video", label="label")
    monkeypatch.setitem(DATASETS, "tiny_video", row)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[TinyVideo.__module__])
    builder = make_builder("tiny_video", data_dir=str(tmp_path))
    tfds_source.prepare(builder)
    return {"name": "tiny_video", "data_dir": str(tmp_path)}


def test_a_prepared_video_feature_is_read(tiny):
    source = TFDSSource(**tiny, num_frames=3, image_size=4, frame_stride=2)
    assert len(source) == 2 and source.num_labels == 2
    assert sorted(source.captions()) == ["jump rope", "walk dog"]
    example = source[0]
    assert example["video"].shape == (3, 4, 4, 3)
    assert example["video"][:, 0, 0, 0].tolist() == [20, 40, 60]  # the middle, every second frame
    assert example["caption"] == source.captions()[example["label"]]
    starts = {
        int(source.read(0, np.random.default_rng(seed))["video"][0, 0, 0, 0]) for seed in range(40)
    }
    assert starts == {0, 10, 20, 30, 40}
    copy = pickle.loads(pickle.dumps(source))  # as worker processes get it
    np.testing.assert_array_equal(copy[1]["video"], source[1]["video"])
    assert "tensorflow" not in sys.modules


def test_prepared_files_are_tfdss_own(tiny):
    builder = make_builder(tiny["name"], data_dir=tiny["data_dir"])
    text = (builder.data_path / "features.json").read_text()
    assert "tensorflow_datasets.core.features.video_feature.Video" in text
    assert "PNGVideo" not in text


def test_a_video_file_is_stored_frame_by_frame(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for k in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 40 * k, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for video in (path, str(path), path.read_bytes(), path.open("rb")):
        frames = PNGVideo(shape=(None, 16, 16, 3)).encode_example(video)
        fills = [np.asarray(Image.open(io.BytesIO(png))).mean() for png in frames]
        np.testing.assert_allclose(fills, [0, 40, 80, 120, 160], atol=6)


@pytest.mark.parametrize("name", ["ucf101", "moving_mnist", "bair_robot_pushing_small"])
def test_known_data_sets_on_mocked_data(name, tmp_path, monkeypatch):
    """The table's keys are those of the builders, and their data comes out as clips."""
    builder = make_builder(name, data_dir=str(tmp_path))
    assert builder.VERSION or builder.version
    with tfds.testing.mock_data(num_examples=3, num_sub_examples=20):
        monkeypatch.setattr(TFDSSource, "_check_prepared", lambda *_: None)
        split = "test" if name == "moving_mnist" else "train"
        source = TFDSSource(name, data_dir=str(tmp_path), split=split, num_frames=16, image_size=32)
        example = source[1]
    assert example["video"].shape == (16, 32, 32, 3) and example["video"].dtype == np.uint8
    if name == "ucf101":
        assert source.num_labels == 101 and "apply eye makeup" in source.captions()
        assert example["caption"] == source.captions()[example["label"]]
    else:
        assert source.captions() == [""] and "label" not in example


def test_every_builder_of_the_table_can_be_made(tmp_path):
    for name, row in DATASETS.items():
        builder = make_builder(name, data_dir=str(tmp_path))
        frames, _, _, channels = tfds_source._feature(builder.info.features, row.video).shape
        assert channels in (1, 3)
        for path in filter(None, (row.label, row.caption)):
            tfds_source._feature(builder.info.features, path)


@pytest.fixture
def shapes_dir(tmp_path, monkeypatch):
    """The first configuration, with few clips."""
    config = moving_shapes.MovingShapes.BUILDER_CONFIGS[0]
    few = dataclasses.replace(config, train_clips=20, held_out_clips=14)
    # First, because TFDS keeps for good what it makes of BUILDER_CONFIGS at the first look.
    monkeypatch.setattr(moving_shapes.MovingShapes, "builder_configs", {few.name: few})
    monkeypatch.setattr(moving_shapes.MovingShapes, "BUILDER_CONFIGS", [few])
    tfds_source.prepare(make_builder("moving_shapes", few.name, str(tmp_path)))
    return str(tmp_path)


def config_for(folder, **data):
    return ConfigDict(
        {
            "data": {
                "name": "moving_shapes",
                "config": "16x16x8",
                "data_dir": folder,
                "split": "train",
                "num_frames": 8,
                "image_size": 16,
                "frame_stride": 1,
                "fps": 0.0,
                "image_frames": 0,
                "workers": 0,
                **data,
            },
            "text": {
                "encoder": "words",
                "max_length": 6,
                "vocabulary_size": 30,
                "vocabulary": (),
            },
            "model": {"num_labels": 0},
        }
    )


def test_moving_shapes_from_disk_to_batch(shapes_dir):
    config = pipeline.with_vocabulary(config_for(shapes_dir).lock())
    words = {w for c in shapes.captions("train") for w in c.split()}
    assert set(config.text.vocabulary) == words and config.is_locked
    encoder = pipeline.WordEncoder(config.text.vocabulary, max_length=6, vocabulary_size=30)
    reports = []
    dataset = pipeline.make_dataset(
        config, text_encoder=encoder, batch_size=4, seed=0, report=reports.append
    )
    assert reports == ["data: moving_shapes/16x16x8, split train: 20 clips"]
    iterator = iter(dataset)
    batch = next(iterator)
    assert batch["video"].shape == (4, 8, 16, 16, 3) and batch["tokens"].shape == (4, 6)
    info = pipeline.source_info(config, "held_out")
    assert info.num_examples == 14 and info.captions == shapes.captions("held_out")


def test_the_command_prepares_once(shapes_dir, capsys):
    arguments = ["--data=moving_shapes/16x16x8", f"--data_dir={shapes_dir}/new"]
    for done in ("took", "was there"):
        assert prepare_data.main(arguments) == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert len(lines) == (2 if done == "took" else 1)  # TFDS itself says nothing
        assert "train 20, held_out 14 clips" in lines[-1] and done in lines[-1]
        assert err == ""  # no bar where there is no terminal
    assert prepare_data.main(["--data=video_folder"]) == 0
    with pytest.raises(DataError, match="ucf101"):
        prepare_data.main(["--data=ucf"])
    arguments = ["--config=vdm/moving_shapes", f"--config.data.data_dir={shapes_dir}/new"]
    assert prepare_data.main(arguments) == 0
    assert "was there" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare_data.main([*arguments, "--data=ucf101"])


def test_a_run_renders_the_embedded_data_where_it_is_missing(shapes_dir, capsys):
    data = config_for(shapes_dir, data_dir=f"{shapes_dir}/missing").data
    for lines in (["moving_shapes/16x16x8/1.0.0 is not in {}/: rendering it"], []):
        prepare_data.render_missing(data)
        out = capsys.readouterr().out.splitlines()
        assert out == [line.format(data.data_dir) for line in lines]
    assert pipeline.make_source(data).name == "moving_shapes/16x16x8"


def test_mistakes_say_what_to_do(shapes_dir, tmp_path):
    def error(**data):
        with pytest.raises(DataError) as caught:
            pipeline.make_source(config_for(shapes_dir, **data).data)
        return str(caught.value)

    empty = str(tmp_path / "empty")
    assert (f"vdm data prepare --data=moving_shapes/16x16x8 --data_dir={empty}") in error(
        data_dir=empty
    )
    assert "data.num_frames = 16: moving_shapes/16x16x8 has 8" in error(num_frames=16)
    assert "data.image_size = 32" in error(image_size=32)
    assert "train, held_out" in error(split="test").replace("held_out, train", "train, held_out")
    assert "16x16x8" in error(config="17x17x8")
    assert "video_folder, video_shards, moving_shapes, scenes, ucf101" in error(name="ucf_101")
    assert "data.frame_stride" in error(fps=8.0)
    wrong = config_for(shapes_dir)
    wrong.model.num_labels = 5
    with pytest.raises(DataError, match="model.num_labels = 5"):
        pipeline.make_dataset(wrong, text_encoder=None, batch_size=4, seed=0)
