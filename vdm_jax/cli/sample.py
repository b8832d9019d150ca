"""Samples videos from prompts.

    vdm sample --prompt="a red circle moving left" --num_samples=4 [--model=MODEL] [--out=DIR]

OUT receives an MP4 a sample, samples.gif (all side by side), contact_sheet.png (each sample's
frames with its prompt) and samples.npz: `video`, uint8 b f h w c, `prompts`, b texts, and `fps`.
Files that are in OUT already are overwritten where the names agree, and else stay. A sample depends
on its place in the list of samples and on the seed, not on the batch size.

Every batch is written when it is drawn (OUT/samples_parts/NUMBER.npy). The same command goes on
behind the last batch after it was interrupted. samples.npz is written before the pictures.

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
from pathlib import Path

from vdm_jax.cli import common, outputs, progress, zero_shot
from vdm_jax.cli import prompts as prompts_lib


def main(arguments: list[str]) -> int:
    parser = _parser()

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments, "stage")
    options = parser.parse_args(arguments)
    zero_shot.check(parser, options)
    prompts = prompts_lib.read(options.prompt, options.prompts_file)
    prompts_lib.check([options.negative or ""], "--negative")
    common.setup(options.device, options)
    outputs.in_first_process(lambda: outputs.check_folder(options.out, "--out"))

    import jax

    from vdm_jax import pipelines

    if len(loras := dict(options.lora)) < len(options.lora):
        parser.error("--lora: a file is given twice")
    zero = zero_shot.settings(options) if options.system else None
    model = common.load_any(options, loras)
    if isinstance(model, pipelines.CascadeModel):
        if options.system:
            parser.error(f"--system={options.system}: {options.model} is a cascade")
        if not prompts:
            parser.error("no prompt: give --prompt or --prompts_file")
        return _sample_cascade(model, options, overrides, prompts)
    if overrides:
        parser.error(f"--stage.{next(iter(overrides))}: the model is no cascade")
    if not prompts:
        if model.stage.text_encoder is not None:
            parser.error("no prompt: give --prompt or --prompts_file")
        prompts = [""]
    if zero is not None:
        prepared = zero_shot.prepare(options, model, zero)
        model = prepared.model
    else:
        sampler = model.sampler(**common.sampler_changes(options))
        prepared = zero_shot.Prepared(model, sampler, {}, model.fps, [])
    sampler = prepared.sampler
    model.stage.check_prompts(prompts)  # refuses an unknown word before compiling
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    if jax.process_index() == 0:
        print(
            f"{len(repeated)} samples, {sampler.steps} steps of {sampler.rule_name}, "
            f"guidance {sampler.guidance_scale:g}"
        )
        for note in prepared.notes:
            print(note)

    return _sample_model(prepared, options, repeated)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("vdm sample", __doc__)
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
        "--prompt", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    parser.add_argument(
        "--prompts_file",
        metavar="FILE",
        help="further prompts, one a line; lines with # at the start are comments",
    )
    parser.add_argument(
        "--num_samples",
        type=common.positive,
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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--out", default="samples", metavar="OUT", help="default samples/")
    return parser


def _sample_model(prepared: zero_shot.Prepared, options, prompts: list[str]) -> int:
    """Draws and writes what an earlier call of the same command has not drawn."""
    import jax
    import numpy as np

    from vdm_jax.data import frame_rate
    from vdm_jax.training import processes

    out, parts, (model, sampler) = Path(options.out), [], prepared[:2]
    needed = len(prompts) * math.prod(sampler.video_shape)

    def take_up() -> int:
        outputs.check_folder(out, "--out", needed=needed)
        parts.append(outputs.Parts(out, _identity(options, prompts), len(prompts)))
        return parts[0].done

    done = processes.first_does(take_up) if jax.process_count() > 1 else take_up()
    stream, left = iter(()), len(prompts) - done
    if left:
        stream = sampler.stream(
            model.params,
            jax.random.key(options.seed),
            prompts[done:],
            preview=_write_preview(out) if options.preview else None,
            inputs={n: np.stack([row] * left) for n, row in prepared.inputs.items()},
            first=done,
        )
    if jax.process_index() != 0:
        for _ in stream:  # the first process writes
            pass
        return 0
    if done:
        print(f"{done} samples are in {out / outputs.PARTS}: going on behind them")
    if note := frame_rate.note(model.config):
        print(note)
    batches = -(-left // min(sampler.batch_size, left)) if left else 0
    for videos in progress.track(stream, "sampling", batches):
        parts[0].add(videos)
    outputs.write_samples(out, parts[0].videos(), prompts, prepared.fps, parts[0])
    return 0


def _identity(options, prompts: list[str]) -> dict:
    """What samples depend on."""
    from vdm_jax.pipelines import cascade
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.weights import published

    settings = common.sampler_changes(options)
    del settings["batch_size"]  # it changes no sample
    model = cascade.digest(options.model or pretrained.DEFAULT)
    if options.lora:
        settings["loras"] = [[published.file_digest(file), scale] for file, scale in options.lora]
    settings |= zero_shot.identity(options)
    return {"model": model, "seed": options.seed, "prompts": prompts, **settings}


def _sample_cascade(cascade, options, overrides: dict[str, str], prompts: list[str]) -> int:
    import jax

    from vdm_jax import config as config_lib
    from vdm_jax.data import frame_rate

    flags = {k: v for k, v in common.sampler_changes(options).items() if v is not None}
    if flags or options.preview:
        names = ", ".join([f"--{name}" for name in flags] + ["--preview"] * options.preview)
        raise ValueError(f"{names}: for a cascade, set --stage.NAME.FIELD=VALUE instead")
    if overrides:
        sections = {name: cascade.sample_config(name) for name in cascade.stages}
        fields = config_lib.from_dict({name: part.to_dict() for name, part in sections.items()})
        changes = {}
        for field, text in overrides.items():
            config_lib.override(fields, field, text, flag="stage")
            stage, name = field.split(".")
            changes.setdefault(stage, {})[name] = fields[stage][name]
        cascade = cascade.replace(changes)
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    out, first = Path(options.out), jax.process_index() == 0

    def progress(name: str, done: int, total: int) -> None:
        if first:
            print(f"{name}: {done} of {total}", flush=True)

    for output in cascade.stream(jax.random.key(options.seed), repeated, out, progress):
        if first:
            shape = " x ".join(map(str, output.videos.shape[1:4]))
            print(f"{output.name}: {shape}, {output.seconds:.1f} s", flush=True)
    if first:
        if note := frame_rate.note(cascade.last_config):
            print(note)
        outputs.write_samples(out, output.videos, repeated, output.fps)
    return 0


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
