"""Samples videos from prompts.

    vdm sample --prompt="a red circle moving left" --num_samples=4 [--model=MODEL] [--out=DIR]

OUT receives a file a sample (--format: MP4), samples.gif (all side by side), contact_sheet.png
(each sample's frames with its prompt) and samples.npz: `video`, uint8 b f h w c, `prompts`, b
texts, and `fps`. Files that are in OUT already are overwritten where the names agree, and else
stay. A sample depends on its place in the list of samples and on the seed, not on the batch size.

{red|blue} in a prompt stands for a prompt with each, --seed=0,1,2 for all samples with each seed.
--prompts_file=FILE has a prompt a line; FILE.jsonl has an object a line, with prompt, seed,
num_samples and sampler flags, such as {"prompt": "a red circle", "seed": 7, "steps": 32}.

Every file holds its recipe: prompt, seed, flags, the model's digest. --like=FILE makes a file's
samples again; further flags change what they say, such as another --seed.

Every sample is written when it is drawn (OUT/samples_parts/). The same command goes on behind the
last one after it was interrupted, and a command that shares samples with one that finished in OUT,
such as a longer list of prompts, draws only the others. samples.npz is written before the pictures.

An image model samples videos by --system=text2video_zero: --motion=X,Y moves its content, or the
video follows that of --control=canny:FILE with --controlnet=FOLDER, or is --source=FILE edited by a
model that takes instructions (docs/text2video_zero.md).

A LoRA file is added to a published model by --lora=FILE, or scaled by --lora=FILE:0.7.

MODEL may be a cascade: a shipped one, such as imagen_video_tiny, or the working directory of one.
OUT then also receives the videos of each stage (stages/), and the same command goes on where it
was interrupted. --stage.NAME.FIELD=VALUE sets a field of one stage's sampler, such as
--stage.base_8.steps=32; the other sampler flags are for single models.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.cli import common, outputs, parsing, progress, requests, zero_shot
from vdm_jax.cli import prompts as prompts_lib


def main(arguments: list[str]) -> int:
    parser = _parser()

    from vdm_jax import config as config_lib

    own = config_lib.split_overrides(arguments, "stage")[1]
    like, wanted = parser.parse_args(own).like, None
    if like:
        recipe, wanted, arguments = _read_recipe(parser, like, own, arguments)
    overrides, rest = config_lib.split_overrides(arguments, "stage")
    options = parser.parse_args(rest)
    zero_shot.check(parser, options)
    if wanted is None:
        lines = prompts_lib.read_lines(options.prompt, options.prompts_file, parser)
        wanted = requests.from_lines(lines, options.seed or (0,), options.num_samples)
    prompts_lib.check([options.negative or ""], "--negative")
    common.setup(options.device, options)
    outputs.in_first_process(lambda: outputs.check_folder(options.out, "--out"))

    from vdm_jax import pipelines

    if len(loras := dict(options.lora)) < len(options.lora):
        parser.error("--lora: a file is given twice")
    zero = zero_shot.settings(options) if options.system else None
    model = common.load_any(options, loras)
    base = _identity(options)
    if like and not any(one.split("=")[0] == "--model" for one in own):
        _check_digest(like, recipe, base["model"])
    if zero is not None and any(one.settings for one in wanted):
        parser.error("--prompts_file: a line sets sampler flags, which --system does not take")
    flags = requests.kept_flags(parser, arguments)
    if isinstance(model, pipelines.CascadeModel):
        if options.system:
            parser.error(f"--system={options.system}: {options.model} is a cascade")
        if not wanted:
            parser.error("no prompt: give --prompt or --prompts_file")
        return _sample_cascade(model, options, overrides, wanted, _attached(options, base, flags))
    if overrides:
        parser.error(f"--stage.{next(iter(overrides))}: the model is no cascade")
    if not wanted:
        if model.stage.text_encoder is not None:
            parser.error("no prompt: give --prompt or --prompts_file")
        empty = [prompts_lib.Line(prompt="")]
        wanted = requests.from_lines(empty, options.seed or (0,), options.num_samples)
    if zero is not None:
        prepared = zero_shot.prepare(options, model, zero)
    else:
        sampler = model.sampler(**common.sampler_changes(options))
        prepared = zero_shot.Prepared(model, sampler, {}, model.fps, [])
    # Refuses an unknown word, and a setting that the model does not have, before compiling.
    prepared.model.stage.check_prompts([one.prompt for one in wanted])
    for group in requests.groups(wanted, range(len(wanted))):
        _sampler(prepared, options, group.settings)
    return _sample_model(prepared, options, wanted, base, flags)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.parser("vdm sample", __doc__)
    common.add_model_arguments(parser)
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        type=common.lora,
        metavar="FILE[:SCALE]",
        help="a LoRA file, added to a published model; may be given several times",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="may be given several times; {a|b} in it stands for a text with a and one with b",
    )
    parser.add_argument(
        "--prompts_file",
        metavar="FILE",
        help="further prompts, one a line, or .jsonl with seed and settings; lines with # at the "
        "start are comments",
    )
    parser.add_argument(
        "--num_samples",
        type=parsing.positive,
        default=1,
        metavar="N",
        help="samples of each prompt (default 1)",
    )
    common.add_sampler_arguments(parser)
    zero_shot.add_arguments(parser)
    parser.add_argument(
        "--preview",
        action="store_true",
        help="rewrite OUT/preview.png while sampling: the current estimate of the batch",
    )
    parser.add_argument(
        "--seed", type=common.seeds, metavar="N[,N...]", help="default 0; several: samples of each"
    )
    parser.add_argument("--like", metavar="FILE", help="make the samples of a file again")
    common.add_format_argument(parser)
    parser.add_argument("--out", default="samples", metavar="OUT", help="default samples/")
    return parser


def _read_recipe(
    parser: argparse.ArgumentParser, like: str, own: list[str], arguments: list[str]
) -> tuple[dict[str, Any], list[requests.Request], list[str]]:
    """The recipe of --like, its samples with the command line's changes, and the flags of both."""
    from vdm_jax.data import recipes

    options = parser.parse_args(own)
    for name in ("prompts_file", "num_samples"):
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name} has no meaning with --like, whose file says what is sampled")
    recipe = recipes.read(like)
    flags, samples = requests.from_recipe(recipe, like)
    if any(one.split("=")[0] == "--model" for one in own):
        flags = [flag for flag in flags if not flag.startswith("--model=")]
    wanted = requests.changed(samples, prompts_lib.read(options.prompt), options.seed or ())
    return recipe, wanted, [*flags, *arguments]


def _check_digest(like: str, recipe: Mapping[str, Any], digest: str) -> None:
    """Raises ValueError where the model is not the one that made the file."""
    import vdm_jax

    if recipe.get("digest") != digest:
        raise ValueError(
            f"--like={like}: was made by {recipe['model']} with {recipe.get('digest')}, which now "
            f"is {digest}; --model={recipe['model']} samples with the new one"
        )
    if recipe["vdm_jax"] != vdm_jax.__version__:
        print(
            f"--like={like}: was made by version {recipe['vdm_jax']}; this is {vdm_jax.__version__}"
        )


def _sampler(prepared: zero_shot.Prepared, options, settings: Mapping[str, Any]):
    """The sampler of a sample's settings."""
    if not settings:
        return prepared.sampler
    return prepared.model.sampler(**{**common.sampler_changes(options), **settings})


def _attached(options, base: Mapping[str, Any], flags: Sequence[str]):
    """A function from requests, and whether their contents are named, to what files hold."""
    from vdm_jax.data import recipes
    from vdm_jax.pipelines import model as pretrained

    model = options.model or pretrained.DEFAULT

    def attached(wanted: Sequence[requests.Request], named: bool = True) -> outputs.Attached:
        def text(some: Sequence[requests.Request]) -> str:
            return recipes.to_text(requests.recipe(model, base["model"], flags, some))

        return outputs.Attached(
            formats=options.format,
            recipe=text(wanted),
            recipes=[text([one]) for one in wanted],
            identities=requests.identities(wanted, base) if named else (),
        )

    return attached


def _sample_model(
    prepared: zero_shot.Prepared,
    options,
    wanted: Sequence[requests.Request],
    base: Mapping[str, Any],
    flags: Sequence[str],
) -> int:
    """Draws and writes what no earlier command has drawn."""
    import jax

    from vdm_jax.cli import drawn
    from vdm_jax.data import frame_rate
    from vdm_jax.training import processes

    out, kept = Path(options.out), []
    attached = _attached(options, base, flags)(wanted)
    needed = len(wanted) * math.prod(prepared.sampler.video_shape)

    def take_up() -> list[int]:
        outputs.check_folder(out, "--out", needed=needed)
        kept.append(drawn.Drawn(out, attached.identities))
        return kept[0].done

    done = processes.first_does(take_up) if jax.process_count() > 1 else take_up()
    left = [index for index in range(len(wanted)) if index not in {*done}]
    groups = list(requests.groups(wanted, left))
    first = jax.process_index() == 0
    if first:
        sampler = _sampler(prepared, options, groups[0].settings if groups else {})
        print(
            f"{len(wanted)} samples, {sampler.steps} steps of {sampler.rule_name}, "
            f"guidance {sampler.guidance_scale:g}"
        )
        for note in prepared.notes:
            print(note)
        _report(out, len(wanted), len(kept[0].finished), len(done))
        if note := frame_rate.note(prepared.model.config):
            print(note)
    batches = sum(-(-len(one.indices) // prepared.sampler.batch_size) for one in groups)
    stream = _draw(prepared, options, groups)
    for indices, videos in progress.track(stream, "sampling", batches) if first else stream:
        if first:
            kept[0].add(indices, videos)
    if first:
        prompts = [one.prompt for one in wanted]
        outputs.write_samples(out, kept[0].videos(), prompts, prepared.fps, kept[0], attached)
    return 0


def _report(out: Path, count: int, finished: int, done: int) -> None:
    """Says which samples are not drawn, because they are there."""
    if finished:
        print(f"{finished} of {count} samples are in {out / 'samples.npz'}: not drawn again")
    if done > finished:
        print(f"{done - finished} samples are in {out / outputs.PARTS}: going on behind them")


def _draw(prepared: zero_shot.Prepared, options, groups: Sequence[requests.Group]):
    """Yields (numbers of samples, their videos) a batch at a time."""
    import jax
    import numpy as np

    for group in groups:
        at = 0
        for videos in _sampler(prepared, options, group.settings).stream(
            prepared.model.params,
            jax.random.key(group.seed),
            group.prompts,
            preview=_write_preview(Path(options.out)) if options.preview else None,
            inputs={n: np.stack([row] * len(group.prompts)) for n, row in prepared.inputs.items()},
            first=group.first,
        ):
            yield group.indices[at : at + len(videos)], videos
            at += len(videos)


def _identity(options) -> dict[str, Any]:
    """What all samples depend on."""
    from vdm_jax.pipelines import cascade
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.weights import published

    settings = common.sampler_changes(options)
    del settings["batch_size"]  # it changes no sample
    model = cascade.digest(options.model or pretrained.DEFAULT)
    if options.lora:
        settings["loras"] = [[published.file_digest(file), scale] for file, scale in options.lora]
    return {"model": model, **settings, **zero_shot.identity(options)}


def _sample_cascade(
    cascade, options, overrides: dict[str, str], wanted: Sequence[requests.Request], attached
) -> int:
    import jax
    import numpy as np

    from vdm_jax.data import frame_rate

    flags = {k: v for k, v in common.sampler_changes(options).items() if v is not None}
    flags |= {name: value for one in wanted for name, value in one.settings.items()}
    if flags or options.preview:
        names = ", ".join([f"--{name}" for name in flags] + ["--preview"] * options.preview)
        raise ValueError(f"{names}: for a cascade, set --stage.NAME.FIELD=VALUE instead")
    cascade = _overridden(cascade, overrides)
    out, first = Path(options.out), jax.process_index() == 0

    def progress(name: str, done: int, total: int) -> None:
        if first:
            print(f"{name}: {done} of {total}", flush=True)

    groups, videos, fps = list(requests.groups(wanted, range(len(wanted)))), {}, 0.0
    for number, group in enumerate(groups):
        # The stages of each seed have a folder of their own.
        folder = out if len(groups) == 1 else out / f"seed_{group.seed}_{number}"
        key = jax.random.key(group.seed)
        for output in cascade.stream(key, group.prompts, folder, progress, first=group.first):
            if first:
                shape = " x ".join(map(str, output.videos.shape[1:4]))
                print(f"{output.name}: {shape}, {output.seconds:.1f} s", flush=True)
        if first:
            videos |= zip(group.indices, output.videos, strict=True)
            fps = output.fps
    if first:
        if note := frame_rate.note(cascade.last_config):
            print(note)
        stacked = np.stack([videos[index] for index in range(len(wanted))])
        prompts = [one.prompt for one in wanted]
        outputs.write_samples(out, stacked, prompts, fps, attached=attached(wanted, named=False))
    return 0


def _overridden(cascade, overrides: Mapping[str, str]):
    """The cascade with the flags --stage.NAME.FIELD. Raises ConfigError."""
    from vdm_jax import config as config_lib

    if not overrides:
        return cascade
    sections = {name: cascade.sample_config(name) for name in cascade.stages}
    fields = config_lib.from_dict({name: part.to_dict() for name, part in sections.items()})
    changes: dict[str, dict[str, Any]] = {}
    for field, text in overrides.items():
        config_lib.override(fields, field, text, flag="stage")
        stage, name = field.split(".")
        changes.setdefault(stage, {})[name] = fields[stage][name]
    return cascade.replace(changes)


def _write_preview(out: Path):
    from vdm_jax.data import video_io

    def write(step: int, steps: int, videos) -> None:
        labels, partial = [f"step {step} of {steps}"] * len(videos), out / ".preview.png"

        def make() -> None:
            video_io.contact_sheet(partial, videos, labels, max_clips=8)
            partial.replace(out / "preview.png")  # never half a picture

        with outputs.Pictures() as pictures:
            pictures.write(out / "preview.png", make)

    return write
