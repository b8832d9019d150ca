"""The table of chips: names, kinds of devices, and figures that must fit each other."""

import pytest

from vdm_jax.parallel import chips


def test_unknown_chip_names_the_allowed_ones():
    with pytest.raises(ValueError, match="'v9'.*v4, v5e, v5p, v6e, tpu7x, h100, h200, b200, a100"):
        chips.chip("v9")


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_chip_of_device(device_kind, name):
    assert chips.chip_of_device(device_kind) is chips.chip(name)


@pytest.mark.parametrize(
    "device_kind",
    # Less memory, lower clocks or other links than the chips of the table.
    [
        "cpu",
        "",
        "TPU v3",
        "NVIDIA H100 PCIe",
        "NVIDIA H200 NVL",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA GB200",
        "TPU v55",
    ],
)
def test_other_devices_have_no_figures(device_kind):
    assert chips.chip_of_device(device_kind) is None


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=lambda chip: chip.name)
def test_figures_fit_each_other(chip):
    # A factor of 1000 or of 8 (bits) in any of them would show.
    assert 1e14 < chip.peak_flops_bf16 < 3e15
    assert chip.peak_flops_f32 is None or chip.peak_flops_f32 < chip.peak_flops_bf16 / 10
    assert 15 * 2**30 < chip.hbm_bytes < 200e9
    assert 100 < chip.peak_flops_bf16 / chip.hbm_bandwidth < 600
    assert chip.hbm_bandwidth > chip.ici_bandwidth > 4 * chip.dcn_bandwidth
    assert 10e9 < chip.ici_bandwidth / chip.ici_links <= 100e9
    assert chip.source


def test_figures_are_those_of_a_device():
    # A TPU7x chip is two devices; the published figures are the chip's.
    ironwood = chips.chip("tpu7x")
    assert ironwood.devices_per_chip * ironwood.peak_flops_bf16 == 2307e12
    assert ironwood.devices_per_chip * ironwood.hbm_bandwidth == 7380e9
    # H100 and H200 have the same cores; the published 1979 TFLOPS need structured sparsity.
    assert chips.chip("h100").peak_flops_bf16 == pytest.approx(1979e12 / 2, rel=1e-3)
    assert chips.chip("h200").peak_flops_bf16 == chips.chip("h100").peak_flops_bf16
