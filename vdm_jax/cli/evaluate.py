"""Measures a model, or videos.

    vdm evaluate --model=MODEL
    vdm evaluate --model=MODEL --metrics=fvd,kvd,judge --reference=DATASET --out=FILE.json
    vdm evaluate --model=MODEL --metrics=fvd --known=frames:5
    vdm evaluate --model=MODEL --protocol=bair --data_dir=DIR
    vdm evaluate --samples=DIR --reference=DIR --metrics=fvd,psnr
    vdm evaluate --compare A.json B.json

A model is sampled as its configuration says (steps, rule, guidance), unless flags say otherwise.

The first samples held-out captions of the embedded data set. The judge reads the samples: it
measures from the pixels what captions say, such as colour, shape and direction, and `all` is the
share of samples with everything right.

With --metrics every figure comes with its interval and its protocol: everything that it depends on
except the model. --out=FILE keeps the figures as JSON. --compare makes a table of two such files,
and refuses figures of different protocols. MODEL may be a cascade.

DATASET is NAME[/VARIANT][:SPLIT], such as moving_shapes/16x16x8:held_out, which is rendered, or
ucf101:test, which is in --data_dir. DIR holds video files, or samples.npz of vdm sample. A model is
sampled with the captions of its references, by default clips of its own data set. A stage that
refines videos refines the coarse versions of its references. psnr and ssim compare clips of one
name.

With --known=frames:K each sample goes on from the first K frames of a reference, by --method.
--protocol=bair and --protocol=kinetics600 are what papers do: 1 known frame and 100 samples of each
of 256 test videos; 5 known frames of each of 50,000 (--reference names the folder of test videos).

Several processes sample together and measure a share of the clips each; all must find the same
files. The figures equal those of one process.
"""

import functools
import itertools
import json
import os
import time
from pathlib import Path

from vdm_jax.cli import common, evaluating, outputs, parsing


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm evaluate", __doc__)
    common.add_model_arguments(parser)
    number = functools.partial(parser.add_argument, type=parsing.positive, metavar="N")
    number("--num_samples", help="samples over all captions (default 128)")
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
    number = functools.partial(more.add_argument, type=parsing.positive, metavar="N")
    number("--num_references", help="default: as many as samples")
    more.add_argument(
        "--size",
        type=_size,
        metavar="SIZE",
        help="of --samples: pixels of a clip's side, or HxW (default: the first sample's)",
    )
    number("--stride", help="of --samples: every N-th frame (default 1)")
    more.add_argument(
        "--fps",
        type=float,
        default=0.0,
        metavar="X",
        help="of --samples: the frame rate that video files are brought to (default: their own)",
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
    _add_prediction_arguments(parser)
    options = parser.parse_args(arguments)
    # Read when NumPy is imported. On matrices of a few hundred rows BLAS's threads mostly wait for
    # each other: a hundred times as long as the work takes, where others use the cores too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if options.compare:
        from vdm_jax.evaluation import protocol

        first, second = (protocol.load(Path(name)) for name in options.compare)
        print(protocol.compare(first, second), end="")
        return 0
    _check(parser, options)
    if options.metrics:
        from vdm_jax.evaluation import suite

        suite.check(options.metrics, reference=bool(options.reference) or not options.samples)
    common.setup(options.device, options, quiet=options.json)
    if options.out:
        outputs.in_first_process(lambda: outputs.check_file(options.out, "--out"))
    if options.metrics:
        return _measure(options)
    return _judge(options)


def _add_prediction_arguments(parser) -> None:
    group = parser.add_argument_group("prediction: samples that go on from known frames")
    group.add_argument(
        "--known",
        metavar="KNOWN",
        help="frames:K, the first K frames of a reference; frames:K,low_res:N, and the means over "
        "N x N pixels of all its frames",
    )
    group.add_argument(
        "--method",
        metavar="NAME",
        help="reconstruction, replacement, pigdm, projection or trained (default: trained for "
        "models that take masked videos, else reconstruction)",
    )
    group.add_argument("--weight", type=float, metavar="X", help="for reconstruction and pigdm")
    group.add_argument(
        "--samples_per_clip",
        type=parsing.positive,
        metavar="N",
        help="that go on from one clip (default 1)",
    )
    group.add_argument(
        "--known_from",
        metavar="PATH",
        help="clips that the known frames are from, as --reference (default: the references)",
    )
    group.add_argument(
        "--over",
        choices=("all", "predicted"),
        help="frames that features are computed of (default all, the known ones too)",
    )
    group.add_argument("--protocol", metavar="NAME", help="bair or kinetics600: all of the above")


def _check(parser, options) -> None:
    """Ends the program where flags do not go together, and fills in those of --protocol."""
    if options.samples and options.model:
        parser.error("--samples are measured, a --model is sampled: give one of them")
    if options.protocol:
        _apply_protocol(parser, options)
    elif not options.known:
        for name in ("method", "weight", "samples_per_clip", "known_from", "over"):
            if getattr(options, name) is not None:
                parser.error(f"--{name} needs --known")
    options.samples_per_clip = options.samples_per_clip or 1
    options.over = options.over or "all"
    if options.samples and options.known:
        parser.error("--known is for a --model: --samples are there already")
    if options.samples and not options.metrics:
        parser.error("--samples needs --metrics")
    if not options.metrics and (options.reference or options.out or options.known):
        parser.error("--reference, --known and --out need --metrics")
    _fill_counts(parser, options)
    if not options.samples and (options.size or options.stride or options.fps):
        parser.error("--size, --stride and --fps are for --samples: a model has its own")


def _fill_counts(parser, options) -> None:
    """The numbers of samples and references where one follows from the other."""
    each = options.samples_per_clip
    if options.known and not options.known_from and options.num_references:
        total = each * options.num_references
        if options.num_samples not in (None, total):
            parser.error(
                f"--num_samples={options.num_samples}: {each} samples of each of "
                f"{options.num_references} references are {total}"
            )
        options.num_samples = total
    if options.num_samples is None:
        options.num_samples = each * max(1, 128 // each)
    if options.num_samples % each:
        parser.error(
            f"--num_samples={options.num_samples} is no multiple of --samples_per_clip={each}"
        )


def _apply_protocol(parser, options) -> None:
    from vdm_jax.evaluation import prediction

    if options.protocol not in prediction.PAPER_PROTOCOLS:
        names = ", ".join(prediction.PAPER_PROTOCOLS)
        parser.error(f"--protocol={options.protocol}: allowed are {names}")
    paper = prediction.PAPER_PROTOCOLS[options.protocol]
    fixed = ("known", "samples_per_clip", "known_from", "over", "num_references", "num_samples")
    for name in fixed:
        if getattr(options, name) is not None:
            parser.error(f"--{name}: --protocol={options.protocol} sets it")
    if options.num_frames not in (None, paper.frames):
        parser.error(f"--num_frames: --protocol={options.protocol} has {paper.frames}")
    options.known = f"frames:{paper.known}"
    options.samples_per_clip = paper.each
    options.num_references = paper.clips
    options.metrics = options.metrics or list(paper.metrics)
    options.reference = options.reference or paper.dataset
    if not options.reference:
        parser.error(f"--protocol={options.protocol} needs --reference, the folder of test videos")


def _size(text: str) -> tuple[int, int]:
    """An argparse type: "N" or "HxW" as height and width."""
    import argparse

    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(sides[0]), int(sides[-1])


def _judge(options) -> int:
    import jax
    from rich.console import Console
    from rich.table import Table

    from vdm_jax.data import tfds_source
    from vdm_jax.evaluation import judge, vocabularies

    drawing = evaluating.drawing(options)
    if not tfds_source.is_rendered(drawing.data.name):
        raise ValueError(
            f"data.name = {drawing.data.name!r}: the judge reads rendered data only; "
            "--metrics=fvd,... measures others"
        )
    captions = tfds_source.rendered_captions(drawing.data, "held_out")
    prompts, refined = list(itertools.islice(itertools.cycle(captions), options.num_samples)), None
    if drawing.refines:
        reference = evaluating.references(options, drawing, None, options.num_samples)
        prompts, refined = list(reference.captions), reference.videos
    started = time.monotonic()
    videos = drawing.draw(prompts, refined)
    seconds = time.monotonic() - started
    if jax.process_index() != 0:
        return 0
    vocabulary = vocabularies.choose(prompts)
    figures = judge.score(videos, prompts, vocabulary)
    scores = {name: float(value) for name, value in figures.items()}
    shown = [name for name in (*vocabulary.factors, "all") if name in scores]
    scores |= {"n": len(prompts), **drawing.settings, "seconds": round(seconds, 1)}
    given = common.sampler_changes(options)
    scores |= {name: value for name, value in given.items() if value is not None}
    if options.json:
        print(json.dumps(scores))
        return 0

    print(f"{len(prompts)} samples of held-out captions, read by the judge:")
    table = Table()
    for name in shown:
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name]:.1%}" for name in shown))
    Console().print(table)
    settings = ", ".join(f"{name} {value}" for name, value in drawing.settings.items())
    print(f"sampling took {seconds:.0f} s ({settings})")
    return 0


def _measure(options) -> int:
    import jax
    from rich.console import Console

    from vdm_jax.evaluation import action_text, comparison, i3d, i3d_weights, protocol, suite

    found = (evaluating.given if options.samples else evaluating.sampled)(options)
    first = jax.process_index() == 0
    network = None
    if any(suite.METRICS[name].network for name in options.metrics):
        network = i3d.I3DFeatures(
            params=i3d_weights.load_weights(source=options.i3d), filter=options.resize
        )
    sentences = None
    if any(suite.METRICS[name].sentences for name in options.metrics):
        sentences = action_text.load_sentences()
    evaluation = comparison.Evaluation(
        samples=found.samples,
        reference=found.reference,
        subject=found.subject,
        network=network,
        sentences=sentences,
        stride=found.stride,
        prediction=found.prediction,
        remarks=found.remarks,
        seed=options.seed,
        replicates=options.replicates if first else 0,  # they are the first process's alone
        together=jax.process_count() > 1,
    )
    with Console(stderr=True, quiet=options.json or not first).status("measuring"):
        results = suite.measure(evaluation, options.metrics)
    if not first:
        return 0
    # Printed first: a disk that is full by now must not hide the figures.
    if options.json:
        print(json.dumps([result.to_dict() for result in results], indent=1))
    else:
        _print(options.metrics, results)
        samples, reference = found.samples.videos, found.reference
        against = "" if reference is None else f", compared with {len(reference.videos)} clips"
        print(f"{len(samples)} clips of {list(samples.shape[1:])}{against}")
        notes = [text for result in results for text in result.note.split("; ") if text]
        for note in dict.fromkeys(notes):
            print(f"note: {note}")
    if options.out:
        protocol.save(Path(options.out), results)
        if not options.json:
            print(options.out)
    return 0


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
