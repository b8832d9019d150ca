"""Training on a folder of which a tenth is damaged."""

from tests.data.test_video_folder import write_soak
from tests.tiny_stage import ENCODER
from vdm_jax.data.pipeline import ClipDataset
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.training import loop


def test_training_sees_exactly_the_readable_clips(
    stage, make_config, train_step, tmp_path, monkeypatch, recwarn
):
    """50 steps of 17: one epoch of the 850 clips of 450 good files."""
    bad, good = write_soak(tmp_path / "films")
    source = VideoFolder(tmp_path / "films", num_frames=3, image_size=4)
    assert source.skipped.keys() == {str(path) for path in bad}
    assert len(source) == sum(3 if int(path.stem) % 2 else 1 for path in good) == 850
    read = set()
    decode = VideoFolder._read

    def record(self, index, *arguments, **options):
        read.add(index)
        return decode(self, index, *arguments, **options)

    monkeypatch.setattr(VideoFolder, "_read", record)
    dataset = ClipDataset(source, text_encoder=ENCODER, batch_size=17, seed=0)
    config = make_config(batch_size=17, steps=50)
    result = loop.train(stage, config, tmp_path / "run", dataset, train_step=train_step)
    assert (result.step, result.reason) == (50, "steps")
    assert read == set(range(850))
    assert not [warning for warning in recwarn if "another clip" in str(warning.message)]
