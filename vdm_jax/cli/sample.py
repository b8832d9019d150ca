"""Samples videos from prompts.

    python -m launch.sample --workdir=DIR --prompt="a red circle moving left" --num_samples=4

OUT receives an MP4 a sample, samples.gif (all side by side), contact_sheet.png (each sample's
frames with its prompt) and samples.npz: `video`, uint8 b f h w c, and `prompts`, b texts. What OUT
holds already is overwritten where the names agree, and else stays. Without --workdir and --model
the model that ships with the package is used. A sample depends on its place in the list of samples
and on the seed, not on the batch size.

    python -m launch.sample --cascade=configs/imagen_video/tiny/cascade.py --workdir=DIR --prompt=…

samples a cascade, whose stages are in DIR/STAGE or DIR/STAGE.safetensors; OUT also receives what
each stage made (stages/), and a second call goes on where one was broken off. A field of a stage's
sampler is set by --config.sample.STAGE.FIELD=VALUE.
"""

from pathlib import Path

from vdm_jax.cli import common


def main(arguments: list[str]) -> int:
    parser = common.parser("python -m launch.sample", __doc__)
    common.add_model_arguments(parser)
    parser.add_argument("--cascade", metavar="FILE", help="the configuration of a cascade")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    parser.add_argument("--prompts_file", metavar="FILE", help="further prompts, one a line")
    parser.add_argument(
        "--num_samples",
        type=common.positive,
        default=1,
        metavar="N",
        help="samples of each prompt (default 1)",
    )
    common.add_sampler_arguments(parser)
    parser.add_argument(
        "--preview",
        action="store_true",
        help="rewrite OUT/preview.png as sampling goes on: what the batch looks like so far",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--out", default="samples", metavar="OUT", help="default samples/")

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    prompts = _prompts(options)
    if overrides and options.cascade is None:
        parser.error("--config.FIELD=VALUE is for the stages of a --cascade")
    common.setup(options.device, options)
    if options.cascade is not None:
        if options.workdir is None or not prompts:
            parser.error("--cascade needs --workdir and --prompt or --prompts_file")
        return _sample_cascade(options, overrides, prompts)

    import jax
    from rich.progress import track

    model = common.load_model(options)
    if not prompts:
        if model.stage.text_encoder is not None:
            parser.error("no prompt: give --prompt or --prompts_file")
        prompts = [""]
    sampler = model.sampler(**common.sampler_changes(options))
    model.stage.encode_prompts(prompts)  # an unknown word is told before anything is compiled
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    if jax.process_index() == 0:
        print(
            f"{len(repeated)} samples, {sampler.steps} steps of {sampler.sampler}, "
            f"guidance {sampler.guidance:g}"
        )

    fps = model.config.data.fps or 8
    batches = -(-len(repeated) // min(sampler.batch_size, len(repeated)))
    stream = sampler.stream(
        model.params,
        jax.random.key(options.seed),
        repeated,
        preview=_write_preview(Path(options.out)) if options.preview else None,
    )
    if jax.process_index() != 0:
        for _ in stream:  # the first process writes
            pass
        return 0
    batches = track(stream, "sampling", total=batches, transient=True)
    common.write_samples(Path(options.out), batches, repeated, fps)
    return 0


def _sample_cascade(options, overrides, prompts) -> int:
    import jax

    from vdm_jax.parallel import mesh
    from vdm_jax.pipelines import cascade as cascade_sampling

    flags = {k: v for k, v in common.sampler_changes(options).items() if v is not None}
    if flags or options.preview:
        given = ", ".join([f"--{name}" for name in flags] + ["--preview"] * options.preview)
        raise ValueError(f"{given}: of a cascade, set --config.sample.STAGE.FIELD=VALUE instead")
    steps = common.cascade_steps(options.cascade, overrides, options.workdir)
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    out, first = Path(options.out), jax.process_index() == 0

    def progress(name: str, done: int, total: int) -> None:
        if first:
            print(f"{name}: {done} of {total}", flush=True)

    outputs = cascade_sampling.sample(
        steps,
        options.seed,
        repeated,
        out,
        mesh=mesh.parse_mesh(options.mesh),
        progress=progress,
    )
    for output in outputs:
        if first:
            shape = " x ".join(map(str, output.videos.shape[1:4]))
            print(f"{output.name}: {shape}, {output.seconds:.1f} s", flush=True)
    if first:
        common.write_samples(out, [output.videos], repeated, output.fps)
    return 0


def _write_preview(out: Path):
    from vdm_jax.data import video_io

    def write(step: int, steps: int, videos) -> None:
        partial = video_io.contact_sheet(
            out / ".preview.png", videos, [f"step {step} of {steps}"] * len(videos), max_clips=8
        )
        partial.replace(out / "preview.png")  # whoever looks sees a whole picture

    return write


def _prompts(options) -> list[str]:
    prompts = list(options.prompt)
    if options.prompts_file is not None:
        path = Path(options.prompts_file)
        if not path.is_file():
            raise FileNotFoundError(f"--prompts_file={path}: there is no such file")
        prompts += [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [prompt for prompt in prompts if prompt]
