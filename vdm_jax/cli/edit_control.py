"""`vdm edit control`: a video that follows another's edges, depth or poses (ControlVideo)."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vdm_jax.cli import common, edit_inputs, outputs
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
        help="what the result follows: canny or hed, the edges of FILE (default: --input); depth "
        "or pose, where FILE is a video of depth, near bright, or of drawn skeletons",
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
    if bool(options.input) == bool(options.control.file):
        parser.error("control needs either --input or a file in --control=KIND:FILE")
    if not options.prompt:
        parser.error("control needs --prompt, what the result shows")


def run(options) -> int:
    """The job. Raises what reading its inputs raises, before anything is compiled."""
    for flag in ("prompt", "negative"):
        texts = getattr(options, flag)
        prompts_lib.check([texts or ""] if flag == "negative" else texts, f"--{flag}")
    common.setup(options.device, options)
    out = Path(options.out or "edited")
    outputs.in_first_process(lambda: outputs.check_folder(options.out or out, "--out"))

    import jax
    import numpy as np
    from rich.progress import Progress

    from vdm_jax.cli import resuming
    from vdm_jax.pipelines import controlvideo
    from vdm_jax.systems.controlvideo import HINT, Smoother

    model = common.load_model(options)
    found = read(options, model)
    adapted = controlvideo.adapt(
        model,
        options.controlnet,
        found.videos.shape[1],
        attention=options.attention or "all",
        hierarchical=bool(options.hierarchical),
        smoother=None if options.no_smoother else Smoother(),
    )
    changes = {**common.sampler_changes(options), "num_frames": None}
    sampler = adapted.sampler(**changes)
    model.stage.check_prompts(found.prompts)
    parts = outputs.Parts(out, _identity(options, found), len(found.videos))
    if parts.done:
        print(f"{parts.done} clips are in {out / outputs.PARTS}: going on behind them")
    sampler = resuming.KeptSampler.of(sampler, parts)
    outputs.save_videos(out / "given.npz", found.videos, found.prompts, found.fps)
    made: list[np.ndarray] = []
    with Progress(transient=True) as bar:
        task = bar.add_task(options.job, total=len(found.videos))
        stream = sampler.stream(
            adapted.model.params,
            jax.random.key(options.seed),
            found.prompts,
            inputs={HINT: found.videos},
        )
        for videos in stream:
            made.append(videos)
            bar.update(task, advance=len(videos))
    outputs.write_samples(out, np.concatenate(made), found.prompts, found.fps, sampler.parts)
    outputs.write_given(out, found.videos, found.videos.shape[2] * 4, found.fps)
    return 0


def read(options, model: "Model") -> edit_inputs.Inputs:
    """The control videos, one a prompt, with the model's size and the asked-for frames.

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
    return edit_inputs.Inputs(
        videos=np.stack([controls.make(kind, video) for video in videos]),
        prompts=edit_inputs.one_each(options.prompt, len(videos)),
        fps=fps or model.fps,
        rate=fps or model.fps,
        notes=[],
    )


def _frames(options) -> int | None:
    """The most frames of a result; None = as many as the input has."""
    from vdm_jax.systems import controlvideo

    if options.num_frames or options.hierarchical:
        return options.num_frames
    return controlvideo.FRAMES


def _identity(options, found: edit_inputs.Inputs) -> dict[str, object]:
    """What the clips of a job depend on."""
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.weights import published

    names = (*common.SAMPLER_FLAGS, "job", "seed", "attention", "hierarchical", "no_smoother")
    flags = {name: getattr(options, name) for name in names if name != "batch_size"}
    controlnet = published.Tensors(options.controlnet, published.DIFFUSERS).digests.name
    return {
        **flags,
        "model": pretrained.digest(options.model),
        "controlnet": controlnet,
        "prompts": found.prompts,
        "control": [found.videos.shape, hashlib.sha256(found.videos.tobytes()).hexdigest()],
    }
