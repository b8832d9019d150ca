"""Measures a model, or videos.

    vdm evaluate --model=MODEL [--steps=64] [--guidance=2]
    vdm evaluate --model=MODEL --metrics=fvd,kvd,judge --reference=DATASET --out=FILE.json
    vdm evaluate --samples=DIR --reference=DIR --metrics=fvd,psnr
    vdm evaluate --compare A.json B.json

The first samples held-out captions of the embedded data set. The judge reads the samples: it
measures colour, shape and direction from the pixels, and `all` is the share of samples with all
three right.

With --metrics every figure comes with its interval and its protocol: everything that it depends on
except the model. --out=FILE keeps the figures as JSON. --compare makes a table of two such files,
and refuses figures of different protocols. MODEL may be a cascade.

DATASET is NAME[/VARIANT][:SPLIT], such as moving_shapes/16x16x8:held_out, which is rendered, or
ucf101:test, which is in --data_dir. DIR holds video files, or samples.npz of vdm sample. A model is
sampled with the captions of its references, by default clips of its own data set.

Several processes sample together and measure a share of the clips each; all must find the same
files. The figures equal those of one process.
"""

import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdm_jax.cli import common, outputs


def main(arguments: list[str]) -> int:
    parser = common.parser("vdm evaluate", __doc__)
    common.add_model_arguments(parser)
    number = functools.partial(parser.add_argument, type=common.positive, metavar="N")
    number("--num_samples", default=128, help="samples over all captions (default 128)")
    common.add_sampler_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    more = parser.add_argument_group("figures with protocols")
    more.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help="any of fvd, ffd, kvd, precision, recall, is, accuracy, action_text, consistency, "
        "psnr, ssim, warp and judge",
    )
    more.add_argument("--samples", metavar="PATH", help="videos, instead of a model's")
    more.add_argument("--reference", metavar="PATH", help="a directory, an archive or a DATASET")
    number = functools.partial(more.add_argument, type=common.positive, metavar="N")
    number("--num_references", help="default: as many as samples")
    number("--size", help="pixels of a clip's side (default: the model's, or the first sample's)")
    more.add_argument(
        "--stride",
        type=common.positive,
        default=1,
        metavar="N",
        help="every N-th frame (default 1)",
    )
    more.add_argument(
        "--data_dir",
        default="data",
        metavar="DIR",
        help="where TFDS keeps data sets (default data)",
    )
    more.add_argument(
        "--resize",
        default="bilinear",
        choices=("bilinear", "bilinear_antialias", "bicubic"),
        help="filter to I3D's 224 x 224 (default bilinear, as the authors of FVD)",
    )
    more.add_argument("--i3d", metavar="FILE", help="weights of I3D, where they cannot be fetched")
    more.add_argument(
        "--replicates",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap replicates of an interval; 0 = none (default 1000)",
    )
    more.add_argument(
        "--out", metavar="FILE", help="write the figures with their protocols as JSON"
    )
    more.add_argument("--compare", nargs=2, metavar="FILE", help="two such files, as a table")
    options = parser.parse_args(arguments)
    # Read when NumPy is imported. On matrices of a few hundred rows BLAS's threads mostly wait for
    # each other: a hundred times as long as the work takes, where others use the cores too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if options.compare:
        from vdm_jax.evaluation import protocol

        first, second = (protocol.load(Path(name)) for name in options.compare)
        print(protocol.compare(first, second), end="")
        return 0
    if options.samples and options.model:
        parser.error("--samples are measured, a --model is sampled: give one of them")
    if options.samples and not options.metrics:
        parser.error("--samples needs --metrics")
    if not options.metrics and (options.reference or options.out):
        parser.error("--reference and --out need --metrics")
    if options.metrics:
        from vdm_jax.evaluation import suite

        suite.check(options.metrics, reference=bool(options.reference) or not options.samples)
    common.setup(options.device, options, quiet=options.json)
    if options.out:
        outputs.in_first_process(lambda: outputs.check_file(options.out, "--out"))
    if options.metrics:
        return _measure(options)
    return _judge(options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Drawing:
    """How a model or a cascade is sampled.

    Attributes:
      draw: prompts to videos, uint8 `n f h w c`.
      data: the section `data` of its configuration.
      frames, size: of a video.
      settings: of the sampler, for the protocol.
    """

    draw: Callable
    data: Any
    frames: int
    size: int
    settings: dict[str, Any]


def _drawing(options) -> _Drawing:
    import jax

    from vdm_jax import pipelines

    model = common.load_any(options)
    changes = {k: v for k, v in common.sampler_changes(options).items() if v is not None}
    key = jax.random.key(options.seed)
    if isinstance(model, pipelines.CascadeModel):
        if changes:
            flags = ", ".join(f"--{name}" for name in changes)
            raise ValueError(f"{flags}: a cascade is sampled as its stages' configurations say")
        config = model.last_config
        return _Drawing(
            draw=lambda prompts: model.sample(key, prompts=prompts),
            data=config.data,
            frames=config.stage.shape[0],
            size=config.stage.shape[1],
            settings={"sampler": "cascade"},
        )
    sampler = model.sampler(**changes)
    return _Drawing(
        draw=lambda prompts: _stream(options, sampler, model.params, key, prompts),
        data=model.config.data,
        frames=sampler.video_shape[0],
        size=sampler.video_shape[1],
        settings={
            "sampler": sampler.rule_name,
            "steps": sampler.steps,
            "guidance": sampler.guidance_scale,
        },
    )


def _stream(options, sampler, params, key, prompts):
    """The videos of the prompts, with a bar in the first process."""
    import jax
    import numpy as np
    from rich.progress import track

    batches = -(-len(prompts) // min(sampler.batch_size, len(prompts)))
    quiet = options.json or jax.process_index() != 0
    stream = sampler.stream(params, key, prompts)
    return np.concatenate(
        list(track(stream, "sampling", total=batches, transient=True, disable=quiet))
    )


def _judge(options) -> int:
    import jax
    from rich.console import Console
    from rich.table import Table

    from vdm_jax.data import moving_shapes
    from vdm_jax.evaluation import judge

    drawing = _drawing(options)
    if drawing.data.name != "moving_shapes":
        raise ValueError(
            f"data.name = {drawing.data.name!r}: the judge reads moving_shapes only; "
            "--metrics=fvd,... measures others"
        )
    objects = 2 if drawing.data.config.endswith("_two") else 1
    captions = moving_shapes.captions("held_out", objects)
    prompts = list(itertools.islice(itertools.cycle(captions), options.num_samples))
    started = time.monotonic()
    videos = drawing.draw(prompts)
    seconds = time.monotonic() - started
    if jax.process_index() != 0:
        return 0
    scores = {name: float(value) for name, value in judge.score(videos, prompts).items()}
    scores |= {"n": len(prompts), **drawing.settings, "seconds": round(seconds, 1)}
    given = common.sampler_changes(options)
    scores |= {name: value for name, value in given.items() if value is not None}
    if options.json:
        print(json.dumps(scores))
        return 0

    print(f"{len(prompts)} samples of held-out captions, read by the judge:")
    table = Table()
    for name in ("color", "shape", "direction", "all"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name]:.1%}" for name in ("color", "shape", "direction", "all")))
    Console().print(table)
    settings = ", ".join(f"{name} {value}" for name, value in drawing.settings.items())
    print(f"sampling took {seconds:.0f} s ({settings})")
    return 0


def _measure(options) -> int:
    import jax
    from rich.console import Console

    from vdm_jax.evaluation import action_text, i3d, i3d_weights, protocol, suite

    samples, reference, subject, stride = (_given if options.samples else _drawn)(options)
    first = jax.process_index() == 0
    network = None
    if any(suite.METRICS[name].network for name in options.metrics):
        network = i3d.I3DFeatures(
            params=i3d_weights.load_weights(source=options.i3d), filter=options.resize
        )
    sentences = None
    if any(suite.METRICS[name].sentences for name in options.metrics):
        sentences = action_text.load_sentences()
    evaluation = suite.Evaluation(
        samples=samples,
        reference=reference,
        subject=subject,
        network=network,
        sentences=sentences,
        stride=stride,
        seed=options.seed,
        replicates=options.replicates if first else 0,  # they are the first process's alone
        together=jax.process_count() > 1,
    )
    with Console(stderr=True, quiet=options.json or not first).status("measuring"):
        results = evaluation.measure(options.metrics)
    if not first:
        return 0
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        protocol.save(Path(options.out), results)
    if options.json:
        print(json.dumps([result.to_dict() for result in results], indent=1))
        return 0
    _print(options.metrics, results)
    against = "" if reference is None else f", held against {len(reference.videos)} clips"
    print(f"{len(samples.videos)} clips of {list(samples.videos.shape[1:])}{against}")
    if options.out:
        print(options.out)
    return 0


def _given(options):
    """The clips of --samples and their references, what they are, and their stride."""
    from vdm_jax.evaluation import clips

    frames, side = clips.size_of(options.samples)
    cut = {
        "num_frames": options.num_frames or frames,
        "size": options.size or side,
        "stride": options.stride,
        "seed": options.seed,
    }
    samples = clips.from_path(options.samples, count=options.num_samples, **cut)
    reference = None
    if options.reference:
        count = options.num_references or len(samples.videos)
        reference = _reference(options, options.reference, count, cut)
    return samples, reference, {"model": Path(options.samples).name}, options.stride


def _drawn(options):
    """Samples of the model and their references, what they are, and their stride."""
    from vdm_jax.evaluation import clips

    drawing = _drawing(options)
    data = drawing.data
    count = options.num_references or options.num_samples
    if options.reference:
        cut = {
            "num_frames": drawing.frames,
            "size": drawing.size,
            "stride": data.frame_stride,
            "seed": options.seed,
        }
        reference = _reference(options, options.reference, count, cut)
    else:
        reference = clips.of_data(data, count, options.seed)
    captions = [text for text in reference.captions if text] or [""]
    prompts = list(itertools.islice(itertools.cycle(captions), options.num_samples))
    samples = clips.Clips(
        videos=drawing.draw(prompts),
        captions=prompts,
        description={"data": "samples", "split": "", "resize": "none"},
    )
    subject = {"model": options.model or "moving_shapes", **drawing.settings}
    return samples, reference, subject, data.frame_stride


def _print(metrics, results) -> None:
    from rich.console import Console
    from rich.table import Table

    from vdm_jax.evaluation import suite

    table = Table()
    for name in ("metric", "value", "95% interval", "what"):
        table.add_column(name, justify="left" if name in ("metric", "what") else "right")
    for name, result in zip(metrics, results, strict=True):
        bounds = "" if result.low is None else f"{result.low:.4g} … {result.high:.4g}"
        if result.low is None and result.standard_error is not None:
            bounds = f"± {1.96 * result.standard_error:.2g}"
        table.add_row(name, f"{result.value:.4g}", bounds, suite.METRICS[name].title)
        for extra, value in result.extra.items():
            table.add_row(f"  {extra}", f"{value:.4g}", "", "")
    Console().print(table)


def _reference(options, spec: str, count: int, cut: dict):
    """The clips that `spec` names."""
    from ml_collections import ConfigDict

    from vdm_jax.data import pipeline
    from vdm_jax.evaluation import clips

    if Path(spec).exists():
        return clips.from_path(spec, count=count, **cut)
    name, _, split = spec.partition(":")
    name, _, config = name.partition("/")
    if name == "moving_shapes":
        config = config or f"{cut['size']}x{cut['size']}x{cut['num_frames']}"
        return clips.from_moving_shapes(config, split or "held_out", count)
    section = ConfigDict(
        {
            "name": name,
            "config": config,
            "data_dir": options.data_dir,
            "split": split or "test",
            "num_frames": cut["num_frames"],
            "image_size": cut["size"],
            "frame_stride": cut["stride"],
            "fps": 0.0,
        }
    )
    source = pipeline.make_source(section)
    return clips.from_source(source, count, options.seed, spec, section.split)
