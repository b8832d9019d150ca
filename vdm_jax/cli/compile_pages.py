"""The page docs/pods.md: what the paper-scale configurations take on TPU pods.

`vdm compile --pages=FILE` writes it.
"""

import dataclasses
import functools
import math
from pathlib import Path

from vdm_jax.cli import compiling

TOPOLOGIES = ("v5e:8x8", "v5p:4x4x4", "v6e:8x8")
# Networks of the paper, and one beyond it. kinetics600 has the network of ucf101.
CONFIGS = ("bair", "t2v_small", "ucf101", "t2v_large", "t2v_5b")
# The others on v5e only, which has the least memory and the slowest network.
BY_TOPOLOGY = ("t2v_large", "t2v_5b")
LARGE, LARGER = "vdm/t2v_large", "vdm/t2v_5b"
# The models of cascades, on chips that have the memory for their clips.
IMAGEN_VIDEO = ("base_40x24", "tsr_6fps", "ssr_80x48", "ssr_320x192", "tsr_12fps", "tsr_24fps")
IMAGEN_VIDEO += ("ssr_1280x768",)
LUMIERE = ("t2i_base", "base_80f_128", "t2i_ssr", "ssr_1024")
IMAGE, ANIMATION = "latent_image/sd15", "stable_video/paper/image_to_video_576x1024"
# Inflated image models, on chips that have the memory for their clips.
INFLATED = ("stable_video/paper/video_256x384", "video_ldm/paper", "make_a_video/paper/decoder")
# One host. Batch, tile and window of each stage's sampler are its configuration's.
SAMPLING = "v5p:2x2x1"

INTRODUCTION = """# Pods

Whether a configuration fits a pod, and how fast it can be at best, before paying for one. Every row
is the real training update (in the last table, the real sampler), compiled by the TPU's compiler
for every chip of the topology, on a machine without a TPU. Written by

    vdm compile --pages=docs/pods.md

and one row, with its collectives, by

    vdm compile --config=vdm/t2v_large --topology=v5p:4x4x4

## How to read it

- **memory**: the memory of the program, out of the chip's (XLA's own limit). **state**: the part of
  it that is the train state (parameters, moving average and two moments, float32, sharded over all
  chips where the configuration has `mesh.fsdp = -1`).
- **step**: the largest of three times, each alone: operations at the peak of the matrix units,
  bytes at the bandwidth of the memory, bytes at the bandwidth of the network. No step is faster. A
  real step is slower; a compiler cannot say by how much.
- **bound**: which of the three it is. **MFU** is the utilisation that this bound allows: with
  `model.remat = "full"` the forward pass is computed twice, so at most 75%.
- Operations are counted analytically, layer by layer: XLA counts the body of a loop once. Bytes of
  the memory are XLA's count before fusion across kernels, so "memory" is the least certain.
- **sent**: the bytes that a chip sends a step, in rings, by the collectives of the compiled
  program, and in brackets the ratio to the least that sharded parameters need: gathered twice and
  their gradients summed once, in bfloat16. On `v5p:4x4x4` and other whole cubes the compiler sums
  whole gradients (all-reduce, twice the bytes of a reduce-scatter).
- Sharded over fewer chips (`mesh.data = 4`, `mesh.fsdp = 16`) the shards of the narrower layers
  fill the tiles of the chip's memory. On v5e this sends less and takes less memory than sharding
  over all 64, where the compiler gathers small shards by all-reduces.
- Compiled with `--effort=0`, which is several times faster than the compiler's default, and may
  take more memory and a few per cent more time than the program of a real run.

Peaks, bandwidths and memory of the chips, with their sources, are in `vdm_jax/parallel/chips.py`.

What the hosts have to do at that speed (`vdm_jax/cli/feeding.py`):

- **read, GB**: the batch as the data's workers hand it over, of all hosts together and in brackets
  of one. Workers choose frames and cut crops, so it is at most 1.3 times what is learned from.
  With T5-XXL, a caption of 128 tokens is 1 MiB, which is more than most stages' pixels.
- **clips/s a host**: clips that a host must decode. **cores**: the virtual cores that this takes,
  of all hosts together, at {clips:g} clips of {frames} x {height} x {width} a second and core,
  scaled by pixels (`python -m benchmarks.data --decode`). **hosts**: how many hosts have so many
  cores, and how many hosts the slice has.
- Files are as large as the stage's clips in this count. Larger files take more: `base_40x24` read
  from files of 1280 x 768 takes 1,024 times as many cores. So do single frames of files with few
  key frames: decoding begins at the key frame before.
"""


def requests(effort: str) -> dict[str, list[compiling.Request]]:
    """The rows of each table, in order."""
    make = functools.partial(compiling.Request, effort=effort)
    training = [
        make(config=f"vdm/{name}", topology=topology)
        for name in CONFIGS
        for topology in (TOPOLOGIES if name in BY_TOPOLOGY else TOPOLOGIES[:1])
    ]
    keep_all = {"model.remat": "none"}
    cut_by_16 = {"mesh.data": "4", "mesh.fsdp": "16"}
    imagen_video, lumiere = (
        [make(config=f"{system}/paper/{name}", topology="v5p:4x4x4") for name in names]
        for system, names in (("imagen_video", IMAGEN_VIDEO), ("lumiere", LUMIERE))
    )
    return {
        "Training, one slice of 64 chips": training,
        "Imagen Video, each stage on one slice of 64 chips": imagen_video,
        "Lumiere, each model on one slice of 64 chips": lumiere,
        "Image models and image models over clips, one slice of 64 chips": [
            *(make(config=IMAGE, topology=topology) for topology in TOPOLOGIES[:2]),
            make(config=ANIMATION, topology=TOPOLOGIES[0], overrides={"train.accumulate": "12"}),
            make(config=ANIMATION, topology=TOPOLOGIES[1], overrides={"train.accumulate": "6"}),
            *(make(config=name, topology=TOPOLOGIES[1]) for name in INFLATED),
        ],
        "The large model, parameters cut over 16 chips only; with all activations kept": [
            make(config=LARGE, topology="v5e:8x8", overrides=cut_by_16),
            make(config=LARGE, topology="v5p:4x4x4", overrides=keep_all),
        ],
        "What does not fit": [
            make(config=LARGE, topology="v5e:8x8", overrides={"mesh.data": "-1", "mesh.fsdp": "1"}),
            make(config=LARGER, topology="v5e:2x4", overrides={"train.batch_size": "8"}),
        ],
        "Sampling": [
            *(
                make(config=f"vdm/{name}", topology="v5e:2x4", what="sample")
                for name in ("bair", "ucf101", "t2v_large")
            ),
            *(
                dataclasses.replace(stage, topology=SAMPLING, what="sample")
                for stage in (*imagen_video, *lumiere)
            ),
        ],
    }


def introduction() -> str:
    """What the tables mean."""
    from vdm_jax.cli.feeding import MEASURED

    frames, height, width = MEASURED.shape
    size = {"frames": frames, "height": height, "width": width}
    return INTRODUCTION.format(clips=MEASURED.clips_per_second, **size)


def write(page: Path, *, effort: str = "0", use_cache: bool = True) -> int:
    """Compiles every row and writes the page. Returns the exit status."""
    parts = [introduction()]
    for title, rows in requests(effort).items():
        reports = [compiling.run(row, tries=2, use_cache=use_cache) for row in rows]
        parts.append(f"## {title}\n")
        parts += _fits(reports) if reports[0]["fits"] else _does_not_fit(reports)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")
    print(page)
    return 0


def _fits(reports: list[dict]) -> list[str]:
    trains = reports[0]["what"] == "train"
    per = "step" if trains else "denoising step"
    more = FEEDING_HEAD if trains else ("", "")
    lines = [
        f"| configuration | parameters | topology | clips a {per} | memory, GiB | state, GiB "
        f"| TFLOP a chip | sent, GB | {per}, ms | bound | MFU | clips/s |{more[0]}",
        f"|---|---:|---|---:|---:|---:|---:|---:|---:|---|---:|---:|{more[1]}",
    ]
    for report in reports:
        path = Path(report["config"])
        name = path.parent.name if path.stem == "paper" else path.stem
        name += _changes(report["overrides"])
        start = f"| {name} | {report['parameters'] / 1e9:.2f} B | {report['topology']} "
        if not report["fits"]:
            fitting = [attempt for attempt in report["suggestions"] if attempt["fits"]]
            advice = f"; with{_changes(fitting[0]['changes'])} see below" if fitting else ""
            empty = " |" * (11 if trains else 7)
            lines.append(f"{start}| {report['batch']} | {report['error']}{advice} |{empty}")
            if fitting:
                lines += _fits([report | attempt for attempt in fitting])[2:-1]
            continue
        found = report["estimate"]
        least = 3 * 2 * report["parameters"] * (found["devices"] - 1) / found["devices"]
        share = f" ({found['network_bytes'] / least:.2f} x)" if report["what"] == "train" else ""
        speed = f"{found['clips_per_second']:,.0f}" if report["what"] == "train" else "-"
        lines.append(
            f"{start}| {report['batch']} "
            f"| {found['memory'] / 2**30:.2f} of {found['capacity'] / 2**30:.2f} "
            f"| {found['arguments'] / 2**30:.2f} | {found['flops'] / 1e12:.1f} "
            f"| {found['network_bytes'] / 1e9:.2f}{share} | {found['step_seconds'] * 1e3:.0f} "
            f"| {found['bound']} | {found['mfu']:.0%} | {speed} |"
            + (feeding_cells(report["feeding"]) if trains else "")
        )
    return [*lines, ""]


FEEDING_HEAD = (" read, GB | clips/s a host | cores | hosts |", "---:|---:|---:|---:|")


def feeding_cells(needs: dict) -> str:
    """The cells under `FEEDING_HEAD`, of a `feeding.Needs` as a dictionary."""
    hosts = f"{needs['hosts_needed']} of {needs['hosts']}" if needs["host_cores"] else "-"
    return (
        f" {_figures(needs['step_bytes'] / 1e9)} ({_figures(needs['host_bytes'] / 1e9)}) "
        f"| {_figures(needs['host_clips'])} | {_figures(needs['cores'])} | {hosts} |"
    )


def _figures(value: float) -> str:
    """Three significant figures, without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value else 0
    return f"{value:,.{digits}f}"


def _does_not_fit(reports: list[dict]) -> list[str]:
    lines = ["| configuration | topology | what is said | what was tried |", "|---|---|---|---|"]
    for report in reports:
        tried = [
            f"{_changes(attempt['changes']).strip(' ()')}: "
            + ("fits" if attempt["fits"] else attempt["error"])
            for attempt in report["suggestions"]
        ]
        lines.append(
            f"| {Path(report['config']).stem}{_changes(report['overrides'])} "
            f"| {report['topology']} | {report['error']} | {'; '.join(tried) or '-'} |"
        )
    return [*lines, ""]


def _changes(overrides: dict[str, str]) -> str:
    text = ", ".join(f"`{name}={value}`" for name, value in overrides.items())
    return f" ({text})" if text else ""
