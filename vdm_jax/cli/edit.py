"""Edits videos with a trained model: longer, slower, larger, whole, endless.

    vdm edit extend --prompt="a red circle moving left" --frames=64 [--model=MODEL] [--out=DIR]
    vdm edit interpolate --input=clip.mp4 --prompt="a red circle moving left"
    vdm edit stylise --model=MODEL --style=IMAGE_MODEL --amount=0.7 --out=FILE.safetensors

JOB is one of
  extend         adds clips until there are --frames frames; each clip begins with the last
                 --context frames so far; --then gives the prompts of the added clips, in turn;
                 --backwards adds them before the video
  interpolate    makes --factor - 1 new frames between each two
  super_resolve  enlarges from 1/--factor of the model's size
  refine         a video of any size and rate through a super-resolution stage (--model=STAGE), in
                 space or in time; a longer one in parts that share --context frames
  inpaint        makes --box, or the white of --mask, anew
  outpaint       makes all but --box anew
  animate        makes a clip that begins with the first frame; with a model that was trained for
                 it, such as Stable Video Diffusion, at --height, --width and --fps, with
                 --motion_bucket
  cinemagraph    makes a clip of the first frame in which only --box moves
  restyle        starts again from a noisy version, --strength of the way back, with prompt --then
  loop           appends a way back to the first frame, with prompt --then
  join           makes one video of two (--input twice) with a way between them, whose prompt is
                 --prompt; the way begins and ends with --context frames of them
  invert         finds the noise z that the model makes a video of (DDIM inversion), and samples
                 from z: a reconstruction, and, for each --then, the video with that prompt
                 (docs/conditional.md)
  control        makes a video that follows the edges, depth or poses of another (--control), with
                 an image model and its ControlNet (docs/controlvideo.md)
  restructure    makes a video with the depth of --input and the content of --prompt or --image,
                 with a model of Gen-1 (docs/gen1.md)
  stylise        writes a model: a space-time U-Net whose image layers are --amount of the way to
                 those of --style, an image model that its own image model was fine-tuned to (vdm
                 train with --config.train.init_from=IMAGE_MODEL on images of the style; Lumiere,
                 section 4.1). Sample it with vdm sample --model=FILE.

Without --input a clip of each prompt is sampled first, and the job's known frames or pixels are
taken from it. An --input is scaled to cover the job's size and cut around its middle, brought to
the model's frame rate by time (interpolate keeps its frames), and needs one --prompt, or one for
each video. Jobs that make one clip take the first frames of a longer video, and repeat the last of
a shorter one. The result keeps the sound of its input. A line says what was done.
OUT receives the files of vdm sample, and the known pixels as given.gif and given.npz. Every batch
is written when it is drawn (OUT/samples_parts/NUMBER.npy), and the same command goes on behind the
last batch after it was interrupted. --method chooses how known pixels guide sampling
(docs/conditional.md); interpolate --method=rife takes the optical flow and no model.
--low_res=FILE is what all frames of the result are at a lower resolution: the new ones follow it.
"""

import argparse
from pathlib import Path

from vdm_jax.cli import (
    common,
    edit_control,
    edit_depth,
    edit_files,
    edit_inputs,
    edit_invert,
    edit_restructure,
    edit_rife,
    outputs,
    parsing,
    progress,
)
from vdm_jax.cli import prompts as prompts_lib

_MASKED = ("inpaint", "outpaint", "animate", "cinemagraph")
_KNOWING = ("extend", "interpolate", "super_resolve", "refine", *_MASKED, "restyle")
_KNOWING += ("loop", "join")
# The jobs that have a module of their own.
_MODULES = {"control": edit_control, "invert": edit_invert, "restructure": edit_restructure}
_SAMPLING = (*_KNOWING, *_MODULES)
JOBS = (*_SAMPLING, "stylise")
_FLAGS = {
    "frames": ("extend",),
    "context": ("extend", "loop", "join", "refine"),
    "backwards": ("extend",),
    "low_res": ("extend", *_MASKED),
    "factor": ("interpolate", "super_resolve"),
    "box": ("inpaint", "outpaint", "cinemagraph"),
    "mask": ("inpaint", "outpaint", "cinemagraph", "restructure"),
    "strength": ("restyle",),
    "then": ("extend", "restyle", "loop", "invert"),
    **dict.fromkeys(edit_inputs.STILL_FLAGS, ("animate",)),
    "fps": ("animate", "extend", "interpolate"),
    **dict.fromkeys(("method", "weight"), _KNOWING),
    **dict.fromkeys(("input", "prompt", *common.SAMPLER_FLAGS), _SAMPLING),
    **{flag: (job,) for job, module in _MODULES.items() for flag in module.FLAGS},
    "depth": ("restructure", "control"),
    **dict.fromkeys(("style", "amount"), ("stylise",)),
}


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    if options.job == "stylise":
        return _stylise(options)
    if options.job in _MODULES:
        return _MODULES[options.job].run(options)
    if options.method == "rife":
        return edit_rife.run(options)
    prompts_lib.check(options.then, "--then")
    prompts_lib.check([options.negative or ""], "--negative")
    common.setup(options.device, options)
    out = Path(options.out or "edited")
    outputs.in_first_process(lambda: outputs.check_folder(options.out or out, "--out"))

    import jax
    import numpy as np

    from vdm_jax.data import frame_rate
    from vdm_jax.stage.conditions.video import MaskedVideo

    model = edit_inputs.fitted(options, common.load_model(options))
    condition = model.stage.find(MaskedVideo)
    masked = condition is not None and (
        options.job in _MASKED or _kind_of(options) in condition.kinds
    )
    sampler = model.sampler(
        method=options.method or ("trained" if masked else "reconstruction"),
        weight=options.weight,
        remat=options.remat,
        **common.sampler_changes(options),
        **{name: getattr(options, name) for name in edit_inputs.STILL_SETTINGS},
    )
    key, start_key = jax.random.split(jax.random.key(options.seed))
    found = edit_inputs.read(options, model, sampler)
    given, prompts = found.videos, found.prompts
    if jax.process_index() == 0:
        for note in filter(None, [frame_rate.note(model.config), *found.notes]):
            print(note)
    model.stage.check_prompts([*prompts, *options.then])  # refuses an unknown word
    if options.job in _MASKED:
        _known(options, sampler)  # refuses a box or a mask
    sampler = _kept(options, out, sampler, found)
    if given is None:
        given = np.concatenate(list(sampler.stream(model.params, start_key, prompts)))
        given = _part_known(options, given, sampler)
    first = jax.process_index() == 0
    if first:  # before the work on it begins
        outputs.save_videos(out / "given.npz", given, prompts, found.rate)
    with progress.report(options.job, quiet=not first) as report:
        videos = _run(options, sampler, model.params, key, given, prompts, report)
    if not first:
        return 0
    attached = edit_files.attached(options)
    prompts = prompts[: len(videos)]
    outputs.write_samples(out, videos, prompts, found.fps, sampler.parts, attached)
    outputs.write_given(out, _shown(options, given, sampler), videos.shape[2] * 4, found.rate)
    return 0


def _kept(options, out: Path, sampler, found: edit_inputs.Inputs):
    """The sampler of a job whose videos are kept in `out` until the result is written."""
    import jax

    from vdm_jax.cli import resuming

    parts: list[outputs.Parts] = []

    def take_up() -> None:
        parts.append(outputs.Parts(out, _identity(options, found), None))
        if parts[0].done:
            print(f"{parts[0].done} clips are in {out / outputs.PARTS}: going on behind them")

    outputs.in_first_process(take_up)
    return resuming.KeptSampler.of(sampler, parts[0] if jax.process_index() == 0 else None)


def _identity(options, found: edit_inputs.Inputs) -> dict[str, object]:
    """What the clips of a job depend on."""
    import hashlib

    from vdm_jax.pipelines import model as pretrained

    flags = {name: getattr(options, name) for name in (*_FLAGS, "job", "seed")}
    for name in ("input", "low_res", "mask", "batch_size", "style", "amount"):
        del flags[name]  # contents count below; the others change no clip
    given = None
    if found.videos is not None:
        given = [found.videos.shape, hashlib.sha256(found.videos.tobytes()).hexdigest()]
    return {
        **flags,
        "model": pretrained.digest(options.model or pretrained.DEFAULT),
        "low_res": edit_inputs.file_digest("low_res", options.low_res),
        "mask": edit_inputs.file_digest("mask", options.mask),
        "prompts": found.prompts,
        "given": given,
    }


def _add_job_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group of flags that some jobs have."""
    job = parser.add_argument_group("for some jobs")
    number = {"type": parsing.positive, "metavar": "N"}
    job.add_argument("--frames", **number, help="extend: in all (default: 4 clips' worth)")
    job.add_argument(
        "--context",
        **number,
        help="extend, loop, join: known frames (default: half a clip, 1, 1); refine: frames of the "
        "input that parts share (default: a quarter of a part)",
    )
    job.add_argument(
        "--backwards", action="store_true", default=None, help="extend: before the video"
    )
    job.add_argument("--factor", **number, help="interpolate, super_resolve: (default 2)")
    job.add_argument(
        "--box",
        type=_box,
        metavar="T,L,H,W",
        help="inpaint, outpaint, cinemagraph: top, left, height, width in pixels (default: the "
        "middle)",
    )
    job.add_argument(
        "--mask",
        metavar="FILE",
        help="in the place of --box: a picture that is white there and black elsewhere, stretched "
        "to the model's frame; restructure: also a video, white where the result is new",
    )
    job.add_argument(
        "--strength", type=float, metavar="X", help="restyle: above 0, at most 1 (default 0.6)"
    )
    return job


def _parse(arguments: list[str]):
    """The flags, checked as far as they can be without the model."""
    parser = parsing.parser("vdm edit", __doc__)
    parser.add_argument("job", metavar="JOB", choices=JOBS, help=", ".join(JOBS))
    common.add_model_arguments(parser)
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="FILE",
        help="a video, a still image, or samples.npz",
    )
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="one for each video, or one"
    )
    parser.add_argument("--then", action="append", default=[], metavar="TEXT", help="see above")
    parser.add_argument(
        "--low_res",
        metavar="FILE",
        help="a video or samples.npz: the result at a lower resolution, for extend and jobs with "
        "known pixels",
    )
    job = _add_job_arguments(parser)
    for module in _MODULES.values():
        module.add_arguments(parser)
    edit_depth.add_arguments(parser)
    job.add_argument("--style", metavar="MODEL", help="stylise: a fine-tuned image model")
    job.add_argument("--amount", type=float, metavar="X", help="stylise: from 0 to 1 (default 0.7)")
    edit_inputs.add_still_arguments(parser)
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="reconstruction, replacement, pigdm, projection, or trained, for models that take "
        "masked videos (default: trained for such models, else reconstruction); interpolate also: "
        "rife, by optical flow",
    )
    parser.add_argument("--weight", type=float, metavar="X", help="for reconstruction and pigdm")
    parser.add_argument(
        "--remat",
        default="none",
        metavar="NAME",
        help="activations that are computed twice to save memory, where a method differentiates "
        "the network: none (default), dots or full",
    )
    common.add_sampler_arguments(parser)
    common.add_format_argument(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--out", metavar="OUT", help="a directory (default edited/); stylise: a .safetensors file"
    )
    options = parser.parse_args(arguments)
    options.typed = list(arguments)
    _check(parser, options)
    options.prompt = prompts_lib.read(options.prompt)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the process where flags do not fit each other."""
    for name, jobs in _FLAGS.items():
        if getattr(options, name) not in (None, []) and options.job not in jobs:
            parser.error(f"--{name} has no meaning for {options.job}, only for {', '.join(jobs)}")
    for module in _MODULES.values():
        module.check(parser, options)
    if options.box and options.mask:
        parser.error("--box and --mask both choose the pixels: give one")
    if options.method == "rife":
        edit_rife.check(parser, options)
    elif options.job == "stylise":
        if not options.model or not options.style:
            parser.error("stylise needs --model, a space-time U-Net, and --style, an image model")
        if not (options.out or "").endswith(".safetensors"):
            parser.error(f"--out={options.out}: must end in .safetensors for stylise")
    elif options.job == "refine" and not options.input:
        parser.error("refine needs --input, the video that is refined")
    elif not options.input and not options.prompt:
        parser.error("neither --input nor --prompt")


def _stylise(options) -> int:
    common.setup(options.device, options)
    outputs.in_first_process(lambda: outputs.check_file(options.out, "--out"))

    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems import lumiere

    model, style = (
        pretrained.load(source, offload=options.offload)
        for source in (options.model, options.style)
    )
    amount = 0.7 if options.amount is None else options.amount
    params = lumiere.stylise(model.params, style.params, amount)
    print(pretrained.save_model(options.out, params, model.config))
    return 0


def _run(options, sampler, params, key, given, prompts, progress):
    from vdm_jax.pipelines import editing

    clip = sampler.video_shape[0]
    if options.job == "extend":
        return editing.extend(
            sampler,
            params,
            key,
            given,
            [options.then or prompt for prompt in prompts],
            frames=options.frames or 4 * clip,
            context=options.context or max(1, clip // 2),
            backwards=bool(options.backwards),
            low_res=edit_inputs.low_res(options, sampler, options.frames or 4 * clip),
            progress=progress,
        )
    if options.job == "refine":
        return editing.refine(
            sampler,
            params,
            key,
            given,
            prompts,
            context=options.context or max(1, edit_inputs.coarse_shape(sampler.stage)[0] // 4),
            progress=progress,
        )
    if options.job == "loop":
        if len(options.then) > 1:
            raise ValueError("--then was given more than once: a loop has one way back")
        texts = options.then * len(prompts) or prompts
        return editing.loop(
            sampler, params, key, given, texts, context=options.context or 1, progress=progress
        )
    if options.job == "join":
        if len(given) != 2:
            raise ValueError("--input: join takes two videos")
        return editing.join(
            sampler,
            params,
            key,
            given[:1],
            given[1:],
            prompts[:1],
            context=options.context or 1,
            progress=progress,
        )
    if options.job == "interpolate":
        factor = options.factor or 2
        return editing.interpolate(
            sampler, params, key, given, prompts, factor=factor, progress=progress
        )
    if options.job == "super_resolve":
        return editing.super_resolve(sampler, params, key, given, prompts, progress=progress)
    if options.job == "restyle":
        texts = options.then or prompts
        if len(texts) == 1:
            texts = texts * len(prompts)
        strength = 0.6 if options.strength is None else options.strength
        return editing.restyle(
            sampler, params, key, given, texts, strength=strength, progress=progress
        )
    if options.job == "animate" and edit_inputs.takes_still(sampler.stage):
        return editing.animate(sampler, params, key, given[:, 0], prompts, progress=progress)
    known = _known(options, sampler)
    low_res = edit_inputs.low_res(options, sampler, clip)
    return editing.inpaint(
        sampler, params, key, given, prompts, known=known, low_res=low_res, progress=progress
    )


def _kind_of(options) -> str:
    """The kind of mask, of `diffusion.masks.KINDS`, that a job of whole frames has; "" = none."""
    if options.job == "extend":
        return "end" if options.backwards else "beginning"
    return "ends" if options.job in ("loop", "join") else ""


def _part_known(options, videos, sampler):
    """The part of sampled clips that a job takes as known."""
    if options.job == "interpolate":
        return videos[:, :: options.factor or 2]
    if options.job == "super_resolve":
        import numpy as np
        from einops import reduce

        factor = sampler.video_shape[1] // edit_inputs.low_size(options, sampler)[0]
        means = reduce(
            videos.astype(np.float32), "n f (h s) (w r) c -> n f h w c", "mean", s=factor, r=factor
        )
        return np.rint(means).astype(np.uint8)
    return edit_inputs.still(options, videos, sampler)


def _known(options, sampler):
    """bool `f h w`, or with axes of 1: the known pixels of a job of `_MASKED`."""
    import numpy as np

    first = (np.arange(sampler.video_shape[0]) == 0)[:, None, None]
    if options.job == "animate":
        return first
    inside = _inside(options, sampler)[None]
    return {"inpaint": ~inside, "outpaint": inside, "cinemagraph": ~inside | first}[options.job]


def _inside(options, sampler):
    """bool `h w`: the mask or the box; by default the middle quarter of the area."""
    import numpy as np

    height, width = sampler.video_shape[1:3]
    if options.mask:
        return edit_inputs.mask(options, height, width)
    box = options.box or (height // 4, width // 4, height // 2, width // 2)
    top, left, tall, wide = box
    if top + tall > height or left + wide > width:
        raise ValueError(f"--box={','.join(map(str, box))}: reaches beyond {height} x {width}")
    inside = np.zeros((height, width), bool)
    inside[top : top + tall, left : left + wide] = True
    return inside


def _shown(options, given, sampler):
    """The known pixels, and grey where nothing is known."""
    if options.job not in _MASKED:
        return given
    return common.greyed(given, _known(options, sampler))


def _box(text: str) -> tuple[int, ...]:
    import argparse

    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdigit() for part in parts) or "0" in parts[2:]:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOP,LEFT,HEIGHT,WIDTH")
    return tuple(map(int, parts))
