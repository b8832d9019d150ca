"""Samples videos from prompts.

    vdm sample --prompt="a red circle moving left" --num_samples=4 [--model=MODEL] [--out=DIR]

OUT receives an MP4 a sample, samples.gif (all side by side), contact_sheet.png (each sample's
frames with its prompt) and samples.npz: `video`, uint8 b f h w c, and `prompts`, b texts. Files
that are in OUT already are overwritten where the names agree, and else stay. A sample depends on
its place in the list of samples and on the seed, not on the batch size.

MODEL may be a cascade: a shipped one, such as imagen_video_tiny, or the working directory of one.
OUT then also receives the videos of each stage (stages/), and the same command goes on where it
was interrupted. --stage.NAME.FIELD=VALUE sets a field of one stage's sampler, such as
--stage.base_8.steps=32; the other sampler flags are for single models.
"""

from pathlib import Path

from vdm_jax.cli import common


def main(arguments: list[str]) -> int:
    parser = common.parser("vdm sample", __doc__)
    common.add_model_arguments(parser)
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
        help="rewrite OUT/preview.png while sampling: the current estimate of the batch",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--out", default="samples", metavar="OUT", help="default samples/")

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments, "stage")
    options = parser.parse_args(arguments)
    prompts = _prompts(options)
    common.setup(options.device, options)

    import jax
    from rich.progress import track

    from vdm_jax import pipelines

    model = common.load_any(options)
    if isinstance(model, pipelines.CascadeModel):
        if not prompts:
            parser.error("no prompt: give --prompt or --prompts_file")
        return _sample_cascade(model, options, overrides, prompts)
    if overrides:
        parser.error(f"--stage.{next(iter(overrides))}: the model is no cascade")
    if not prompts:
        if model.stage.text_encoder is not None:
            parser.error("no prompt: give --prompt or --prompts_file")
        prompts = [""]
    sampler = model.sampler(**common.sampler_changes(options))
    model.stage.check_prompts(prompts)  # refuses an unknown word before compiling
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    if jax.process_index() == 0:
        print(
            f"{len(repeated)} samples, {sampler.steps} steps of {sampler.rule_name}, "
            f"guidance {sampler.guidance_scale:g}"
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


def _sample_cascade(cascade, options, overrides: dict[str, str], prompts: list[str]) -> int:
    import jax

    from vdm_jax import config as config_lib

    flags = {k: v for k, v in common.sampler_changes(options).items() if v is not None}
    if flags or options.preview:
        names = ", ".join([f"--{name}" for name in flags] + ["--preview"] * options.preview)
        raise ValueError(f"{names}: for a cascade, set --stage.NAME.FIELD=VALUE instead")
    if overrides:
        sections = {name: cascade.sample_config(name) for name in cascade.stages}
        fields = config_lib.from_dict({name: part.to_dict() for name, part in sections.items()})
        changes = {}
        for field, text in overrides.items():
            config_lib.override(fields, field, text, flag="stage")
            stage, name = field.split(".")
            changes.setdefault(stage, {})[name] = fields[stage][name]
        cascade = cascade.replace(changes)
    repeated = [prompt for prompt in prompts for _ in range(options.num_samples)]
    out, first = Path(options.out), jax.process_index() == 0

    def progress(name: str, done: int, total: int) -> None:
        if first:
            print(f"{name}: {done} of {total}", flush=True)

    for output in cascade.stream(jax.random.key(options.seed), repeated, out, progress):
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
        partial.replace(out / "preview.png")  # never half a picture

    return write


def _prompts(options) -> list[str]:
    from vdm_jax.data import text_files

    prompts = list(options.prompt)
    if options.prompts_file is not None:
        path = Path(options.prompts_file)
        if not path.is_file():
            raise FileNotFoundError(f"--prompts_file={path}: there is no such file")
        prompts += [line.strip() for line in text_files.read_text(path).splitlines()]
    return [prompt for prompt in prompts if prompt]
