"""`vdm edit control`: a video that follows another's edges, depth or poses (ControlVideo)."""

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from vdm_jax.cli import common, edit_depth, edit_files, edit_inputs, outputs, progress
from vdm_jax.cli import prompts as prompts_lib

if TYPE_CHECKING:
    from vdm_jax.pipelines import Model

FLAGS = ("control", "controlnet", "attention", "hierarchical", "no_smoother")


class Control(NamedTuple):
    """What --control says: a kind, and the file that it is made of; "" = --input."""

    kind: str
    file: str


def control(text: str) -> Control:
    """An argparse type: KIND or KIND:FILE."""
    kind, _, file = text.partition(":")
    return Control(kind, file)


def add_arguments(parser) -> None:
    """The flags of the job."""
    job = parser.add_argument_group("for control")
    job.add_argument(
        "--control",
        type=control,
        metavar="KIND[:FILE]",
        help="what the result follows: canny or hed, the edges of FILE; depth or pose, where FILE "
        "is a video of depth, near bright, or of drawn skeletons; KIND alone takes --input, whose "
        "depth --depth gives",
    )
    job.add_argument("--controlnet", metavar="FOLDER", help="the ControlNet of that kind")
    job.add_argument(
        "--attention",
        metavar="NAME",
        help="the frames that a frame attends to: all (default), first or own",
    )
    job.add_argument(
        "--hierarchical",
        action="store_true",
        default=None,
        help="key frames first, then the clips between them: N frames take the memory of √N",
    )
    job.add_argument(
        "--no_smoother",
        action="store_true",
        default=None,
        help="without interpolating frames at two of the steps",
    )


def check(parser, options) -> None:
    """Ends with an error where flags are missing or do not fit each other."""
    if options.job != "control":
        return
    for name in ("control", "controlnet", "model"):
        if not getattr(options, name):
            parser.error(f"control needs --{name}")
    common.refuse_mesh(parser, options, "control")
    if bool(options.input) == bool(options.control.file):
        parser.error("control needs either --input or a file in --control=KIND:FILE")
    if options.depth and (options.control.kind != "depth" or options.control.file):
        parser.error("--depth is for --control=depth with --input, the video whose depth it is")
    if not options.prompt:
        parser.error("control needs --prompt, what the result shows")


def run(options) -> int:
    """The job. Raises what reading its inputs raises, before anything is compiled."""
    prompts_lib.check([options.negative or ""], "--negative")
    common.setup(options.device)
    out = outputs.check_folder(options.out or "edited", "--out")

    import jax
    import numpy as np

    from vdm_jax.cli import resuming
    from vdm_jax.pipelines import controlvideo
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems.controlvideo import HINT, Smoother

    model = pretrained.load(options.model, offload=options.offload)
    videos, prompts, fps = read(options, model)
    adapted = controlvideo.adapt(
        model,
        options.controlnet,
        videos.shape[1],
        attention=options.attention or "all",
        hierarchical=bool(options.hierarchical),
        smoother=None if options.no_smoother else Smoother(),
    )
    sampler = adapted.sampler(**{**common.sampler_changes(options), "num_frames": None})
    model.stage.check_prompts(prompts)
    source = edit_depth.read_or_estimate(options.depth, videos) if options.depth else videos
    hints = control_videos(options.control.kind, source)
    parts = outputs.Parts(out, _identity(options, hints, prompts), len(hints))
    if parts.done:
        print(f"{parts.done} clips are in {out / outputs.PARTS}: going on behind them")
    sampler = resuming.KeptSampler.of(sampler, parts)
    outputs.save_videos(out / "given.npz", hints, prompts, fps)
    key = jax.random.key(options.seed)
    stream = sampler.stream(adapted.model.params, key, prompts, inputs={HINT: hints})
    batches = -(-len(hints) // min(sampler.batch_size, len(hints)))
    made = np.concatenate(list(progress.track(stream, options.job, batches)))
    outputs.write_samples(out, made, prompts, fps, sampler.parts, edit_files.attached(options))
    outputs.write_given(out, hints, hints.shape[2] * 4, fps)
    return 0


def read(options, model: "Model") -> "tuple[np.ndarray, list[str], float]":
    """The first frames of the videos that controls are made of, uint8 `n f h w 3` of the model's
    size; a prompt for each; and their frame rate.

    Raises FileNotFoundError and ValueError, naming the flag.
    """
    import numpy as np

    from vdm_jax.data import controls

    kind, file = options.control
    if kind not in controls.KINDS:
        raise ValueError(f"--control={kind}: allowed are {', '.join(controls.KINDS)}")
    size = model.stage.video_shape[1:3]
    flag, names = ("control", [file]) if file else ("input", options.input)
    videos, fps = edit_inputs.first_frames(flag, names, size, _frames(options))
    prompts = edit_inputs.one_each(options.prompt, len(videos))
    return np.stack(videos), prompts, fps or model.fps


def control_videos(kind: str, videos: "np.ndarray") -> "np.ndarray":
    """The control videos of a kind, of videos uint8 `n f h w c`. Raises ValueError."""
    import numpy as np

    from vdm_jax.data import controls

    try:
        return np.stack([controls.make(kind, video) for video in videos])
    except ImportError as error:
        raise ValueError(f"--control={kind}: {error}") from error


def _frames(options) -> int | None:
    """The most frames of a result; None = as many as the input has."""
    from vdm_jax.systems import controlvideo

    if options.num_frames or options.hierarchical:
        return options.num_frames
    return controlvideo.FRAMES


def _identity(options, hints: "np.ndarray", prompts: list[str]) -> dict[str, object]:
    """What the clips of a job depend on."""
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.weights import published

    names = (*common.SAMPLER_FLAGS, "job", "seed", "attention", "hierarchical", "no_smoother")
    flags = {name: getattr(options, name) for name in names if name != "batch_size"}
    return {
        **flags,
        "model": pretrained.digest(options.model),
        "controlnet": published.Tensors(options.controlnet, published.DIFFUSERS).digests.name,
        "prompts": prompts,
        "control": [hints.shape, hashlib.sha256(hints.tobytes()).hexdigest()],
    }
