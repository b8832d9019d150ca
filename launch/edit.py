"""Edits videos with a trained model: longer, slower, larger, whole, endless.

    python -m launch.edit extend --prompt="a red circle moving left" --frames=64
    python -m launch.edit interpolate --input=clip.mp4 --prompt="a red circle moving left"

JOB is one of
  extend         goes on until there are --frames frames, each clip beginning with the last
                 --context frames of what there is; --then are the prompts of the clips that follow,
                 in turn
  interpolate    makes --factor − 1 frames between each two
  super_resolve  enlarges from 1/--factor of the model's size
  inpaint        makes --box anew
  outpaint       makes all but --box anew
  animate        makes a clip that begins with the first frame
  cinemagraph    makes a clip of the first frame in which only --box moves
  restyle        begins again at a noisy version, --strength of the way back, after --then
  loop           appends the way back to the first frame, described by --then

Without --input each prompt's clip is sampled first, and what the job may know is taken from it.
An --input is brought to the size that the job works on, its middle square resized, and must have a
--prompt, or one for each. OUT receives what launch.sample writes, and given.gif and given.npz: what
was known. --method says how it is used (docs/conditional.md).
"""

from pathlib import Path

import launch

_MASKED = ("inpaint", "outpaint", "animate", "cinemagraph")
JOBS = ("extend", "interpolate", "super_resolve", *_MASKED, "restyle", "loop")
_FLAGS = {
    "frames": ("extend",),
    "context": ("extend", "loop"),
    "factor": ("interpolate", "super_resolve"),
    "box": ("inpaint", "outpaint", "cinemagraph"),
    "strength": ("restyle",),
    "then": ("extend", "restyle", "loop"),
}


def main(arguments: list[str]) -> int:
    parser = launch.parser("python -m launch.edit", __doc__)
    parser.add_argument("job", metavar="JOB", choices=JOBS, help=", ".join(JOBS))
    launch.add_model_arguments(parser)
    parser.add_argument(
        "--input", action="append", default=[], metavar="FILE", help="a video, or samples.npz"
    )
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="one for each video, or one"
    )
    parser.add_argument("--then", action="append", default=[], metavar="TEXT", help="see above")
    job = parser.add_argument_group("of the job")
    number = {"type": launch.positive, "metavar": "N"}
    job.add_argument("--frames", **number, help="extend: in all (default: 4 clips' worth)")
    job.add_argument(
        "--context", **number, help="extend, loop: known frames (default: half a clip, 1)"
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
        "--strength", type=float, metavar="X", help="restyle: above 0, at most 1 (default 0.6)"
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="reconstruction, replacement, pigdm, projection, or trained, for models that were "
        "trained to be told what is known (default: trained where that can be, else "
        "reconstruction)",
    )
    parser.add_argument("--weight", type=float, metavar="X", help="of reconstruction and pigdm")
    parser.add_argument(
        "--remat",
        default="none",
        metavar="NAME",
        help="what is computed twice to save memory where the network is differentiated: none "
        "(default), dots or full",
    )
    launch.add_sampler_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--out", default="edited", metavar="OUT", help="default edited/")
    options = parser.parse_args(arguments)
    for name, jobs in _FLAGS.items():
        if getattr(options, name) and options.job not in jobs:
            parser.error(f"--{name} has no meaning for {options.job}, only for {', '.join(jobs)}")
    launch.setup(options.device, options)

    import jax
    import numpy as np
    from rich.progress import Progress

    from vdm_jax.data import video_io

    model = launch.load_model(options)
    told = options.job in _MASKED and "masked_video" in model.stage.network.reads
    sampler = model.sampler(
        method=options.method or ("trained" if told else "reconstruction"),
        weight=options.weight,
        remat=options.remat,
        **launch.sampler_changes(options),
    )
    key, start_key = jax.random.split(jax.random.key(options.seed))
    given, prompts, fps = _inputs(options, sampler)
    if given is None:
        if not prompts:
            parser.error("neither --input nor --prompt")
        model.stage.encode_prompts([*prompts, *options.then])
        given = np.concatenate(list(sampler.stream(model.params, start_key, prompts)))
        given = _part_known(options, given, sampler)
        fps = model.config.data.fps or 8
    else:
        model.stage.encode_prompts([*prompts, *options.then])
    first = jax.process_index() == 0
    with Progress(transient=True, disable=not first) as bar:
        task = bar.add_task(options.job, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        videos = _run(options, sampler, model.params, key, given, prompts, progress)
    if not first:
        return 0
    out = Path(options.out)
    shown = _shown(options, given, sampler)
    launch.write_samples(out, [videos], prompts, fps)
    rate = fps / (options.factor or 2) if options.job == "interpolate" else fps
    watchable = video_io.enlarge(shown[: launch.AT_A_GLANCE], videos.shape[2] * 4)
    print(video_io.write_gif(out / "given.gif", video_io.grid(watchable), fps=rate))
    np.savez_compressed(out / "given.npz", video=given, prompts=np.array(prompts, dtype=str))
    print(out / "given.npz")
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
            progress=progress,
        )
    if options.job == "loop":
        if len(options.then) > 1:
            raise ValueError("--then was given more than once: a loop has one way back")
        texts = options.then * len(prompts) or prompts
        return editing.loop(
            sampler, params, key, given, texts, context=options.context or 1, progress=progress
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
    known = _known(options, sampler)
    return editing.inpaint(sampler, params, key, given, prompts, known=known, progress=progress)


def _inputs(options, sampler):
    """The videos that were named, uint8 `n f h w c` or None, their prompts and frame rate."""
    import numpy as np

    from vdm_jax.data import source, video_io

    prompts = list(options.prompt)
    if not options.input:
        return None, prompts, 0.0
    videos, saved, fps = [], [], 0.0
    for name in options.input:
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"--input={path}: there is no such file")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                if "video" not in arrays or arrays["video"].ndim != 5:
                    raise ValueError(f"--input={path}: holds no array video, uint8 n f h w c")
                videos += list(arrays["video"])
                saved += [str(text) for text in arrays.get("prompts", ())]
        else:
            video, fps = video_io.read_video(path)
            videos.append(video)
    lengths = sorted({len(video) for video in videos})
    if len(lengths) > 1:
        raise ValueError(f"--input: videos of {lengths} frames; must be as many in all of them")
    size = sampler.video_shape[1]
    if options.job == "super_resolve":
        size = _low_size(options, sampler)
    if not prompts:
        prompts = saved
    if len(prompts) == 1:
        prompts = prompts * len(videos)
    if len(prompts) != len(videos):
        raise ValueError(f"{len(prompts)} prompts, {len(videos)} videos: must be one, or as many")
    fitted = np.stack([source.fit(video, size) for video in videos])
    return _still(options, fitted, sampler), prompts, fps or 8


def _part_known(options, videos, sampler):
    """What a job is given of clips that were sampled."""
    if options.job == "interpolate":
        return videos[:, :: options.factor or 2]
    if options.job == "super_resolve":
        import numpy as np
        from einops import reduce

        factor = sampler.video_shape[1] // _low_size(options, sampler)
        means = reduce(
            videos.astype(np.float32), "n f (h s) (w r) c -> n f h w c", "mean", s=factor, r=factor
        )
        return np.rint(means).astype(np.uint8)
    return _still(options, videos, sampler)


def _still(options, videos, sampler):
    """The first frame, for as long as a clip is, where a job knows only that."""
    if options.job not in ("animate", "cinemagraph"):
        return videos
    return videos[:, :1].repeat(sampler.video_shape[0], axis=1)


def _low_size(options, sampler) -> int:
    factor, size = options.factor or 2, sampler.video_shape[1]
    if factor < 2 or size % factor:
        raise ValueError(f"--factor={factor}: must be at least 2 and divide the model's {size}")
    return size // factor


def _known(options, sampler):
    """bool `f h w`, or with axes of 1: which pixels a job of `_MASKED` knows."""
    import numpy as np

    first = (np.arange(sampler.video_shape[0]) == 0)[:, None, None]
    if options.job == "animate":
        return first
    inside = _inside(options, sampler)[None]
    return {"inpaint": ~inside, "outpaint": inside, "cinemagraph": ~inside | first}[options.job]


def _inside(options, sampler):
    """bool `h w`: the box; by default the middle quarter of the area."""
    import numpy as np

    height, width = sampler.video_shape[1:3]
    box = options.box or (height // 4, width // 4, height // 2, width // 2)
    top, left, tall, wide = box
    if top + tall > height or left + wide > width:
        raise ValueError(f"--box={','.join(map(str, box))}: reaches beyond {height} x {width}")
    inside = np.zeros((height, width), bool)
    inside[top : top + tall, left : left + wide] = True
    return inside


def _shown(options, given, sampler):
    """What was given, grey where nothing was."""
    if options.job not in _MASKED:
        return given
    return launch.greyed(given, _known(options, sampler))


def _box(text: str) -> tuple[int, ...]:
    import argparse

    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdigit() for part in parts) or "0" in parts[2:]:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOP,LEFT,HEIGHT,WIDTH")
    return tuple(map(int, parts))


if __name__ == "__main__":
    launch.run(main)
