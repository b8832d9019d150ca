"""Our side of the benchmarks runs what training and sampling run."""

from benchmarks import ours, pairs


def test_each_work_of_a_pair_runs(tmp_path):
    pair = pairs.Pair(
        name="tiny",
        adapter="none",
        options={},
        frames=2,
        size=8,
        network={"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "norm_groups": 4},
        difference="",
    )
    worker = ours.Ours(pair, batch=2, dtype="float32", device="cpu", cache=str(tmp_path))
    for work in ("train", "denoise"):
        assert worker.prepare(work, 1)["compile_s"] > 0
        assert len(worker.timed(work, 2, 10.0)["seconds"]) == 2
    assert worker.describe()["parameters"] > 0


def test_an_autoencoder_encodes_and_decodes(tmp_path):
    network = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
    }
    pair = pairs.Pair(
        name="tiny",
        adapter="none",
        options={},
        frames=1,
        size=16,
        network=network,
        works=("encode", "decode"),
        difference="",
    )
    worker = ours.OurAutoencoder(pair, batch=1, dtype="float32", device="cpu", cache=str(tmp_path))
    for work in pair.works:
        assert worker.prepare(work, 1)["compile_s"] > 0
        assert len(worker.timed(work, 1, 10.0)["seconds"]) == 1
    assert worker.describe()["flops"] > 0
