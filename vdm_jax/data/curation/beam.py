"""Films measured by Apache Beam, for more films than one machine can take (extra `beam`).

Only where the work is done differs from the pool: every piece of work is the same call, and writes
the same records, whole, under the same names. So a runner may repeat a piece of work, as runners
do after a failure, and nothing is there twice. All workers have to see the folder of films and the
output under the same paths: a network file system, or a bucket that is mounted.
"""

import functools
from collections.abc import Iterator, Sequence

from vdm_jax.data.curation import engine
from vdm_jax.data.curation.engine import Call, Run, Work
from vdm_jax.data.source import DataError


def in_pipeline(workers: int, options: Sequence[str] = ()) -> Run:
    """Runs as a pipeline.

    workers: processes of this machine, where `options` name no other runner. options: Beam's, such
    as `--runner=DataflowRunner`. A film that ends the process that reads it ends the pipeline,
    unless the runner goes on without it.

    Raises DataError where Beam is not installed.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(
            '--engine=beam: Apache Beam is missing; pip install "vdm_jax[beam]"'
        ) from error
    local = (
        "--runner=DirectRunner",
        "--direct_running_mode=multi_processing",
        f"--direct_num_workers={workers}",
    )
    chosen = (
        list(options)
        if any(one.startswith("--runner") for one in options)
        else [
            *local,
            *options,
        ]
    )

    def run(function: Call, died: Call, work: Work, keys: Sequence[str]) -> Iterator[str]:
        if not keys:
            return
        with apache_beam.Pipeline(options=PipelineOptions(chosen)) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(list(keys))
                | apache_beam.Reshuffle()
                | apache_beam.Map(functools.partial(_call, function, work))
            )
        yield from keys

    return run


def _call(function: Call, work: Work, key: str) -> str:
    engine.use_one_thread()
    function(work, key)
    return key
