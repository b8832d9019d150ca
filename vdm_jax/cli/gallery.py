"""Makes a page of what the shipped models can do: static HTML, to be opened from the disk.

    vdm gallery [--out=gallery] [--ladder=DIR] [--lumiere=MODEL [--style=IMAGE_MODEL]]

The page shows text to video, extension to 64 frames, interpolation, inpainting, super-resolution,
loops, and distillation: the shipped student, or with --ladder=DIR all students of a workdir of vdm
distill. With --lumiere=MODEL, a model of configuration lumiere/tiny/base_32f_16, it also shows
image to video, inpainting and cinemagraphs by a model that was trained for them. With
--style=IMAGE_MODEL, a fine-tuned copy of that model's image model, it shows stylisation. Captions
are held out from training. OUT receives index.html and a GIF for each clip.
"""

import dataclasses
import html
import itertools
from pathlib import Path

from vdm_jax.cli import common, outputs

CLIPS = 6
ROUNDS_TO = 64  # frames of the extension
_STYLE = """
body { background: #14161a; color: #dfe3ea; font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
       max-width: 76rem; padding: 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p { max-width: 46rem; } code { color: #a8d1ff; }
pre { background: #1d2026; overflow-x: auto; padding: .6rem .8rem; }
table { border-spacing: .6rem .3rem; } th { font-weight: normal; text-align: right;
        color: #9aa3b2; white-space: nowrap; } td { text-align: center; color: #9aa3b2;
        font-size: .75rem; max-width: 8rem; vertical-align: top; }
img { display: block; height: 8rem; image-rendering: pixelated; width: 8rem; margin: auto; }
div { overflow-x: auto; }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page.

    Attributes:
      name: in file names; title, text: shown; command: that does the like, "" for none.
      captions: of the columns.
      rows: label and videos, uint8 `n f h w c` each, a video a caption.
    """

    name: str
    title: str
    text: str
    command: str
    captions: list[str]
    rows: list[tuple[str, object]]


def main(arguments: list[str]) -> int:
    parser = common.parser("vdm gallery", __doc__)
    parser.add_argument("--out", default="gallery", metavar="OUT", help="default gallery/")
    parser.add_argument("--ladder", metavar="DIR", help="workdir of vdm distill")
    parser.add_argument("--lumiere", metavar="MODEL", help="workdir or file of base_32f_16")
    parser.add_argument("--style", metavar="MODEL", help="workdir or file of an image model")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--clips", type=common.positive, default=CLIPS, metavar="N", help="a row")
    options = parser.parse_args(arguments)
    if options.style and not options.lumiere:
        parser.error("--style: is for the model of --lumiere, which was not given")
    common.setup("any")
    outputs.check_folder(options.out, "--out")

    from rich.progress import track

    import vdm_jax

    model = vdm_jax.load()
    makers = [_text_to_video, _extension, _interpolation, _inpainting, _super_resolution, _loop]
    jobs = [lambda maker=maker: maker(model, options) for maker in makers]
    jobs.append(lambda: _distillation(model, options))
    if options.lumiere:
        space_time = vdm_jax.load(options.lumiere)
        makers = [_image_to_video, _completion, _cinemagraph]
        makers += [_stylisation] if options.style else []
        jobs += [lambda maker=maker: maker(space_time, options) for maker in makers]
    sections = [job() for job in track(jobs, "making", transient=True)]
    print(_write(Path(options.out), sections, fps=model.fps))
    return 0


def _captions(count: int) -> list[str]:
    from vdm_jax.data import shapes

    return list(itertools.islice(itertools.cycle(shapes.captions("held_out")), count))


def _truth(model, count: int):
    """Rendered clips that no model was trained on, and their captions."""
    from vdm_jax.evaluation import clips

    found = clips.from_moving_shapes(model.config.data.config, "held_out", count)
    return found.videos, found.captions


def _key(options, index: int):
    import jax

    return jax.random.fold_in(jax.random.key(options.seed), index)


def _sampled(model, options, prompts, **changes):
    return model.sample(_key(options, 0), prompts=prompts, batch_size=len(prompts), **changes)


def _text_to_video(model, options) -> Section:
    captions = _captions(2 * options.clips)
    videos = _sampled(model, options, captions, guidance=2.0)
    half = options.clips
    return Section(
        name="text",
        title="Text to video",
        text="64 steps of DDIM, guidance 2; captions that were held out from training.",
        command=f'vdm sample --guidance=2 --prompt="{captions[0]}"',
        captions=[f"{a} / {b}" for a, b in zip(captions[:half], captions[half:], strict=True)],
        rows=[("", videos[:half]), ("", videos[half:])],
    )


def _extension(model, options) -> Section:
    from vdm_jax.data import shapes
    from vdm_jax.pipelines import editing

    captions = _captions(options.clips)
    start = _sampled(model, options, captions, guidance=2.0)
    turned = [shapes.turned(text) for text in captions]
    prompts = list(zip(turned, captions, strict=True))
    rows = []
    for method in ("reconstruction", "replacement"):
        sampler = model.sampler(guidance=2.0, batch_size=len(captions), method=method)
        videos = editing.extend(
            sampler, model.params, _key(options, 1), start, prompts, frames=ROUNDS_TO, context=2
        )
        rows.append((method, videos))
    return Section(
        name="extension",
        title=f"Extension to {ROUNDS_TO} frames",
        text="Each clip of 8 frames begins with the last two of the one before. The direction of "
        "the prompt turns from clip to clip, since a shape that went on would leave the frame.",
        command=f'vdm edit extend --prompt="{captions[0]}" --then="{turned[0]}" '
        f'--then="{captions[0]}" --frames={ROUNDS_TO} --context=2 --guidance=2',
        captions=captions,
        rows=rows,
    )


def _interpolation(model, options) -> Section:
    import numpy as np

    from vdm_jax.pipelines import editing

    truth, captions = _truth(model, options.clips)
    known = truth[:, ::7]
    share = np.linspace(0, 1, 8).reshape(1, -1, 1, 1, 1)
    blend = np.rint(known[:, :1] * (1 - share) + known[:, 1:] * share).astype(np.uint8)
    sampler = model.sampler(guidance=1.0, batch_size=options.clips)
    made = editing.interpolate(sampler, model.params, _key(options, 2), known, captions, factor=7)
    return Section(
        name="interpolation",
        title="Interpolation",
        text="The first and the last frame are known; the six between are made.",
        command=f'vdm edit interpolate --factor=7 --input=two_frames.mp4 --prompt="{captions[0]}"',
        captions=captions,
        rows=[("known", known), ("blended", blend), ("made", made), ("truth", truth)],
    )


def _inpainting(model, options) -> Section:

    from vdm_jax.pipelines import editing

    truth, captions = _truth(model, options.clips)
    hole = _middle(model)
    sampler = model.sampler(guidance=1.0, batch_size=options.clips)
    made = editing.inpaint(sampler, model.params, _key(options, 3), truth, captions, known=~hole)
    given = common.greyed(truth, ~hole)
    return Section(
        name="inpainting",
        title="Inpainting",
        text="The middle of every frame is made anew.",
        command=f'vdm edit inpaint --input=clip.mp4 --prompt="{captions[0]}"',
        captions=captions,
        rows=[("known", given), ("made", made), ("truth", truth)],
    )


def _super_resolution(model, options) -> Section:
    import numpy as np
    from einops import reduce

    from vdm_jax.pipelines import editing

    truth, captions = _truth(model, options.clips)
    sampler = model.sampler(guidance=1.0, batch_size=options.clips)
    rows = []
    for factor in (2, 4):
        low = reduce(
            truth.astype(np.float32), "n f (h s) (w r) c -> n f h w c", "mean", s=factor, r=factor
        )
        low = np.rint(low).astype(np.uint8)
        made = editing.super_resolve(sampler, model.params, _key(options, 4), low, captions)
        side = low.shape[2]
        rows += [(f"{side} x {side}", low), ("made", made)]
    return Section(
        name="super_resolution",
        title="Super-resolution",
        text="By guidance alone: the model of 16 x 16 pixels samples clips whose means over blocks "
        "are the small ones.",
        command=f'vdm edit super_resolve --factor=4 --input=small.mp4 --prompt="{captions[0]}"',
        captions=captions,
        rows=[*rows, ("truth", truth)],
    )


def _loop(model, options) -> Section:
    from vdm_jax.data import shapes
    from vdm_jax.pipelines import editing

    captions = _captions(options.clips)
    start = _sampled(model, options, captions, guidance=2.0)
    back = [shapes.turned(text) for text in captions]
    sampler = model.sampler(guidance=2.0, batch_size=len(captions))
    made = editing.loop(sampler, model.params, _key(options, 5), start, back, context=1)
    return Section(
        name="loop",
        title="Loops",
        text="A second clip, of which the first and the last frame are known, leads from the end "
        "back to the beginning.",
        command=f'vdm edit loop --prompt="{captions[0]}" --then="{back[0]}" --guidance=2',
        captions=captions,
        rows=[("clip", start), ("loop", made)],
    )


def _distillation(model, options) -> Section:
    from vdm_jax.pipelines import model as pretrained

    captions = _captions(options.clips)
    plain = {"sampler": "ddim", "guidance": 2.0}
    rows = [("teacher, 64 steps", _sampled(model, options, captions, steps=64, **plain))]
    students = {8: "moving_shapes_8step"}
    if options.ladder is not None:
        found = {n: Path(options.ladder) / f"progressive_{n}.safetensors" for n in (8, 4, 2, 1)}
        students = {n: path for n, path in found.items() if path.is_file()}
        if not students:
            raise FileNotFoundError(
                f"--ladder={options.ladder}: holds no progressive_N.safetensors"
            )
    for steps, source in students.items():
        student = pretrained.load(source)
        rows.append((f"student, {steps}", _sampled(student, options, captions)))
    for steps in (8, 4, 2, 1):
        videos = _sampled(model, options, captions, steps=steps, **plain)
        rows.append((f"teacher, {steps}", videos))
    return Section(
        name="distillation",
        title="Distillation",
        text="The same noise in ever fewer steps. Students take one evaluation of the network a "
        "step, the guided teacher two.",
        command="vdm distill --config=vdm/moving_shapes_distill --workdir=runs/distilled",
        captions=captions,
        rows=rows,
    )


def _told(model, options, index: int, known, still: bool = False):
    """Columns' captions, and rows: what is shown of clips to a model that was trained to be told
    what is `known`, bool (f, h, w), and what it makes of it.

    still: the clips that are shown are their first frames, as long as a clip.
    """
    import numpy as np

    from vdm_jax.pipelines import editing

    truth, captions = _truth(model, options.clips)
    shown = np.repeat(truth[:, :1], truth.shape[1], axis=1) if still else truth
    sampler = model.sampler(method="trained", batch_size=options.clips)
    made = editing.inpaint(
        sampler, model.params, _key(options, index), shown, captions, known=known
    )
    given = common.greyed(shown, known)
    return captions, [("given", given), ("made", made), *([] if still else [("truth", truth)])]


def _image_to_video(model, options) -> Section:
    import numpy as np

    frames = model.stage.video_shape[0]
    known = (np.arange(frames) == 0)[:, None, None]
    captions, rows = _told(model, options, 6, known)
    return Section(
        name="image_to_video",
        title="Image to video",
        text=f"Lumiere: the first of {frames} frames is known, all others are made in one pass.",
        command="vdm edit animate --model=DIR/base_32f_16 --input=still.mp4 "
        f'--prompt="{captions[0]}"',
        captions=captions,
        rows=rows,
    )


def _completion(model, options) -> Section:
    captions, rows = _told(model, options, 7, ~_middle(model))
    return Section(
        name="completion",
        title="Inpainting by a model that was trained for it",
        text="Lumiere: the middle of every frame is made anew, told what surrounds it.",
        command="vdm edit inpaint --model=DIR/base_32f_16 --input=clip.mp4 "
        f'--prompt="{captions[0]}"',
        captions=captions,
        rows=rows,
    )


def _cinemagraph(model, options) -> Section:
    import numpy as np

    first = (np.arange(model.stage.video_shape[0]) == 0)[:, None, None]
    captions, rows = _told(model, options, 8, first | ~_middle(model), still=True)
    return Section(
        name="cinemagraph",
        title="Cinemagraphs",
        text="Lumiere: a still of which only the middle moves; all else is told to stand still.",
        command="vdm edit cinemagraph --model=DIR/base_32f_16 --input=still.mp4 "
        f'--prompt="{captions[0]}"',
        captions=captions,
        rows=rows,
    )


def _stylisation(model, options) -> Section:
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems import lumiere

    style = pretrained.load(options.style)
    captions = _captions(options.clips)
    rows = []
    for amount in (0.0, 0.5, 0.75, 1.0):
        params = lumiere.stylise(model.params, style.params, amount)
        videos = _sampled(dataclasses.replace(model, params=params), options, captions)
        rows.append((f"{amount:.0%} of the style", videos))
    return Section(
        name="stylisation",
        title="Stylisation",
        text="Lumiere: the image layers lean to those of an image model that was fine-tuned to "
        "frames in pastel; the layers that mix frames are as they were. The same noise.",
        command="vdm edit stylise --model=DIR/base_32f_16 --style=DIR/style --amount=0.75 "
        "--out=DIR/styled.safetensors",
        captions=captions,
        rows=rows,
    )


def _middle(model):
    """bool (1, h, w): the middle quarter of the frame's area."""
    import numpy as np

    _, height, width, _ = model.stage.video_shape
    inside = np.zeros((1, height, width), bool)
    inside[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return inside


def _write(out: Path, sections: list[Section], fps: float) -> Path:
    from vdm_jax.data import video_io

    parts = []
    for section in sections:
        rows = []
        for index, (label, videos) in enumerate(section.rows):
            cells = []
            for column, (video, caption) in enumerate(zip(videos, section.captions, strict=True)):
                name = f"{section.name}_{index}_{column}.gif"
                # Few known frames last as long as what is made of them.
                frames = len(section.rows[-1][1][0]) if label == "known" else len(video)
                rate = fps * len(video) / frames
                video_io.write_gif(out / name, video, fps=rate, min_size=video.shape[1])
                alt = html.escape(f"{section.title}, {label}: {caption}")
                cells.append(f'<td><img src="{name}" alt="{alt}"></td>')
            rows.append(f"<tr><th>{html.escape(label)}</th>{''.join(cells)}</tr>")
        names = "".join(f"<td>{html.escape(caption)}</td>" for caption in section.captions)
        rows.append(f"<tr><th></th>{names}</tr>")
        parts.append(
            f'<h2 id="{section.name}">{html.escape(section.title)}</h2>\n'
            f"<p>{html.escape(section.text)}</p>\n"
            f"<pre><code>{html.escape(section.command)}</code></pre>\n"
            f"<div><table>\n{chr(10).join(rows)}\n</table></div>"
        )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>vdm_jax gallery</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        "<h1>vdm_jax gallery</h1>\n<p>Made by the models that ship with the package, 8 frames of "
        "16 x 16 pixels, by <code>vdm gallery</code>; Lumiere's by one that does "
        "not ship.</p>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path
