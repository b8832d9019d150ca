"""The sections of `vdm gallery`: each samples its clips and describes them."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vdm_jax.cli import common, gallery_clips
from vdm_jax.cli.gallery_page import Section, legend, shell, short

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import CascadeModel, Model

CASCADE = "imagen_video_tiny"
_EXTENDED = 64  # frames
# Pictures of many rows or frames have fewer columns, so that the files stay small.
FEW, FEWER = 4, 3


def text_to_video(model: "Model", options: argparse.Namespace) -> Section:
    """Samples of held-out captions."""
    captions = gallery_clips.captions(2 * options.num_samples)
    videos = gallery_clips.sample(model, options, captions, sampler="ddim", guidance=2.0)
    half = options.num_samples
    return Section(
        title="Text to video",
        alt=f"{len(captions)} clips of held-out captions",
        text=f"`moving_shapes`, {gallery_clips.STEPS} steps of DDIM, guidance 2.",
        legend=[
            f"Top row: {short(captions[:half])}.",
            f"Bottom row: {short(captions[half:])}.",
        ],
        command=shell("vdm sample --model=moving_shapes --guidance=2", f'--prompt="{captions[0]}"'),
        rows=[videos[:half], videos[half:]],
        fps=model.fps,
    )


def extension(model: "Model", options: argparse.Namespace) -> Section:
    """Samples that go on for several clips, by two methods."""
    from vdm_jax.data import shapes
    from vdm_jax.pipelines import editing

    captions = gallery_clips.captions(min(options.num_samples, FEWER))
    start = gallery_clips.sample(model, options, captions, guidance=2.0)
    opposite = [shapes.turned(text) for text in captions]
    prompts = list(zip(opposite, captions, strict=True))
    rows = []
    for method in ("reconstruction", "replacement"):
        sampler = model.sampler(
            steps=gallery_clips.STEPS, guidance=2.0, batch_size=len(captions), method=method
        )
        videos = editing.extend(
            sampler,
            model.params,
            gallery_clips.key(options, 1),
            start,
            prompts,
            frames=_EXTENDED,
            context=2,
        )
        rows.append(videos)
    return Section(
        title=f"Extension to {_EXTENDED} frames",
        alt=f"{len(captions)} clips extended by two methods",
        text=f"Each clip of {start.shape[1]} frames begins with the last two frames of the clip "
        "before. The direction in the prompt turns from clip to clip, because a shape that kept "
        "its direction would leave the frame.",
        legend=legend("reconstruction guidance, replacement", captions),
        command=shell(
            f'vdm edit extend --model=moving_shapes --prompt="{captions[0]}"',
            f'--then="{opposite[0]}"',
            f'--then="{captions[0]}"',
            f"--frames={_EXTENDED} --context=2 --guidance=2",
        ),
        rows=rows,
        fps=model.fps,
    )


def interpolation(model: "Model", options: argparse.Namespace) -> Section:
    """Samples between two given frames, beside a blend of them."""
    import numpy as np

    from vdm_jax.pipelines import editing

    truth, captions = gallery_clips.render(model, options.num_samples)
    frames = truth.shape[1]
    ends = truth[:, [0, -1]]
    share = np.linspace(0, 1, frames).reshape(1, -1, 1, 1, 1)
    blend = np.rint(ends[:, :1] * (1 - share) + ends[:, 1:] * share).astype(np.uint8)
    sampler = model.sampler(steps=gallery_clips.STEPS, guidance=1.0, batch_size=options.num_samples)
    sample = editing.interpolate(
        sampler, model.params, gallery_clips.key(options, 2), ends, captions, factor=frames - 1
    )
    # Each end is shown for half of the clip.
    ends = ends[:, np.arange(frames) * 2 // frames]
    return Section(
        title="Interpolation",
        alt=f"{len(captions)} clips interpolated from two frames",
        text="The first and the last frame are given. The model samples the frames between them.",
        legend=legend("given frames, linear blend, sample, truth", captions),
        command=shell(
            f"vdm edit interpolate --model=moving_shapes --factor={frames - 1}",
            "--input=two_frames.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[ends, blend, sample, truth],
        fps=model.fps,
    )


def inpainting(model: "Model", options: argparse.Namespace) -> Section:
    """Samples of the middle of every frame, by guidance alone."""
    from vdm_jax.pipelines import editing

    truth, captions = gallery_clips.render(model, options.num_samples)
    known = ~gallery_clips.middle(model)
    sampler = model.sampler(steps=gallery_clips.STEPS, guidance=1.0, batch_size=options.num_samples)
    sample = editing.inpaint(
        sampler, model.params, gallery_clips.key(options, 3), truth, captions, known=known
    )
    return Section(
        title="Inpainting",
        alt=f"{len(captions)} clips with the middle sampled anew",
        text="The model samples the middle of every frame.",
        legend=legend("given pixels, sample, truth", captions),
        command=shell(
            "vdm edit inpaint --model=moving_shapes --input=clip.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[common.greyed(truth, known), sample, truth],
        fps=model.fps,
    )


def super_resolution(model: "Model", options: argparse.Namespace) -> Section:
    """Samples whose block means are given, by guidance alone."""
    import numpy as np
    from einops import reduce

    from vdm_jax.pipelines import editing

    truth, captions = gallery_clips.render(model, options.num_samples)
    height, width = truth.shape[2:4]
    sampler = model.sampler(steps=gallery_clips.STEPS, guidance=1.0, batch_size=options.num_samples)
    rows, labels = [], []
    for factor in (2, 4):
        means = reduce(
            truth.astype(np.float32), "n f (h s) (w r) c -> n f h w c", "mean", s=factor, r=factor
        )
        low = np.rint(means).astype(np.uint8)
        sample = editing.super_resolve(
            sampler, model.params, gallery_clips.key(options, 4), low, captions
        )
        rows += [low, sample]
        labels += [f"{height // factor} × {width // factor} pixels", "sample from them"]
    return Section(
        title="Super-resolution",
        alt=f"{len(captions)} clips, sampled from {labels[0]} and from {labels[2]}",
        text=f"Guidance alone does this: the model for {height} × {width} pixels samples clips "
        "whose block means are the given low-resolution pixels.",
        legend=legend(", ".join([*labels, "truth"]), captions),
        command=shell(
            "vdm edit super_resolve --model=moving_shapes --factor=4 --input=small.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[*rows, truth],
        fps=model.fps,
    )


def loop(model: "Model", options: argparse.Namespace) -> Section:
    """Samples that lead back to their first frame."""
    from vdm_jax.data import shapes
    from vdm_jax.pipelines import editing

    captions = gallery_clips.captions(options.num_samples)
    start = gallery_clips.sample(model, options, captions, guidance=2.0)
    opposite = [shapes.turned(text) for text in captions]
    sampler = model.sampler(steps=gallery_clips.STEPS, guidance=2.0, batch_size=len(captions))
    loop = editing.loop(
        sampler, model.params, gallery_clips.key(options, 5), start, opposite, context=1
    )
    return Section(
        title="Loops",
        alt=f"{len(captions)} clips closed to loops",
        text="A second clip leads from the end of the first back to its beginning. Its first and "
        "last frames are given.",
        legend=legend("clip, loop", captions),
        command=shell(
            f'vdm edit loop --model=moving_shapes --prompt="{captions[0]}"',
            f'--then="{opposite[0]}"',
            "--guidance=2",
        ),
        rows=[start, loop],
        fps=model.fps,
    )


def distillation(
    model: "Model", options: argparse.Namespace, students: Mapping[int, str | Path]
) -> Section:
    """Samples of students in few steps, beside the teacher in as many."""
    from vdm_jax.pipelines import model as pretrained

    captions = gallery_clips.captions(min(options.num_samples, FEW))
    teacher = functools.partial(
        gallery_clips.sample, model, options, captions, sampler="ddim", guidance=2.0
    )
    rows = [teacher()]
    labels = [f"teacher in {gallery_clips.STEPS} steps"]
    for steps, source in students.items():
        student = pretrained.load(source)
        rows.append(gallery_clips.sample(student, options, captions, steps=steps))
        labels.append(f"student in {steps} step{'s' if steps > 1 else ''}")
    for steps in (8, 4, 2, 1):
        rows.append(teacher(steps=steps))
    return Section(
        title="Distillation",
        alt="The same noise in fewer and fewer steps",
        text="All rows start from the same noise. A student takes one evaluation of the network a "
        "step, the guided teacher two. `docs/distillation.md` has the figures.",
        legend=legend(", ".join([*labels, "teacher in 8, 4, 2 and 1 steps"]), captions),
        command=shell(
            "vdm distill --config=vdm/moving_shapes_distill --model=moving_shapes",
            "--workdir=runs/distilled",
        ),
        rows=rows,
        fps=model.fps,
    )


def cascade(model: "CascadeModel", options: argparse.Namespace) -> Section:
    """Samples of a cascade of held-out captions of two objects."""
    from vdm_jax.data import shapes

    captions = shapes.captions("held_out", 2)
    count = min(options.num_samples, FEW)
    # Neighbours in the list are alike. Equal distances alone would choose the same second objects.
    captions = [captions[i * len(captions) // count + 3 * i] for i in range(count)]
    videos = model.sample(gallery_clips.key(options, 0), prompts=captions)
    frames, height, width = videos.shape[1:4]
    return Section(
        title="Cascade",
        alt=f"{len(captions)} clips of held-out captions with two objects, sampled by a cascade",
        text=f"`{CASCADE}`: text to video through {len(model.stages)} stages in turn, which are "
        f"distilled to few steps. A clip has {frames} frames of {height} × {width} pixels; the "
        "picture shows every second frame.",
        legend=[f"Columns: {short(captions)}."],
        command=shell(f"vdm sample --model={CASCADE}", f'--prompt="{captions[0]}"'),
        rows=[videos[:, ::2]],
        fps=model.fps / 2,
        side=128,
    )


def image_to_video(model: "Model", options: argparse.Namespace) -> Section:
    """Samples that go on from a first frame, by a model that was trained for it."""
    frames = model.stage.video_shape[0]
    return _completed(
        model,
        options,
        6,
        gallery_clips.first_frame(model),
        given="given frame",
        command=f"vdm edit animate --model={options.lumiere} --input=still.mp4",
        title="Image to video",
        alt="clips from their first frame",
        text=f"The first of {frames} frames is given. Lumiere's model samples all others in one "
        "pass.",
    )


def completion(model: "Model", options: argparse.Namespace) -> Section:
    """Samples of the middle of every frame, by a model that was trained for it."""
    return _completed(
        model,
        options,
        7,
        ~gallery_clips.middle(model),
        given="given pixels",
        command=f"vdm edit inpaint --model={options.lumiere} --input=clip.mp4",
        title="Inpainting by a model that was trained for it",
        alt="clips with the middle sampled anew by Lumiere",
        text="Lumiere's model takes the surrounding pixels and a mask as inputs and samples the "
        "middle of every frame.",
    )


def _completed(
    model: "Model",
    options: argparse.Namespace,
    index: int,
    known: "np.ndarray",
    *,
    given: str,
    command: str,
    title: str,
    alt: str,
    text: str,
) -> Section:
    """Rows of what is given of rendered clips, of samples by a model trained with masks, of truth.

    index: of the key. known: bool, broadcast to `f h w`. given: what the first row is called.
    command: without the prompt. alt: follows the number of clips.
    """
    truth, captions = gallery_clips.render(model, options.num_samples)
    pixels, sample = gallery_clips.complete(model, options, index, truth, captions, known)
    return Section(
        title=title,
        alt=f"{len(captions)} {alt}",
        text=text,
        legend=legend(f"{given}, sample, truth", captions),
        command=shell(command, f'--prompt="{captions[0]}"'),
        rows=[pixels, sample, truth],
        fps=model.fps,
    )


def cinemagraph(model: "Model", options: argparse.Namespace) -> Section:
    """Samples of stills of which only the middle moves."""
    import numpy as np

    truth, captions = gallery_clips.render(model, options.num_samples)
    stills = np.repeat(truth[:, :1], truth.shape[1], axis=1)
    known = gallery_clips.first_frame(model) | ~gallery_clips.middle(model)
    given, sample = gallery_clips.complete(model, options, 8, stills, captions, known)
    return Section(
        title="Cinemagraphs",
        alt=f"{len(captions)} stills of which only the middle moves",
        text="Only the middle of a still image moves. The rest is given for every frame.",
        legend=legend("given pixels, sample", captions),
        command=shell(
            f"vdm edit cinemagraph --model={options.lumiere} --input=still.mp4",
            f'--prompt="{captions[0]}"',
        ),
        rows=[given, sample],
        fps=model.fps,
    )


def stylisation(model: "Model", options: argparse.Namespace, style: "Model") -> Section:
    """Samples by layers between those of two image models."""
    from vdm_jax.systems import lumiere

    captions = gallery_clips.captions(min(options.num_samples, FEWER))
    rows = []
    for amount in (0.0, 0.5, 0.75, 1.0):
        params = lumiere.stylise(model.params, style.params, amount)
        styled = dataclasses.replace(model, params=params)
        rows.append(gallery_clips.sample(styled, options, captions))
    return Section(
        title="Stylisation",
        alt=f"{len(captions)} clips with a style in four amounts",
        text="The image layers are interpolated towards those of an image model that was "
        "fine-tuned on frames in another style. The layers that mix frames are unchanged, and the "
        "noise is the same in all rows.",
        legend=legend("0%, 50%, 75% and 100% of the style", captions),
        command=shell(
            f"vdm edit stylise --model={options.lumiere} --style={options.style} --amount=0.75",
            "--out=styled.safetensors",
        ),
        rows=rows,
        fps=model.fps,
    )
