import pytest

from benchmarks import mfu


def test_variants_are_fields_variables_and_trials():
    overrides, variables, trials = mfu.parse_variant(
        "model.remat=none,model.channel_mult=(1, 2),XLA_FLAGS=--xla_a=1,XLA_FLAGS=--xla_b=2,"
        "trial=norm_bf16"
    )
    assert overrides == {"model.remat": "none", "model.channel_mult": "(1, 2)"}
    assert variables == {"XLA_FLAGS": "--xla_a=1 --xla_b=2"}
    assert trials == ["norm_bf16"]
    for name, text in mfu.VARIANTS.items():
        mfu.parse_variant(text)
        assert name
    with pytest.raises(ValueError, match="trial=magic: allowed are cudnn_attention"):
        mfu.parse_variant("trial=magic")
    with pytest.raises(ValueError, match="'faster'"):
        mfu.parse_variant("faster")


def test_mfu_is_the_model_work_over_the_measured_peak():
    row = {
        "batch": 4,
        "flops_per_clip": 10e12,
        "seconds": 0.5,
        "blocking_s": [0.51, 0.5, 0.6],
        "peak_bytes": 2**30,
        "compile_s": 60.0,
        "published_flops_per_s": 800e12,
    }
    line = mfu.describe("remat-none", row, 400e12)
    assert row["mfu"] == pytest.approx(0.2)
    assert row["mfu_published"] == pytest.approx(0.1)
    assert row["clips_per_s"] == pytest.approx(8.0)
    assert "MFU 20.0%, 10.0% of the published" in line


def test_a_variant_that_fails_or_hangs_is_an_answer():
    failed = mfu.run_worker(["--what=nonsense", "--device=cpu"], {}, 60)
    assert failed["error"].startswith("status 2:") and "nonsense" in failed["error"]
    assert "took more than" in mfu.run_worker(["--what=peak", "--device=cpu"], {}, 0.01)["error"]
