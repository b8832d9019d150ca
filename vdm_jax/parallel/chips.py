"""Published figures of accelerators, for budgets and for the share of a chip's peak that is used.

Every figure is that of one JAX device. On TPU v4 and v5p a device is a whole chip (two cores that
work as one, "megacore"), on v5e and v6e a chip has one core; a TPU7x chip is two devices, each with
half of what is published for the chip.

Memory is what XLA lets a program take: of TPUs, the limit in its own words when a program too large
is compiled (libtpu 0.0.42, jax 0.10.2); of GPUs, what the driver reports, of which JAX takes three
quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise. Where two pages of one maker differ
by a few per cent, the newer one counts.
"""

import dataclasses
import re

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of one JAX device of a kind.

    Attributes:
      name: as in a topology ("v5p" of "v5p:4x4x4").
      peak_flops_bf16: FLOP/s of dense matrix products of bfloat16, without structured sparsity.
      peak_flops_f32: FLOP/s in float32 proper (no TF32, no bfloat16 passes), None where the maker
        publishes none.
      hbm_bytes: memory that a program can take.
      hbm_bandwidth: bytes/s between memory and chip.
      ici_bandwidth: bytes/s that a device sends over all its links within a slice (ICI of TPUs) or
        a host (NVLink) together, in one direction: half of the "bidirectional" figure. A collective
        along one axis of a torus has only the two links of that axis: `ici_bandwidth * 2 /
        ici_links`.
      ici_links: those links. On a GPU, the switch lets every device use all of them at any time.
      dcn_bandwidth: bytes/s that a device sends to other slices or hosts, its share of the host's
        network cards. An assumption about the machine room, not a property of the chip.
      devices_per_chip: JAX devices that one chip makes.
      source: where the figures are from.
    """

    name: str
    peak_flops_bf16: float
    peak_flops_f32: float | None = None
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    ici_links: int
    dcn_bandwidth: float
    devices_per_chip: int = 1
    source: str


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            peak_flops_bf16=275e12,
            hbm_bytes=int(30.75 * _GIB),
            hbm_bandwidth=1200e9,
            ici_bandwidth=270e9,
            ici_links=6,
            dcn_bandwidth=6.25e9,
            source="Cloud TPU documentation, 'TPU v4': 275 TFLOPS, 32 GiB and 1200 GB/s a chip; "
            "ICI and DCN: Austin et al. 2025, How to Scale Your Model, 'How to Think About TPUs': "
            "45 GB/s a link one way (the documentation's all-reduce bandwidth of 1.1 PB/s a pod of "
            "4096 is 269 GB/s a chip), 6.25 GB/s a chip. Memory: XLA's limit, of 32 GiB.",
        ),
        Chip(
            name="v5e",
            peak_flops_bf16=197e12,
            hbm_bytes=int(15.75 * _GIB),
            hbm_bandwidth=819e9,
            ici_bandwidth=200e9,
            ici_links=4,
            dcn_bandwidth=25e9 / 8,
            source="Cloud TPU documentation, 'TPU v5e': 197 TFLOPS, 16 GB and 819 GB/s, 400 GB/s "
            "of bidirectional ICI over 4 ports, 6.4 Tbit/s of DCN a pod of 256. Memory: XLA's "
            "limit, of 16 GiB.",
        ),
        Chip(
            name="v5p",
            peak_flops_bf16=459e12,
            hbm_bytes=int(95.74 * _GIB),
            hbm_bandwidth=2765e9,
            ici_bandwidth=600e9,
            ici_links=6,
            dcn_bandwidth=50e9 / 8,
            source="Cloud TPU documentation, 'TPU v5p': 459 TFLOPS, 95 GiB and 2765 GB/s, 1200 "
            "GB/s of bidirectional ICI (3D torus), 50 Gbit/s of DCN. Memory: XLA's limit, of 96 "
            "GiB.",
        ),
        Chip(
            name="v6e",
            peak_flops_bf16=918e12,
            hbm_bytes=int(31.24 * _GIB),
            hbm_bandwidth=1638e9,
            ici_bandwidth=400e9,
            ici_links=4,
            dcn_bandwidth=100e9 / 8,
            source="Cloud TPU documentation, 'TPU v6e' and the comparison in 'TPU7x (Ironwood)': "
            "918 TFLOPS, 32 GiB and 1638 GB/s, 800 GB/s of bidirectional ICI over 4 ports, 100 "
            "Gbit/s of DCN. Memory: XLA's limit, 31.24 or 31.25 of 32 GiB by version.",
        ),
        Chip(
            name="tpu7x",
            peak_flops_bf16=2307e12 / 2,
            hbm_bytes=int(94.75 * _GIB),
            hbm_bandwidth=7380e9 / 2,
            ici_bandwidth=600e9 / 2,
            ici_links=6,
            dcn_bandwidth=100e9 / 8 / 2,
            devices_per_chip=2,
            source="Cloud TPU documentation, 'TPU7x (Ironwood)', halved: 2307 TFLOPS, 192 GiB and "
            "7380 GB/s, 1200 GB/s of bidirectional ICI (3D torus), 100 Gbit/s of DCN a chip. The "
            "links are the chip's: its two devices share them. Memory: XLA's limit.",
        ),
        Chip(
            name="h100",
            peak_flops_bf16=989.4e12,
            peak_flops_f32=67e12,
            hbm_bytes=84_942_979_072,
            hbm_bandwidth=3350e9,
            ici_bandwidth=450e9,
            ici_links=18,
            dcn_bandwidth=400e9 / 8,
            source="NVIDIA H100 Tensor Core GPU datasheet, H100 SXM: 1979 TFLOPS of BFLOAT16 with "
            "sparsity, half of it without; 67 TFLOPS of FP32, 3.35 TB/s, NVLink 900 GB/s both "
            "ways together. Memory: device_memory_size of OpenXLA's target h100_sxm. DCN: one 400 "
            "Gbit/s card a GPU, as in a DGX H100.",
        ),
        Chip(
            name="h200",
            peak_flops_bf16=989.4e12,
            peak_flops_f32=67e12,
            hbm_bytes=151_397_597_184,
            hbm_bandwidth=4800e9,
            ici_bandwidth=450e9,
            ici_links=18,
            dcn_bandwidth=400e9 / 8,
            source="NVIDIA H200 Tensor Core GPU datasheet, H200 SXM: 1979 TFLOPS of BFLOAT16 with "
            "sparsity, half of it without; 67 TFLOPS of FP32, 4.8 TB/s, NVLink 900 GB/s both ways "
            "together. Memory: device_memory_size of OpenXLA's target h200. DCN: one 400 Gbit/s "
            "card a GPU, as in a DGX H200.",
        ),
        Chip(
            name="b200",
            peak_flops_bf16=2250e12,
            peak_flops_f32=74.4e12,
            hbm_bytes=191_514_411_008,
            hbm_bandwidth=7672e9,
            ici_bandwidth=900e9,
            ici_links=18,
            dcn_bandwidth=400e9 / 8,
            source="NVIDIA Blackwell Architecture Technical Brief, HGX B200: 4.5 PFLOPS of BF16 "
            "with sparsity, half of it without; NVLink 1.8 TB/s both ways together. The rest: "
            "OpenXLA's target b200: device_memory_size; memory_bandwidth (the brief says up "
            "to 8 TB/s); 148 cores x 128 lanes x 2 x 1.965 GHz of FP32 (the brief says 80 TFLOPS). "
            "DCN: one 400 Gbit/s card a GPU, as in a DGX B200.",
        ),
        Chip(
            name="a100",
            peak_flops_bf16=312e12,
            peak_flops_f32=19.5e12,
            hbm_bytes=85_100_068_864,
            hbm_bandwidth=2039e9,
            ici_bandwidth=300e9,
            ici_links=12,
            dcn_bandwidth=200e9 / 8,
            source="NVIDIA A100 Tensor Core GPU datasheet, A100 80GB SXM: 312 TFLOPS of BFLOAT16 "
            "and 19.5 of FP32 without sparsity, 2039 GB/s, NVLink 600 GB/s both ways together. "
            "Memory: device_memory_size of OpenXLA's target a100_sxm_80. DCN: one 200 Gbit/s card "
            "a GPU, as in a DGX A100.",
        ),
    )
}

# What JAX calls the devices. Cards of the same name with other memory, clocks or links (PCIe, NVL,
# 40 GB) are other chips, and not in the table.
_KINDS = {
    r"TPU v4": "v4",
    r"TPU v5 ?(lite|e)": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6 ?(lite|e)": "v6e",
    r"TPU ?v?7x": "tpu7x",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA H200( 141GB HBM3e)?": "h200",
    r"NVIDIA B200": "b200",
    r"NVIDIA A100-SXM4-80GB": "a100",
}


def chip(name: str) -> Chip:
    """The figures of chip `name`. Raises ValueError with the names that there are."""
    if name not in CHIPS:
        raise ValueError(f"There is no chip {name!r}; allowed: {', '.join(CHIPS)}.")
    return CHIPS[name]


def chip_of_device(device_kind: str) -> Chip | None:
    """The figures of a `jax.Device` by its `device_kind`, None where they are not known (CPU)."""
    for pattern, name in _KINDS.items():
        if re.fullmatch(pattern, device_kind):
            return CHIPS[name]
    return None
