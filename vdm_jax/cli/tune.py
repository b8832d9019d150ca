"""Tunes an image model on one video, then edits the video by prompts (Tune-A-Video).

    vdm tune --input=clip.mp4 --model=FOLDER --prompt="a man is skiing" --edit="a panda is skiing"
    vdm tune --input=clip.mp4 --tuned=tuned/tuned.safetensors --edit="a robot is skiing"

MODEL is a latent image model: a folder of Stable Diffusion 1 or 2, or the shipped scenes_image
(default). --prompt says what the video shows. The model is tuned on --num_frames of the video's
frames, every --stride-th. Then the video is inverted through the tuned
network, and each --edit is sampled from there. What the prompts share stays, and so does the
motion.

Steps, learning rate and so on are those of the configuration --config, by default
tune_a_video/tiny for scenes_image and tune_a_video/paper for others. Every field can be set, such
as --config.train.beta2=0.99.

OUT receives tuned.safetensors, which holds what was tuned and needs MODEL where it is now; tuning/,
the working directory of the run; the edits as vdm sample writes its samples; source.npz, z.npz; and
side_by_side.mp4 and .gif: the source and the edits. --tuned=FILE edits again without tuning. vdm
convert --to=diffusers writes a tuned model in the format of Tune-A-Video's code, if it was tuned
with --norm_over_frames.

Ctrl-C saves and stops; the same command goes on, within tuning or behind the last edit.

Exit status: 0 done, or stopped by Ctrl-C and saved; 75 stopped by SIGTERM and saved, to be started
again; 1 an error, which is printed.
"""

import argparse
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vdm_jax.cli import common, edit_inputs, outputs, parsing, progress
from vdm_jax.cli import prompts as prompts_lib

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import Model

IMAGE_MODEL = "scenes_image"
TINY, PAPER = "tune_a_video/tiny", "tune_a_video/paper"
INVERSION = "first"
_Z_PARTS = "z_parts"
# Flags that are fields of the configuration; those of tuning have no meaning for --tuned.
_TUNING = {
    "num_frames": "data.num_frames",
    "stride": "data.frame_stride",
    "updates": "train.steps",
    "learning_rate": "train.learning_rate",
    "remat": "model.remat",
    "norm_over_frames": "temporal.norm_over_frames",
}
_SAMPLING = ("steps", "guidance", "negative")


def main(arguments: list[str]) -> int:
    from vdm_jax import config as config_lib

    overrides, rest = config_lib.split_overrides(arguments)
    options = _parse(rest, bool(overrides))
    prompts_lib.check([options.prompt or ""], "--prompt")
    prompts_lib.check(options.edit, "--edit")
    prompts_lib.check([options.negative or ""], "--negative")
    common.setup(options.device)

    from vdm_jax.diffusion import inversion as inversions

    inversions.make_inversion(options.inversion)  # another name is refused before tuning
    out = outputs.check_folder(options.out, "--out")
    if not options.tuned:
        return _tune(options, out, overrides)
    tuned, clip = _take_up(options)
    with _memory_named(tuned.config, ["a model tuned on fewer frames"]):
        return _edit(options, out, tuned, clip)


def _parse(arguments: list[str], overridden: bool) -> argparse.Namespace:
    parser = parsing.parser("vdm tune", __doc__)
    several = {"action": "append", "default": []}
    parser.add_argument("--input", **several, metavar="FILE", help="the video")
    parser.add_argument("--prompt", **several, metavar="TEXT", help="what the video shows")
    parser.add_argument(
        "--edit", **several, metavar="TEXT", help="what a result shows; may be given several times"
    )
    parser.add_argument("--tuned", metavar="FILE", help="a tuned model: edits without tuning")
    parser.add_argument(
        "--model", metavar="MODEL", help=f"the image model that is tuned (default {IMAGE_MODEL})"
    )
    parser.add_argument("--config", metavar="CONFIG", help="see above")
    parser.add_argument("--out", default="tuned", metavar="OUT", help="a directory (default tuned)")
    number = {"type": parsing.positive, "metavar": "N"}
    clip = parser.add_argument_group("the clip")
    clip.add_argument("--num_frames", **number, help="of the clip: 24 (8)")
    clip.add_argument("--stride", **number, help="every N-th frame is taken: 2 (1)")
    clip.add_argument(
        "--first",
        type=int,
        default=0,
        metavar="N",
        help="the video's first frame that is taken (0)",
    )
    clip.add_argument("--height", **number, help="in pixels (default: the image model's)")
    clip.add_argument("--width", **number, help="in pixels (default: the image model's)")
    tuning = parser.add_argument_group("tuning", "defaults, and in brackets those for scenes_image")
    tuning.add_argument("--updates", **number, help="of tuning: 500 (200)")
    tuning.add_argument("--learning_rate", type=float, metavar="X", help="of tuning: 3e-5 (3e-4)")
    tuning.add_argument("--bf16", action="store_true", help="compute in bfloat16: on (off)")
    tuning.add_argument(
        "--remat",
        choices=("none", "dots", "full"),
        metavar="NAME",
        help="activations computed twice, see vdm edit: full (none)",
    )
    tuning.add_argument(
        "--norm_over_frames",
        action="store_true",
        default=None,
        help="normalise over all frames, as the published code does, so that vdm convert can "
        "write its format",
    )
    sampling = parser.add_argument_group("inversion and edits")
    sampling.add_argument("--steps", **number, help="denoising steps (50)")
    sampling.add_argument("--guidance", type=float, metavar="G", help="scale: 12.5 (4)")
    sampling.add_argument("--negative", metavar="TEXT", help="guidance leads away from it")
    sampling.add_argument(
        "--inversion",
        default=INVERSION,
        metavar="NAME",
        help="first (default), second or fixed_point, see vdm edit invert",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    common.add_format_argument(parser)
    common.add_device_arguments(parser)
    options = parser.parse_args(arguments)
    for name in ("input", "prompt"):  # lists in other commands
        given = getattr(options, name)
        if len(given) > 1:
            parser.error(f"--{name}: was given {len(given)} times; one video is tuned on")
        setattr(options, name, given[0] if given else None)
    if options.input is None:
        parser.error("--input, the video, is needed")
    _check(parser, options, overridden)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace, overridden: bool) -> None:
    """Ends the process where flags do not fit each other."""
    common.refuse_mesh(parser, options, "tune")
    if options.first < 0:
        parser.error(f"--first={options.first}: must not be negative")
    if (options.tuned is None) == (options.prompt is None):
        parser.error("give either --prompt, what the video shows, or --tuned, a tuned model")
    if options.tuned:
        names = ("model", "config", *_TUNING, "height", "width")
        names = [name for name in names if name != "stride"]
        for name in names:
            if getattr(options, name) is not None:
                parser.error(f"--{name} has no meaning for --tuned, which is tuned already")
        if overridden:
            parser.error("--config.FIELD has no meaning for --tuned, which is tuned already")
        if not options.edit:
            parser.error("--tuned needs --edit, what a result shows")
    doubled = [text for text in options.edit if options.edit.count(text) > 1]
    if doubled:
        parser.error(f"--edit={doubled[0]!r}: was given twice")
    if options.prompt is not None and options.prompt in options.edit:
        parser.error(f"--edit={options.prompt!r}: is the prompt; an edit says what is to change")


def _tune(options: argparse.Namespace, out: Path, overrides: dict[str, str]) -> int:
    """Tunes, writes tuned.safetensors, and edits. Raises what reading its inputs raises, before
    anything is compiled."""
    from vdm_jax import config as config_lib
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.pipelines import tuning

    source = options.model or IMAGE_MODEL
    given = {field: getattr(options, name) for name, field in _TUNING.items()}
    flags = {field: str(value) for field, value in given.items() if value is not None}
    flags |= {"model.dtype": "bfloat16"} if options.bf16 else {}
    chosen = options.config or (TINY if source == IMAGE_MODEL else PAPER)
    overrides = {**overrides, **flags, "train.seed": str(options.seed)}
    recipe = config_lib.load_config(chosen, overrides)
    data = pretrained.read_config(source).data
    size = (options.height or data.image_size, options.width or data.image_width or data.image_size)
    clip, fps = _read(options, recipe.data.num_frames, recipe.data.frame_stride, size)
    config = tuning.configure(source, recipe, clip, options.prompt, fps=fps)
    _check_edits(config, options)
    with _memory_named(config, ["fewer --num_frames", "smaller --height and --width"]):
        tuned, reason = tuning.Tuner.of(config).tune(clip, out / "tuning")
        if reason in ("SIGINT", "SIGTERM"):
            print("the same command goes on from there")
            return common.PREEMPTED if reason == "SIGTERM" else 0
        print(pretrained.save_model(out / "tuned.safetensors", tuned.params, config))
        return _edit(options, out, tuned, clip) if options.edit else 0


def _take_up(options: argparse.Namespace) -> "tuple[Model, np.ndarray]":
    """The tuned model of --tuned, and the clip in its size. Raises FileNotFoundError,
    ValueError."""
    from vdm_jax.pipelines import tuning

    tuned = tuning.load(options.tuned)
    if options.bf16:
        tuned = tuned.changed({"model.dtype": "bfloat16"})
    frames, height, width, _ = tuned.stage.video_shape
    stride = options.stride or tuned.config.data.frame_stride
    clip, _ = _read(options, frames, stride, (height, width))
    _check_edits(tuned.config, options)
    if tuning.digest(clip) != tuned.config.train.tuning.clip:
        outputs.warn(
            f"--input={options.input}: is another clip than {options.tuned} was tuned on, or "
            "begins at another frame (--first); its motion was not learned"
        )
    return tuned, clip


def _read(
    options: argparse.Namespace, frames: int, stride: int, size: tuple[int, int]
) -> "tuple[np.ndarray, float]":
    """The clip, uint8 f h w 3, and the video's frame rate. Raises FileNotFoundError; ValueError for
    a shorter video."""
    wanted = options.first + (frames - 1) * stride + 1
    (video, *others), fps = edit_inputs.first_frames("input", [options.input], size, wanted)
    if others:
        raise ValueError(f"--input={options.input}: holds several videos; give one")
    if len(video) < wanted:
        most = max((len(video) - options.first - 1) // stride + 1, 0)
        raise ValueError(
            f"--input={options.input}: has {len(video)} frames, and {frames} of every {stride} "
            f"from frame {options.first} on need {wanted}: give --num_frames={max(most, 1)}, a "
            "smaller --stride, or a longer video"
        )
    return video[options.first :: stride], fps


def _check_edits(config, options: argparse.Namespace) -> None:
    """Raises ValueError for an edit that equals the prompt, and for a text that the encoder would
    cut."""
    from vdm_jax import systems

    prompt = config.train.tuning.prompt
    if prompt in options.edit:
        raise ValueError(f"--edit={prompt!r}: is what the model was tuned on")
    stage = systems.build(config)
    negative = [] if options.negative is None else [options.negative]
    stage.check_prompts([*options.edit, *negative])


def _edit(options: argparse.Namespace, out: Path, tuned: "Model", clip: "np.ndarray") -> int:
    """Inverts the clip and samples the edits."""
    import jax
    import numpy as np

    from vdm_jax.cli import resuming
    from vdm_jax.diffusion import inversion as inversions
    from vdm_jax.pipelines import tuning

    how = inversions.make_inversion(options.inversion)
    changes = {name: getattr(options, name) for name in _SAMPLING}
    editor = tuning.Editor.of(tuned, how, **changes)
    identity, fps = _identity(options, tuned, clip), tuned.fps
    z_parts = outputs.Parts(out, identity, 1, _Z_PARTS)
    parts = outputs.Parts(out, {**identity, "edits": options.edit}, len(options.edit))
    if parts.done:
        print(f"{parts.done} edits are in {out / outputs.PARTS}: going on behind them")
    outputs.save_videos(out / "source.npz", clip[None], [tuned.config.train.tuning.prompt], fps)
    if not z_parts.done:
        print(f"inverting the clip in {editor.guided.steps} steps", flush=True)
        z_parts.add(editor.invert(tuned.params, clip, options.seed))
    z = np.asarray(z_parts.videos())
    outputs.save_arrays(out / "z.npz", {"z": z})
    kept = resuming.KeptSampler.of(editor.guided, parts)
    start = np.repeat(z, len(options.edit), axis=0)
    stream = kept.stream(tuned.params, jax.random.key(options.seed), options.edit, start=start)
    videos = np.concatenate(list(progress.track(stream, "edit", len(options.edit))))
    attached = outputs.Attached(formats=options.format)
    outputs.write_samples(out, videos, options.edit, fps, parts, attached)
    z_parts.remove()
    _write_side_by_side(out, np.concatenate([clip[None], videos]), fps)
    return 0


def _write_side_by_side(out: Path, videos: "np.ndarray", fps: float) -> None:
    from vdm_jax.data import video_io

    whole = video_io.grid(video_io.enlarge(videos), columns=len(videos))
    with outputs.Pictures() as pictures:
        for write, suffix in ((video_io.write_mp4, "mp4"), (video_io.write_gif, "gif")):
            path = out / f"side_by_side.{suffix}"
            if pictures.write(path, lambda: write(path, whole, fps=fps)):  # noqa: B023
                print(path)


def _identity(options: argparse.Namespace, tuned: "Model", clip: "np.ndarray") -> dict[str, object]:
    """What z and the edits depend on."""
    import jax
    import numpy as np

    from vdm_jax.pipelines import tuning

    content = hashlib.sha256()
    for leaf in jax.tree.leaves(tuned.params):
        content.update(np.asarray(leaf).tobytes())
    names = ("seed", "inversion", *_SAMPLING)
    return {
        **{name: getattr(options, name) for name in names},
        "tuned": content.hexdigest(),
        "base": tuned.config.train.tuning.digest,
        "model": tuned.config.model.dtype,
        "clip": tuning.digest(clip),
    }


@contextlib.contextmanager
def _memory_named(config, less: list[str]) -> Iterator[None]:
    """Turns the device's lack of memory into a ValueError that says what takes less: `less`, and
    what the configuration does not do yet."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if config.model.remat != "full":
            less = ["--remat=full", *less]
        if config.model.dtype != "bfloat16":
            less = ["--bf16", *less]
        raise ValueError(
            f"the device has too little memory ({str(error).splitlines()[0]}). These take less: "
            f"{', '.join(less)}"
        ) from error
