"""Samples videos from prompts.

    python -m launch.sample --workdir=DIR --prompt="a red circle moving left" --num_samples=4

OUT receives an MP4 a sample, samples.gif (all side by side), contact_sheet.png (each sample's
frames with its prompt) and samples.npz: `video`, uint8 b f h w c, and `prompts`, b texts. What OUT
holds already is overwritten where the names agree, and else stays. Without --workdir and --model
the model that ships with the package is used. A sample depends on its place in the list of samples
and on the seed, not on the batch size.
"""

import functools
import itertools
import re
from pathlib import Path

import launch

# A GIF of more clips than this is not looked at any more; the MP4s and the npz are always complete.
_AT_A_GLANCE = 64
_LEAST_SIDE = 64  # pixels, of a clip in the GIF


def main(arguments: list[str]) -> int:
    parser = launch.parser("python -m launch.sample", __doc__)
    launch.add_model_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    parser.add_argument("--prompts_file", metavar="FILE", help="further prompts, one a line")
    number = functools.partial(parser.add_argument, type=launch.positive, metavar="N")
    number("--num_samples", default=1, help="samples of each prompt (default 1)")
    number("--steps", help="denoising steps*")
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance scale; 1 = none*")
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="ddim, ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, euler, heun, flow_euler, "
        "flow_midpoint, flow_heun, distilled or consistency*",
    )
    parser.add_argument(
        "--grid",
        metavar="GRID",
        help="spacing of the steps: time, logsnr, karras, trailing, leading; or increasing "
        "log-SNRs: --grid=-8,-2,0,2,inf*",
    )
    parser.add_argument(
        "--eta", type=float, metavar="X", help="of ddim: 0 deterministic to 1 ancestral*"
    )
    parser.add_argument(
        "--churn", type=float, metavar="X", help="of euler and heun: noise added, 0 = none*"
    )
    parser.add_argument(
        "--corrector",
        type=float,
        metavar="X",
        help="step of a Langevin corrector after each step: 0.1 in VDM, 0 = none*",
    )
    number("--num_frames", help="frames of a video (default: as trained)")
    number("--batch_size", help="samples computed at once*")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--out", default="samples", metavar="OUT", help="default samples/")
    parser.epilog = "* default: what the model's configuration says (its section `sample`)"
    options = parser.parse_args(arguments)
    prompts = _prompts(options)
    launch.setup(options.device, options)

    import jax
    import numpy as np
    from rich.progress import track

    from vdm_jax import video_io

    model = launch.load_model(options)
    if not prompts:
        if model.stage.text_encoder is not None:
            parser.error("no prompt: give --prompt or --prompts_file")
        prompts = [""]
    sampler = model.sampler(
        steps=options.steps,
        guidance=options.guidance,
        sampler=options.sampler,
        grid=options.grid,
        eta=options.eta,
        churn=options.churn,
        corrector=options.corrector,
        num_frames=options.num_frames,
        batch_size=options.batch_size,
    )
    model.stage.encode_prompts(prompts)  # an unknown word is told before anything is compiled
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    if jax.process_index() == 0:
        print(
            f"{len(repeated)} samples, {sampler.steps} steps of {sampler.sampler}, "
            f"guidance {sampler.guidance:g}"
        )

    out = Path(options.out)
    fps = model.config.data.fps or 8
    batches = -(-len(repeated) // min(sampler.batch_size, len(repeated)))
    stream = sampler.stream(model.params, jax.random.key(options.seed), repeated)
    if jax.process_index() != 0:
        for _ in stream:  # the first process writes
            pass
        return 0
    indices = itertools.count()
    videos = []
    for batch in track(stream, "sampling", total=batches, transient=True):
        for video in batch:
            index = next(indices)
            name = f"{index:04d}_{_slug(repeated[index])}.mp4"
            video_io.write_mp4(out / name, video, fps=fps)
            videos.append(video)
    videos = np.stack(videos)

    watchable = video_io.enlarge(videos[:_AT_A_GLANCE], _LEAST_SIDE)
    gif = video_io.write_gif(out / "samples.gif", video_io.grid(watchable), fps=fps)
    numbered = [f"{index:04d} {prompt}" for index, prompt in enumerate(repeated)]
    sheet = video_io.contact_sheet(out / "contact_sheet.png", videos, numbered)
    np.savez_compressed(out / "samples.npz", video=videos, prompts=np.array(repeated, dtype=str))
    total = len(videos)
    some = f" (the first {_AT_A_GLANCE} of {total})" if total > _AT_A_GLANCE else ""
    even = f" ({video_io.SHEET_CLIPS} of {total}, evenly chosen)"
    print(f"{gif}{some}\n{sheet}{even if total > video_io.SHEET_CLIPS else ''}")
    print(f"{out / 'samples.npz'}\n{out}/*.mp4: {total} clips")
    return 0


def _prompts(options) -> list[str]:
    prompts = list(options.prompt)
    if options.prompts_file is not None:
        path = Path(options.prompts_file)
        if not path.is_file():
            raise FileNotFoundError(f"--prompts_file={path}: there is no such file")
        prompts += [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [prompt for prompt in prompts if prompt]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60]


if __name__ == "__main__":
    launch.run(main)
