"""`vdm sample --system=text2video_zero`: an image model samples videos, untrained."""

import argparse
from typing import TYPE_CHECKING, NamedTuple

from vdm_jax.cli import common, edit_control, edit_inputs, parsing

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import Model
    from vdm_jax.stage.sampler import Sampler
    from vdm_jax.systems.text2video_zero import Text2VideoZero

SYSTEMS = ("text2video_zero",)
NO_MOTION = "none"
SCENES = "scenes"  # the masks that the judge of scenes finds
FLAGS = ("motion", "motion_unit", "attention", "chunk", "control", "controlnet")
FLAGS += ("source", "image_guidance", "foreground")


class Prepared(NamedTuple):
    """What is sampled: the model of videos, its sampler, its inputs but the prompt, a row each, the
    frame rate, and lines for the user."""

    model: "Model"
    sampler: "Sampler"
    inputs: "dict[str, np.ndarray]"
    fps: float
    notes: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--system and the flags that go with it."""
    group = parser.add_argument_group("an image model samples videos")
    group.add_argument("--system", choices=SYSTEMS, metavar="NAME", help=", ".join(SYSTEMS))
    group.add_argument(
        "--motion",
        type=_motion,
        metavar="X,Y",
        help="how far content moves to the left and up from frame to frame (default 12,12); none: "
        "frames begin with noise of their own",
    )
    group.add_argument(
        "--motion_unit",
        metavar="UNIT",
        help="picture: pixels of a picture of 512 (default); latent: places of the latent, better "
        "for small pictures",
    )
    group.add_argument(
        "--attention",
        metavar="NAME",
        help="the frames that a frame attends to: own, first (default of sample), "
        "first_and_previous, all (default of edit)",
    )
    group.add_argument(
        "--chunk", type=parsing.positive, metavar="N", help="frames denoised together (default 8)"
    )
    group.add_argument(
        "--control",
        type=edit_control.control,
        metavar="KIND[:FILE]",
        help="the video follows FILE: canny or hed, its edges; depth or pose, a video of depth or "
        "of drawn skeletons",
    )
    group.add_argument("--controlnet", metavar="FOLDER", help="the ControlNet of that kind")
    group.add_argument(
        "--source", metavar="FILE", help="the video that a model edits by instruction"
    )
    group.add_argument(
        "--image_guidance", type=float, metavar="G", help="guidance by --source (default 1)"
    )
    group.add_argument(
        "--foreground",
        metavar="FILE",
        help="a video, bright where objects are: the background of all frames becomes one; or "
        "scenes: the objects of the data set scenes are found in the first result",
    )


def _motion(text: str) -> tuple[float, float] | str:
    """An argparse type: two numbers, or none."""
    if text == NO_MOTION:
        return text
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y or {NO_MOTION}") from None
    return x, y


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with an error where flags do not fit each other."""
    given = [name for name in FLAGS if getattr(options, name) is not None]
    if options.system is None:
        if given:
            parser.error(f"--{given[0]}: needs --system={SYSTEMS[0]}")
        return
    if not options.model:
        parser.error(f"--system={options.system} needs --model, a latent image model")
    common.refuse_mesh(parser, options, f"--system={options.system}")
    if (options.control is None) != (options.controlnet is None):
        parser.error("--control and --controlnet need each other")
    if options.control is not None and not options.control.file:
        parser.error("--control needs a file here: --control=KIND:FILE")
    followed = [name for name in ("control", "source") if getattr(options, name) is not None]
    for name in ("motion", "motion_unit", "foreground"):
        if followed and name in given:
            parser.error(f"--{name}: with --{followed[0]} that video says what moves; leave it out")
    if options.motion == NO_MOTION and options.foreground is not None:
        parser.error(f"--foreground: has no effect with --motion={NO_MOTION}; leave it out")


def settings(options: argparse.Namespace) -> "Text2VideoZero":
    """What the flags choose. Raises ValueError."""
    from vdm_jax.models.blocks.cross_frame import CrossFrame
    from vdm_jax.systems.text2video_zero import INDEPENDENT, MOTION, SHARED, Text2VideoZero

    start = MOTION
    if options.source is not None or options.motion == NO_MOTION:
        start = INDEPENDENT
    if options.control is not None:
        start = SHARED
    masks = None
    if options.foreground == SCENES:
        from vdm_jax.evaluation import scene_judge

        masks = scene_judge.foregrounds
    fields = {"start": start, "masks": masks}
    if options.motion not in (None, NO_MOTION):
        fields["motion"] = options.motion
    if options.motion_unit is not None:
        fields["unit"] = options.motion_unit
    if options.chunk is not None:
        fields["chunk"] = options.chunk
    if options.attention is not None:
        fields["attention"] = CrossFrame(frames=options.attention)
    return Text2VideoZero(**fields)


def prepare(options: argparse.Namespace, model: "Model", zero: "Text2VideoZero") -> Prepared:
    """The model of videos, `zero` being the flags' `settings`. Raises FileNotFoundError and
    ValueError, before anything is compiled."""
    import numpy as np

    from vdm_jax.pipelines import text2video_zero as pipeline
    from vdm_jax.stage.conditions.source import SourceVideo
    from vdm_jax.systems.text2video_zero import FRAMES, MOTION

    if options.source is not None and model.stage.find(SourceVideo) is None:
        raise ValueError(
            f"--source={options.source}: {options.model} edits no video; give the folder of an "
            "InstructPix2Pix model, or leave --source out"
        )
    if options.source is None and model.stage.find(SourceVideo) is not None:
        raise ValueError(f"{options.model} edits videos: give --source")
    if options.foreground == SCENES:
        from vdm_jax.evaluation import scene_judge

        scene_judge.check_size("--foreground=scenes", model.stage.video_shape)
    size, frames = model.stage.video_shape[1:3], options.num_frames or FRAMES
    inputs, rates, notes = {}, [], []

    def read(flag: str, file: str) -> "np.ndarray":
        (video, *others), fps = edit_inputs.first_frames(flag, [file], size, frames)
        if others:
            raise ValueError(f"--{flag}={file}: holds several videos; give one")
        if len(video) < frames:
            raise ValueError(
                f"--{flag}={file}: has {len(video)} frames, the result {frames} (--num_frames)"
            )
        rates.append(fps)
        return video

    if options.control is not None:
        kind, file = options.control
        (inputs["hint"],) = edit_control.control_videos(kind, read("control", file)[None])
    if options.source is not None:
        inputs["source"] = read("source", options.source)
    if options.foreground not in (None, SCENES):
        video = read("foreground", options.foreground)
        inputs["foreground"] = (video.mean(-1, keepdims=True) > 127).astype(np.uint8)
    if zero.start == MOTION and options.foreground is None:
        notes.append("no masks of objects (--foreground): the background is not smoothed")
    adapted = pipeline.adapt(
        model, frames, zero, controlnet=options.controlnet, foreground="foreground" in inputs
    )
    changes = {**common.sampler_changes(options), "num_frames": None}
    sampler = adapted.sampler(image_guidance=options.image_guidance, **changes)
    fps = next(filter(None, rates), model.fps)
    return Prepared(adapted.model, sampler, inputs, fps, notes)


def identity(options: argparse.Namespace) -> dict[str, object]:
    """What the samples depend on beside those of an image model."""
    from vdm_jax.weights import published

    if options.system is None:
        return {}
    found: dict[str, object] = {name: getattr(options, name) for name in ("system", *FLAGS)}
    files = {"control": options.control and options.control.file}
    files |= {name: getattr(options, name) for name in ("source", "foreground")}
    for name, file in files.items():
        if file not in (None, SCENES):
            found[f"{name}_file"] = edit_inputs.file_digest(name, file)
    if options.controlnet is not None:
        tensors = published.Tensors(options.controlnet, published.DIFFUSERS)
        found["controlnet"] = tensors.digests.name
    return found
