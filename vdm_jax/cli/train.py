"""Trains a model, or all stages of a cascade.

    vdm train --config=vdm/moving_shapes [--workdir=DIR] [--config.FIELD=VALUE ...]

CONFIG is the name of a configuration (vdm describe lists them) or a Python file with get_config().
Every field can be set by a flag, such as --config.train.steps=500 or --config.model.channels=64;
vdm train --config=CONFIG --help lists the fields. The embedded data set moving_shapes is
rendered where it is missing. Other data sets have to be there: see vdm data prepare. A folder of
video files needs nothing. The same command goes on from the last checkpoint in DIR, exactly as if
it had never stopped. Ctrl-C saves and stops.

DIR receives checkpoints/, config.json, metrics.jsonl, tensorboard/ and samples/.

Where the configuration is a cascade, such as imagen_video/tiny/cascade, each stage is a run of its
own in DIR/STAGE, with its output in DIR/STAGE.log. The configuration of a stage is STAGE.py beside
the cascade's. Image models that stages start from are trained before them. Embeddings of captions
are computed first where they are missing. --config.FIELD=VALUE sets a field of every stage. The
same command goes on where it stopped; finished stages are left alone.

With --distill=CONFIG every trained stage is then distilled (vdm distill) as get_config(STAGE) of
CONFIG says, in DIR/distilled/rounds/STAGE. The last student of a stage is
DIR/distilled/STAGE.safetensors, so that vdm sample --model=DIR/distilled samples the distilled
cascade.

Exit status: 0 done, or stopped by Ctrl-C and saved; 75 stopped by SIGTERM or a preemption notice
and saved, to be started again; 1 an error, which is printed; other: killed.
"""

import argparse
import functools
from pathlib import Path

from vdm_jax.cli import cascade, common, outputs, parsing, prepare_data


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm train", __doc__)
    parser.add_argument(
        "--config", required=True, metavar="CONFIG", help="a configuration: a name or a file"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="where all output goes (default: runs/CONFIG)"
    )
    parser.add_argument(
        "--profile",
        type=_span,
        metavar="A:B",
        help="write a trace of updates A to B after the start to DIR/profile (XProf, TensorBoard)",
    )
    parser.add_argument(
        "--profiler_port",
        type=parsing.positive,
        metavar="PORT",
        help="serve XProf and TensorBoard, which capture a trace of this process when asked to",
    )
    group = parser.add_argument_group("cascades")
    group.add_argument(
        "--stages",
        metavar="NAMES",
        help="some of the stages, separated by commas (default: all; empty: train none, and make "
        "DIR a cascade of stages that were trained there before)",
    )
    group.add_argument(
        "--jobs",
        type=parsing.positive,
        metavar="N",
        help="stages that train at once, on one machine's devices (default 1)",
    )
    group.add_argument(
        "--distill", metavar="CONFIG", help="distil the stages too, with get_config(STAGE)"
    )
    common.add_process_arguments(parser)

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    if options.workdir is None:
        options.workdir = str(_default_workdir(options.config))
    if "stages" in (config := config_lib.load_config(options.config)):
        for name in ("profile", "profiler_port"):
            if getattr(options, name):
                parser.error(
                    f"--{name}: a cascade is trained stage by stage; profile one stage's run"
                )
        outputs.check_folder(options.workdir, "--workdir")
        return cascade.train(config, options, overrides)
    for name in ("stages", "jobs", "distill"):
        if getattr(options, name) is not None:
            parser.error(f"--{name}: --config={options.config} is no cascade (has no field stages)")
    return _train(config_lib.load_config(options.config, overrides), options)


def _train(config, options) -> int:
    common.setup(config.device, options)
    outputs.in_first_process(lambda: outputs.check_folder(options.workdir, "--workdir"))

    import jax

    from vdm_jax.stage import contrast, control, reconstruction

    if options.profiler_port:
        jax.profiler.start_server(options.profiler_port)
    stage, result = fit(config, options.workdir, options.profile)
    if jax.process_index() != 0:
        return common.PREEMPTED if result.reason == "SIGTERM" else 0
    if result.reason in ("SIGINT", "SIGTERM"):
        print("the same command goes on from there")
    elif isinstance(
        stage, reconstruction.Reconstruction | control.ControlStage | contrast.Contrast
    ):
        print(f"write it: vdm convert --to=diffusers --model={options.workdir} --out=FOLDER")
    else:
        print(f'sample it: vdm sample --model={options.workdir} --prompt="..."')
    return common.PREEMPTED if result.reason == "SIGTERM" else 0


def fit(config, workdir: str, profile: tuple[int, int] | None = None):
    """Trains a stage in `workdir`, or goes on with it; JAX is set up.

    profile: updates that a trace is written of. Returns the stage and the `loop.Result`.
    """
    import jax

    from vdm_jax import systems
    from vdm_jax.data import frame_rate, mixed_sizes
    from vdm_jax.parallel import sharding
    from vdm_jax.pipelines import initial as initial_lib
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.stage import beside, control
    from vdm_jax.training import loop

    prepare_data.render_missing(config.data)
    config = _with_vocabulary(pretrained.with_base(config), workdir)
    stage = systems.build(config)
    plan = sharding.make_plan(stage, config.mesh)
    dataset = mixed_sizes.make_dataset(
        config,
        stage,
        rows=plan.rows(config.train.batch_size),
        report=print if jax.process_index() == 0 else None,
    )
    config = frame_rate.recorded(config, dataset.source)
    frozen = pretrained.read_frozen(config, config.mesh.to_dict())
    initial = None
    if isinstance(stage, control.ControlStage | beside.Beside):
        params = {name: part.params for name, part in frozen.items()}
        initial = functools.partial(initial_lib.adapted, stage, config, plan, params)
    if config.train.init_from:
        initial = functools.partial(
            initial_lib.params,
            config.train.init_from,
            stage,
            plan,
            seed=config.train.seed,
        )
    result = loop.train(
        stage,
        config,
        workdir,
        dataset,
        plan=plan,
        fps=frame_rate.playback(config),
        initial=initial,
        flops=config.train.batch_size * stage.train_flops(config.data.image_frames),
        profile=profile,
        frozen=frozen,
    )
    return stage, result


def _default_workdir(config: str) -> Path:
    from vdm_jax import config as config_lib

    path, argument = config_lib.find_config(config)
    if path.is_relative_to(config_lib.config_folder()):
        path = path.relative_to(config_lib.config_folder())
    else:
        path = Path(path.name)
    return Path("runs") / path.with_suffix("") / (argument or "")


def _span(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, two update numbers from 1")
    return int(first), int(last)


def _with_vocabulary(config, workdir: str):
    """The configuration with the vocabulary that its word encoder lacks, taken from the data, or
    with the identity of the frozen text encoder whose embeddings lie beside the data.

    A resumed run keeps its own vocabulary. A run that starts from a model, or adapts one, keeps the
    model's, because the network's embedding table belongs to it.
    """
    from vdm_jax.data import pipeline
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.training import checkpoints

    text = config.text
    field = "vocabulary" if text.encoder == "words" else "identity"
    if text.encoder == "none" or text.get(field):
        return config
    adapted = [config.train.get(name, {}).get("base") for name in ("lora", "control", "tuning")]
    before = config.train.init_from or next(filter(None, adapted), "")
    if checkpoints.has_checkpoint(workdir):
        _, saved = checkpoints.read_config(workdir, fallback=config.checkpoint.fallback)
    elif before and field == "vocabulary":
        saved = pretrained.read_config(before)
    else:
        return pipeline.with_vocabulary(config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.text[field] = saved.text.get(field, "")
    return config.lock()
