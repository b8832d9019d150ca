"""Makes a training set of a folder of films: cuts them into clips, measures these, keeps the good.

    vdm data curate --videos=FILMS --out=DIR
    vdm data curate --videos=FILMS --out=DIR --measure_only
    vdm data curate --videos=FILMS --out=DIR --config.keep.motion=0.3: --config.keep.text=:0.07
    vdm data curate --videos=FILMS --out=DIR --config=SETTINGS.json --engine=beam

Results in DIR: clips.parquet, a row for each clip with its scores and why it is kept or dropped;
report.html, which shows each score's histogram with examples; train/, shards of the kept clips,
which a configuration reads with data.name = "video_shards" and data.data_dir = DIR/train.

The command can be stopped at any time and run again: what was measured is not measured again. With
other ranges (config.keep) it only filters, and writes the shards that change. --measure_only writes
no shards, so that ranges can be chosen first.

--config names a JSON file with the settings that differ from the defaults, for example
{"clips": {"most": 10}, "keep": {"motion": "0.3:"}}. --help=settings lists all settings.

Exit status: 0; 3 where films could not be used (clips.parquet says why); 1 after an error.
"""

import sys

from vdm_jax.cli import outputs, parsing

SOME_FAILED = 3


def main(arguments: list[str]) -> int:
    if "--help=settings" in arguments:
        print(_listed())
        return 0
    from vdm_jax import config as config_lib

    parser = parsing.parser("vdm data curate", __doc__)
    parser.add_argument("--videos", required=True, metavar="FILMS", help="the folder of films")
    parser.add_argument("--out", required=True, metavar="DIR", help="where results go")
    parser.add_argument("--config", metavar="CONFIG", help="settings: a JSON file")
    parser.add_argument(
        "--measure_only", action="store_true", help="write the table and the report, no shards"
    )
    parser.add_argument(
        "--engine",
        choices=("pool", "beam"),
        default="pool",
        help="processes of this machine (default), or Apache Beam",
    )
    parser.add_argument(
        "--beam_options",
        default="",
        metavar="OPTIONS",
        help='of --engine=beam, for example "--runner=DataflowRunner --project=P --region=R"',
    )
    parser.add_argument(
        "--workers", type=parsing.positive, metavar="N", help="processes (default: one a core)"
    )
    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    check_installed()
    outputs.check_folder(options.out, "--out")
    return _curate(options, _settings(options.config, overrides))


def check_installed() -> None:
    """Raises ConfigError where the extra `curation` is missing."""
    import importlib.util

    from vdm_jax.config import ConfigError

    for module in ("cv2", "pyarrow", "scenedetect"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f'{module} is missing: pip install "vdm_jax[curation]"')


def _settings(file: str | None, overrides: dict[str, str]):
    """The settings of a file with overrides. Raises ConfigError and DataError."""
    import json

    from ml_collections import ConfigDict

    from vdm_jax import config as config_lib
    from vdm_jax.data import text_files
    from vdm_jax.data.curation.settings import Settings
    from vdm_jax.data.source import DataError

    values = {}
    if file is not None:
        try:
            values = json.loads(text_files.read_text(file))
        except (OSError, ValueError) as error:
            raise DataError(f"--config={file}: cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"--config={file}: holds no JSON object")
    settings = ConfigDict(Settings.from_dict(values).to_dict())
    for field, text in overrides.items():
        section, _, name = field.partition(".")
        if section == "keep" and name:  # scores of a user's own scorer have no default
            settings.keep[name] = text
        else:
            config_lib.override(settings, field, text)
    return Settings.from_dict(settings.to_dict())


def _listed() -> str:
    from vdm_jax.data.curation.settings import Settings

    return "\n".join(
        f"--config.{section}.{name}={value}"
        for section, fields in Settings().to_dict().items()
        for name, value in fields.items()
    )


def _curate(options, settings) -> int:
    import os
    import shlex

    from vdm_jax.data.curation import curate, engine

    workers = options.workers or len(os.sched_getaffinity(0))
    if options.engine == "beam":
        from vdm_jax.data.curation import beam

        pool = beam.in_pipeline(workers, shlex.split(options.beam_options))
    else:
        pool = engine.in_pool(workers)
    work = engine.Work(videos=options.videos, out=options.out, settings=settings)
    results = curate.run(work, pool, shards=not options.measure_only, progress=_progress)
    print(
        f"{results.table}: {results.clips} clips of {results.films} films, "
        f"{results.kept} kept ({results.hours_kept:.2f} of {results.hours:.2f} hours)"
    )
    for name, count in results.reasons.items():
        print(f"  {count} clips dropped for {name}")
    if results.named:
        print(
            f"warning: {results.named} films have no captions; their clips are captioned by names "
            "of files and folders"
        )
    print(results.report)
    if not options.measure_only:
        print(f"{results.shards_folder}: {results.shards} shards; data.name = 'video_shards'")
    if results.failed:
        print(
            f"warning: {results.failed} films could not be used; {results.table} says why",
            file=sys.stderr,
        )
        return SOME_FAILED
    return 0


def _progress(stage: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{stage} {done} of {total}", end=end, flush=True)
