"""Trains a model.

    python -m launch.train --config=configs/vdm/moving_shapes.py --workdir=DIR [--config.F=V ...]

Every field of the configuration can be set from the command line, for example
--config.train.steps=500 or --config.model.channels=64; all fields are in default_config() of
vdm_jax/systems/vdm.py, and configurations that are ready in configs/. The data must be there: see
python -m launch.prepare_data; a folder of video files needs nothing. Running the command again goes
on from the last checkpoint in DIR, exactly as if it had never stopped. Ctrl-C saves and stops.

DIR receives checkpoints/, config.json, metrics.jsonl, tensorboard/ and samples/.
"""

import launch


def main(arguments: list[str]) -> int:
    parser = launch.parser("python -m launch.train", __doc__)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a configuration, such as configs/vdm/moving_shapes.py",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where all output goes")

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    config = config_lib.load_config(options.config, overrides)
    launch.setup(config.device)

    from vdm_jax import systems
    from vdm_jax.data import pipeline
    from vdm_jax.training import loop

    config = _with_vocabulary(config, options.workdir)
    stage = systems.build(config)
    dataset = pipeline.make_dataset(
        config,
        split=config.data.split,
        text_encoder=stage.text_encoder,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
    )
    result = loop.train(stage, config, options.workdir, dataset, fps=config.data.fps or 8)
    if result.reason in ("SIGINT", "SIGTERM"):
        print("the same command goes on from there")
    else:
        print(f'sample it: python -m launch.sample --workdir={options.workdir} --prompt="..."')
    return 0


def _with_vocabulary(config, workdir: str):
    """The configuration with the words of the data, where it asks for words and names none.

    A run that is resumed keeps the words that it began with: they are its network's.
    """
    from vdm_jax.data import pipeline
    from vdm_jax.training import checkpoints

    if config.text.encoder != "words" or config.text.vocabulary:
        return config
    if not checkpoints.has_checkpoint(workdir):
        return pipeline.with_vocabulary(config)
    _, saved = checkpoints.read_config(workdir)
    config = config.copy_and_resolve_references()
    config.text.vocabulary = saved.text.vocabulary
    return config.lock()


if __name__ == "__main__":
    launch.run(main)
