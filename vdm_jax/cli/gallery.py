"""Writes a page of what the shipped models can do: Markdown, with one GIF a section.

    vdm gallery [--out=gallery] [--ladder=DIR] [--lumiere=MODEL] [--style=IMAGE_MODEL]

The page shows text to video, extension to 64 frames, interpolation, inpainting, super-resolution,
loops, distillation, a cascade of seven stages, and Lumiere's image to video, inpainting and
cinemagraphs. Captions are held out from training.

OUT receives gallery.md and media/gallery/*.gif; files of these names are overwritten. A section
that fails is left out of the page: the command reports it and ends with exit status 1.

--ladder=DIR shows all students of a workdir of vdm distill instead of the shipped student.
--lumiere=MODEL replaces the shipped model lumiere_tiny/base_32f_16. --style=IMAGE_MODEL adds a
section on stylisation; it is a fine-tuned copy of the image model that Lumiere's model was inflated
from, so it usually needs --lumiere too.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdm_jax.cli import common, outputs

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import CascadeModel, Model

CLIPS = 6
LUMIERE = "lumiere_tiny/base_32f_16"
_CASCADE = "imagen_video_tiny"
_STUDENT = "moving_shapes_8step"
_PICTURES = Path("media/gallery")  # below OUT
_STEPS = 64  # of every sampler but those of distilled models
_EXTENDED = 64  # frames
# Pictures of many rows or frames have fewer columns, so that the files stay small.
_FEW, _FEWER = 4, 3
_GAP, _GAP_COLOR = 4, (60, 64, 72)  # pixels between clips
_LINE = 100  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the page.

    Attributes:
      title: the heading.
      alt: what the picture shows, for readers who do not see it.
      text: one paragraph, Markdown.
      legend: list items that explain the picture's rows and columns.
      command: the shell command that makes such clips.
      rows: the picture's rows, uint8 `n f h w c` each, with the same n in every row. f, h and w
        may differ between rows: smaller clips are enlarged, shorter ones hold their last frame.
      fps: frames a second.
      side: pixels, the least shorter side of a clip in the picture.
    """

    title: str
    alt: str
    text: str
    legend: Sequence[str]
    command: str
    rows: Sequence["np.ndarray"]
    fps: float
    side: int = 64


def main(arguments: list[str]) -> int:
    """Writes the page. Returns 1 if a section failed, else 0."""
    parser = common.parser("vdm gallery", __doc__)
    parser.add_argument("--out", default="gallery", metavar="OUT", help="default gallery/")
    parser.add_argument("--ladder", metavar="DIR", help="workdir of vdm distill")
    parser.add_argument(
        "--lumiere",
        default=LUMIERE,
        metavar="MODEL",
        help=f"name, workdir or file of a model like {LUMIERE} (the default)",
    )
    parser.add_argument("--style", metavar="MODEL", help="workdir or file of an image model")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--clips",
        type=common.positive,
        default=CLIPS,
        metavar="N",
        help=f"columns of a picture (default {CLIPS}); some pictures have at most {_FEWER} or "
        f"{_FEW}",
    )
    options = parser.parse_args(arguments)
    common.setup("any")
    outputs.check_folder(options.out, "--out")

    from rich.progress import track

    # While TFDS is imported, imports in other threads fail, those of the progress bar's too.
    import vdm_jax.data.moving_shapes  # noqa: F401

    jobs = _jobs(options)
    out, parts, failures = Path(options.out), [], {}
    for name in track(jobs, "sampling", transient=True):
        try:
            section = jobs[name]()
            _write_picture(out, name, section)
            parts.append(_markdown(name, section))
        except Exception as error:  # whatever it is: the other sections took minutes
            failures[name] = error
    for name, error in failures.items():
        if os.environ.get("VDM_JAX_TRACEBACK"):
            traceback.print_exception(error)
        reason = f"{type(error).__name__}: {error}"
        print(f"error: section {name} failed and is not on the page: {reason}", file=sys.stderr)
    if parts:
        print(_write_page(out, parts, arguments))
    return 1 if failures else 0


def _jobs(options: argparse.Namespace) -> dict[str, Callable[[], Section]]:
    """The sections in order: name of the picture's file to a function that samples the section.

    Raises what `pipelines.load` raises, and ValueError if --lumiere or --style is a cascade: a
    wrong flag is reported before anything is sampled.
    """
    from vdm_jax import pipelines

    students = _students(options.ladder)
    style = None if options.style is None else _load_one("--style", options.style)
    space_time = _load_one("--lumiere", options.lumiere)
    model = pipelines.model.load()
    bound = functools.partial
    jobs = {
        "text": bound(_text_to_video, model, options),
        "extension": bound(_extension, model, options),
        "interpolation": bound(_interpolation, model, options),
        "inpainting": bound(_inpainting, model, options),
        "super_resolution": bound(_super_resolution, model, options),
        "loop": bound(_loop, model, options),
        "distillation": bound(_distillation, model, options, students),
        "cascade": bound(_cascade, pipelines.cascade.load(_CASCADE), options),
        "image_to_video": bound(_image_to_video, space_time, options),
        "completion": bound(_completion, space_time, options),
        "cinemagraph": bound(_cinemagraph, space_time, options),
    }
    if style is not None:
        jobs["stylisation"] = bound(_stylisation, space_time, options, style)
    return jobs


def _load_one(flag: str, source: str) -> "Model":
    """A single model. Raises ValueError for a cascade, and what `pipelines.load` raises."""
    from vdm_jax import pipelines

    if pipelines.model.find_cascade(source) is not None:
        stages = ", ".join(pipelines.cascade.load(source).stages)
        raise ValueError(
            f"{flag}={source}: is a cascade, but must be one model: append one of {stages}, as in "
            f"{LUMIERE}"
        )
    return pipelines.model.load(source)


def _students(ladder: str | None) -> dict[int, str | Path]:
    """Number of steps to the student: those in the workdir `ladder`, else the shipped one."""
    if ladder is None:
        return {8: _STUDENT}
    files = {steps: Path(ladder) / f"progressive_{steps}.safetensors" for steps in (8, 4, 2, 1)}
    students = {steps: path for steps, path in files.items() if path.is_file()}
    if not students:
        raise FileNotFoundError(
            f"--ladder={ladder}: holds no progressive_N.safetensors; it must be the --workdir of "
            "a finished vdm distill"
        )
    return students


def _text_to_video(model: "Model", options: argparse.Namespace) -> Section:
    captions = _captions(2 * options.clips)
    videos = _sample(model, options, captions, sampler="ddim", guidance=2.0)
    half = options.clips
    return Section(
        title="Text to video",
        alt=f"{len(captions)} clips of held-out captions",
        text=f"`moving_shapes`, {_STEPS} steps of DDIM, guidance 2.",
        legend=[
            f"Top row: {_short(captions[:half])}.",
            f"Bottom row: {_short(captions[half:])}.",
        ],
        command=_shell(
            "vdm sample --model=moving_shapes --guidance=2", f'--prompt="{captions[0]}"'
        ),
        rows=[videos[:half], videos[half:]],
        fps=model.fps,
    )


def _extension(model: "Model", options: argparse.Namespace) -> Section:
    from vdm_jax.data import shapes
    from vdm_jax.pipelines import editing

    captions = _captions(min(options.clips, _FEWER))
    start = _sample(model, options, captions, guidance=2.0)
    opposite = [shapes.turned(text) for text in captions]
    prompts = list(zip(opposite, captions, strict=True))
    rows = []
    for method in ("reconstruction", "replacement"):
        sampler = model.sampler(steps=_STEPS, guidance=2.0, batch_size=len(captions), method=method)
        videos = editing.extend(
            sampler, model.params, _key(options, 1), start, prompts, frames=_EXTENDED, context=2
        )
        rows.append(videos)
    return Section(
        title=f"Extension to {_EXTENDED} frames",
        alt=f"{len(captions)} clips extended by two methods",
        text=f"Each clip of {start.shape[1]} frames begins with the last two frames of the clip "
        "before. The direction in the prompt turns from clip to clip, because a shape that kept "
        "its direction would leave the frame.",
        legend=_legend("reconstruction guidance, replacement", captions),
        command=_shell(
            f'vdm edit extend --model=moving_shapes --prompt="{captions[0]}"',
            f'--then="{opposite[0]}"',
            f'--then="{captions[0]}"',
            f"--frames={_EXTENDED} --context=2 --guidance=2",
        ),
        rows=rows,
        fps=model.fps,
    )


def _interpolation(model: "Model", options: argparse.Namespace) -> Section:
    import numpy as np

    from vdm_jax.pipelines import editing

    truth, captions = _render(model, options.clips)
    frames = truth.shape[1]
    ends = truth[:, [0, -1]]
    share = np.linspace(0, 1, frames).reshape(1, -1, 1, 1, 1)
    blend = np.rint(ends[:, :1] * (1 - share) + ends[:, 1:] * share).astype(np.uint8)
    sampler = model.sampler(steps=_STEPS, guidance=1.0, batch_size=options.clips)
    sample = editing.interpolate(
        sampler, model.params, _key(options, 2), ends, captions, factor=frames - 1
    )
    # Each end is shown for half of the clip.
    ends = ends[:, np.arange(frames) * 2 // frames]
    return Section(
        title="Interpolation",
        alt=f"{len(captions)} clips interpolated from two frames",
        text="The first and the last frame are given. The model samples the frames between them.",
        legend=_legend("given frames, linear blend, sample, truth", captions),
        command=_shell(
            f"vdm edit interpolate --model=moving_shapes --factor={frames - 1}",
            "--input=two_frames.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[ends, blend, sample, truth],
        fps=model.fps,
    )


def _inpainting(model: "Model", options: argparse.Namespace) -> Section:
    from vdm_jax.pipelines import editing

    truth, captions = _render(model, options.clips)
    known = ~_middle(model)
    sampler = model.sampler(steps=_STEPS, guidance=1.0, batch_size=options.clips)
    sample = editing.inpaint(sampler, model.params, _key(options, 3), truth, captions, known=known)
    return Section(
        title="Inpainting",
        alt=f"{len(captions)} clips with the middle sampled anew",
        text="The model samples the middle of every frame.",
        legend=_legend("given pixels, sample, truth", captions),
        command=_shell(
            "vdm edit inpaint --model=moving_shapes --input=clip.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[common.greyed(truth, known), sample, truth],
        fps=model.fps,
    )


def _super_resolution(model: "Model", options: argparse.Namespace) -> Section:
    import numpy as np
    from einops import reduce

    from vdm_jax.pipelines import editing

    truth, captions = _render(model, options.clips)
    height, width = truth.shape[2:4]
    sampler = model.sampler(steps=_STEPS, guidance=1.0, batch_size=options.clips)
    rows, labels = [], []
    for factor in (2, 4):
        means = reduce(
            truth.astype(np.float32), "n f (h s) (w r) c -> n f h w c", "mean", s=factor, r=factor
        )
        low = np.rint(means).astype(np.uint8)
        sample = editing.super_resolve(sampler, model.params, _key(options, 4), low, captions)
        rows += [low, sample]
        labels += [f"{height // factor} × {width // factor} pixels", "sample from them"]
    return Section(
        title="Super-resolution",
        alt=f"{len(captions)} clips, sampled from {labels[0]} and from {labels[2]}",
        text=f"Guidance alone does this: the model for {height} × {width} pixels samples clips "
        "whose block means are the given low-resolution pixels.",
        legend=_legend(", ".join([*labels, "truth"]), captions),
        command=_shell(
            "vdm edit super_resolve --model=moving_shapes --factor=4 --input=small.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[*rows, truth],
        fps=model.fps,
    )


def _loop(model: "Model", options: argparse.Namespace) -> Section:
    from vdm_jax.data import shapes
    from vdm_jax.pipelines import editing

    captions = _captions(options.clips)
    start = _sample(model, options, captions, guidance=2.0)
    opposite = [shapes.turned(text) for text in captions]
    sampler = model.sampler(steps=_STEPS, guidance=2.0, batch_size=len(captions))
    loop = editing.loop(sampler, model.params, _key(options, 5), start, opposite, context=1)
    return Section(
        title="Loops",
        alt=f"{len(captions)} clips closed to loops",
        text="A second clip leads from the end of the first back to its beginning. Its first and "
        "last frames are given.",
        legend=_legend("clip, loop", captions),
        command=_shell(
            f'vdm edit loop --model=moving_shapes --prompt="{captions[0]}"',
            f'--then="{opposite[0]}"',
            "--guidance=2",
        ),
        rows=[start, loop],
        fps=model.fps,
    )


def _distillation(
    model: "Model", options: argparse.Namespace, students: Mapping[int, str | Path]
) -> Section:
    from vdm_jax.pipelines import model as pretrained

    captions = _captions(min(options.clips, _FEW))
    teacher = functools.partial(_sample, model, options, captions, sampler="ddim", guidance=2.0)
    rows = [teacher()]
    labels = [f"teacher in {_STEPS} steps"]
    for steps, source in students.items():
        student = pretrained.load(source)
        rows.append(_sample(student, options, captions, steps=steps))
        labels.append(f"student in {steps} step{'s' if steps > 1 else ''}")
    for steps in (8, 4, 2, 1):
        rows.append(teacher(steps=steps))
    return Section(
        title="Distillation",
        alt="The same noise in fewer and fewer steps",
        text="All rows start from the same noise. A student takes one evaluation of the network a "
        "step, the guided teacher two. `docs/distillation.md` has the figures.",
        legend=_legend(", ".join([*labels, "teacher in 8, 4, 2 and 1 steps"]), captions),
        command=_shell(
            "vdm distill --config=vdm/moving_shapes_distill --model=moving_shapes",
            "--workdir=runs/distilled",
        ),
        rows=rows,
        fps=model.fps,
    )


def _cascade(model: "CascadeModel", options: argparse.Namespace) -> Section:
    from vdm_jax.data import shapes

    captions = shapes.captions("held_out", 2)
    count = min(options.clips, _FEW)
    # Neighbours in the list are alike. Equal distances alone would choose the same second objects.
    captions = [captions[i * len(captions) // count + 3 * i] for i in range(count)]
    videos = model.sample(_key(options, 0), prompts=captions)
    frames, height, width = videos.shape[1:4]
    return Section(
        title="Cascade",
        alt=f"{len(captions)} clips of held-out captions with two objects, sampled by a cascade",
        text=f"`{_CASCADE}`: text to video through {len(model.stages)} stages in turn, which are "
        f"distilled to few steps. A clip has {frames} frames of {height} × {width} pixels; the "
        "picture shows every second frame.",
        legend=[f"Columns: {_short(captions)}."],
        command=_shell(f"vdm sample --model={_CASCADE}", f'--prompt="{captions[0]}"'),
        rows=[videos[:, ::2]],
        fps=model.fps / 2,
        side=128,
    )


def _image_to_video(model: "Model", options: argparse.Namespace) -> Section:
    frames = model.stage.video_shape[0]
    truth, captions = _render(model, options.clips)
    given, sample = _complete(model, options, 6, truth, captions, _first_frame(model))
    return Section(
        title="Image to video",
        alt=f"{len(captions)} clips from their first frame",
        text=f"The first of {frames} frames is given. Lumiere's model samples all others in one "
        "pass.",
        legend=_legend("given frame, sample, truth", captions),
        command=_shell(
            f"vdm edit animate --model={options.lumiere} --input=still.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[given, sample, truth],
        fps=model.fps,
    )


def _completion(model: "Model", options: argparse.Namespace) -> Section:
    truth, captions = _render(model, options.clips)
    given, sample = _complete(model, options, 7, truth, captions, ~_middle(model))
    return Section(
        title="Inpainting by a model that was trained for it",
        alt=f"{len(captions)} clips with the middle sampled anew by Lumiere",
        text="Lumiere's model takes the surrounding pixels and a mask as inputs and samples the "
        "middle of every frame.",
        legend=_legend("given pixels, sample, truth", captions),
        command=_shell(
            f"vdm edit inpaint --model={options.lumiere} --input=clip.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[given, sample, truth],
        fps=model.fps,
    )


def _cinemagraph(model: "Model", options: argparse.Namespace) -> Section:
    import numpy as np

    truth, captions = _render(model, options.clips)
    stills = np.repeat(truth[:, :1], truth.shape[1], axis=1)
    known = _first_frame(model) | ~_middle(model)
    given, sample = _complete(model, options, 8, stills, captions, known)
    return Section(
        title="Cinemagraphs",
        alt=f"{len(captions)} stills of which only the middle moves",
        text="Only the middle of a still image moves. The rest is given for every frame.",
        legend=_legend("given pixels, sample", captions),
        command=_shell(
            f"vdm edit cinemagraph --model={options.lumiere} --input=still.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[given, sample],
        fps=model.fps,
    )


def _stylisation(model: "Model", options: argparse.Namespace, style: "Model") -> Section:
    from vdm_jax.systems import lumiere

    captions = _captions(min(options.clips, _FEWER))
    rows = []
    for amount in (0.0, 0.5, 0.75, 1.0):
        params = lumiere.stylise(model.params, style.params, amount)
        styled = dataclasses.replace(model, params=params)
        rows.append(_sample(styled, options, captions))
    return Section(
        title="Stylisation",
        alt=f"{len(captions)} clips with a style in four amounts",
        text="The image layers are interpolated towards those of an image model that was "
        "fine-tuned on frames in another style. The layers that mix frames are unchanged, and the "
        "noise is the same in all rows.",
        legend=_legend("0%, 50%, 75% and 100% of the style", captions),
        command=_shell(
            f"vdm edit stylise --model={options.lumiere} --style={options.style} --amount=0.75",
            "--out=styled.safetensors",
        ),
        rows=rows,
        fps=model.fps,
    )


def _captions(count: int) -> list[str]:
    """Held-out captions of one object, from the first again if there are fewer than `count`."""
    from vdm_jax.data import shapes

    return list(itertools.islice(itertools.cycle(shapes.captions("held_out")), count))


def _render(model: "Model", count: int) -> tuple["np.ndarray", Sequence[str]]:
    """Rendered clips, uint8 `n f h w c`, of held-out captions, and the captions."""
    from vdm_jax.evaluation import clips

    held_out = clips.from_rendered("moving_shapes", model.config.data.config, "held_out", count)
    return held_out.videos, held_out.captions


def _key(options: argparse.Namespace, index: int):
    import jax

    return jax.random.fold_in(jax.random.key(options.seed), index)


def _sample(
    model: "Model",
    options: argparse.Namespace,
    prompts: Sequence[str],
    steps: int | None = None,
    **changes,
) -> "np.ndarray":
    """Videos, uint8 `n f h w c`, from the same noise in every call.

    steps: None = `_STEPS`. changes: further fields of the sampler.
    """
    return model.sample(
        _key(options, 0),
        prompts=prompts,
        steps=steps or _STEPS,
        batch_size=len(prompts),
        **changes,
    )


def _complete(
    model: "Model",
    options: argparse.Namespace,
    index: int,
    videos: "np.ndarray",
    captions: Sequence[str],
    known: "np.ndarray",
) -> tuple["np.ndarray", "np.ndarray"]:
    """Samples what is unknown of `videos`, uint8 `n f h w c`, by a model trained with masks.

    known: bool, broadcast to `f h w`. Returns the given pixels, grey where unknown, and the
    samples. Raises ValueError if the model was not trained with masks.
    """
    from vdm_jax.pipelines import editing

    sampler = model.sampler(steps=_STEPS, method="trained", batch_size=len(captions))
    sample = editing.inpaint(
        sampler, model.params, _key(options, index), videos, captions, known=known
    )
    return common.greyed(videos, known), sample


def _first_frame(model: "Model") -> "np.ndarray":
    """bool (f, 1, 1): True in the first frame."""
    import numpy as np

    return (np.arange(model.stage.video_shape[0]) == 0)[:, None, None]


def _middle(model: "Model") -> "np.ndarray":
    """bool (1, h, w): True in the middle quarter of the frame's area."""
    import numpy as np

    _, height, width, _ = model.stage.video_shape
    inside = np.zeros((1, height, width), bool)
    inside[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return inside


def _short(captions: Sequence[str]) -> str:
    """For example "red square left, red triangle right"."""
    from vdm_jax.data import shapes

    scenes = [shapes.parse_caption(caption) for caption in captions]
    return ", ".join(" and ".join(" ".join(parts) for parts in scene) for scene in scenes)


def _legend(rows: str, captions: Sequence[str]) -> list[str]:
    return [f"Rows: {rows}.", f"Columns: {_short(captions)}."]


def _shell(*parts: str) -> str:
    """A command of one or several lines, which are broken between the parts only."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + len("  \\") <= _LINE:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


def _write_picture(out: Path, name: str, section: Section) -> None:
    """Writes a section's clips as one GIF: rows × columns, with gaps."""
    import numpy as np

    from vdm_jax.data import video_io

    frames = max(row.shape[1] for row in section.rows)
    # The row of the largest frames sets the size, because its factor need not divide `side`.
    largest = max(section.rows, key=lambda row: min(row.shape[2:4]))
    side = min(video_io.enlarge(largest, section.side).shape[2:4])
    rows = [
        video_io.enlarge(row[:, np.minimum(np.arange(frames), row.shape[1] - 1)], side)
        for row in section.rows
    ]
    picture = video_io.grid(np.concatenate(rows), columns=len(rows[0]), gap=_GAP, color=_GAP_COLOR)
    path = out / _PICTURES / f"{name}.gif"
    video_io.write_gif(path, picture, fps=section.fps, min_size=1)


def _markdown(name: str, section: Section) -> str:
    items = [_wrap(f"- {item}", indent="  ") for item in section.legend]
    return "\n".join(
        [
            f"## {section.title}\n",
            f"![{section.alt}]({_PICTURES.as_posix()}/{name}.gif)\n",
            f"{_wrap(section.text)}\n",
            *items,
            f"\n```sh\n{section.command}\n```\n",
        ]
    )


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        _LINE,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _write_page(out: Path, parts: Sequence[str], arguments: Sequence[str]) -> Path:
    """Writes gallery.md from the sections' Markdown.

    arguments: the flags that this command was called with.
    """
    command = shlex.join(["vdm", "gallery", *arguments])
    intro = _wrap(
        "This page shows what the models that ship with vdm_jax do. This command writes the page "
        "and its pictures:"
    )
    about = _wrap(
        "Captions are held out from training. Pictures are enlarged. The captions of the columns "
        "are listed from left to right. A clip that is shorter than others in its picture holds "
        "its last frame."
    )
    head = f"# Gallery\n\n{intro}\n\n    {command}\n\n{about}"
    path = out / "gallery.md"
    path.write_text("\n\n".join([head, "\n".join(parts)]), encoding="utf-8")
    return path
