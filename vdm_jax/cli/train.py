"""Trains a model.

    python -m launch.train --config=configs/vdm/moving_shapes.py --workdir=DIR [--config.F=V ...]

Every field of the configuration can be set from the command line, for example
--config.train.steps=500 or --config.model.channels=64; all fields are in default_config() of
vdm_jax/systems/vdm.py, and configurations that are ready in configs/. The data must be there: see
python -m launch.prepare_data; a folder of video files needs nothing. Running the command again goes
on from the last checkpoint in DIR, exactly as if it had never stopped. Ctrl-C saves and stops.

DIR receives checkpoints/, config.json, metrics.jsonl, tensorboard/ and samples/.

Exit status: 0 done, or stopped by Ctrl-C and saved; 75 stopped by SIGTERM or a preemption notice
and saved, to be started again; 1 an error, which is told; other: killed.
"""

import argparse
import functools

from vdm_jax.cli import common


def main(arguments: list[str]) -> int:
    parser = common.parser("python -m launch.train", __doc__)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a configuration, such as configs/vdm/moving_shapes.py",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where all output goes")
    parser.add_argument(
        "--profile",
        type=_span,
        metavar="A:B",
        help="write a trace of updates A to B after the start to DIR/profile (XProf, TensorBoard)",
    )
    common.add_process_arguments(parser)

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    config = config_lib.load_config(options.config, overrides)
    common.setup(config.device, options)

    import jax

    from vdm_jax import systems
    from vdm_jax.data import pipeline
    from vdm_jax.parallel import sharding
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.training import loop

    config = _with_vocabulary(config, options.workdir)
    stage = systems.build(config)
    plan = sharding.make_plan(stage, config.mesh)
    dataset = pipeline.make_dataset(
        config,
        split=config.data.split,
        text_encoder=stage.text_encoder,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        rows=plan.rows(config.train.batch_size),
        report=print if jax.process_index() == 0 else None,
    )
    initial = None
    if config.train.init_from:
        initial = functools.partial(
            pretrained.initial_params,
            config.train.init_from,
            stage,
            plan,
            new=stage.train_only,
            seed=config.train.seed,
        )
    result = loop.train(
        stage,
        config,
        options.workdir,
        dataset,
        plan=plan,
        fps=config.data.fps or 8,
        initial=initial,
        flops=config.train.batch_size * stage.train_flops(config.data.image_frames),
        profile=options.profile,
    )
    if jax.process_index() != 0:
        return common.PREEMPTED if result.reason == "SIGTERM" else 0
    if result.reason in ("SIGINT", "SIGTERM"):
        print("the same command goes on from there")
    else:
        print(f'sample it: python -m launch.sample --workdir={options.workdir} --prompt="..."')
    return common.PREEMPTED if result.reason == "SIGTERM" else 0


def _span(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, two update numbers from 1")
    return int(first), int(last)


def _with_vocabulary(config, workdir: str):
    """The configuration with the words of the data, where it asks for words and names none, or with
    the identity of the frozen text encoder whose embeddings lie beside the data.

    A run that is resumed keeps the words that it began with, one that starts from a model those of
    the model: they are the network's.
    """
    from vdm_jax.data import pipeline
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.training import checkpoints

    text = config.text
    field = "vocabulary" if text.encoder == "words" else "identity"
    if text.encoder == "none" or text.get(field):
        return config
    if checkpoints.has_checkpoint(workdir):
        _, saved = checkpoints.read_config(workdir, fallback=config.checkpoint.fallback)
    elif config.train.init_from and field == "vocabulary":
        saved = pretrained.read_config(config.train.init_from)
    else:
        return pipeline.with_vocabulary(config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.text[field] = saved.text.get(field, "")
    return config.lock()
