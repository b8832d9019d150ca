"""Embeds the captions of a data set by the frozen text encoder of a configuration.

    vdm data embed --config=CONFIG [--config.FIELD=VALUE ...]

The embeddings of every distinct caption of every split are written to
DATA_DIR/text_embeddings/ENCODER-IDENTITY/, in half precision. Training reads them there and needs
no encoder. Embeddings that are there already are kept, so the command can be stopped at any time
and run again. Many processes can run it at once, each for its share: --shard=0/8 to --shard=7/8,
under Slurm --shard=$SLURM_PROCID/$SLURM_NTASKS.
"""

import argparse
import time
from pathlib import Path

from vdm_jax.cli import common, outputs, parsing


def main(arguments: list[str]) -> int:
    parser = _parser()

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    config = config_lib.load_config(options.config, overrides)
    if config.text.encoder in ("none", "words"):
        raise config_lib.ConfigError(
            f"text.encoder = {config.text.encoder!r}: is not a frozen text encoder, there is "
            "nothing to embed"
        )
    common.setup(config.device)

    from rich.progress import Progress

    from vdm_jax.data import pipeline, text_embeddings
    from vdm_jax.parallel import mesh, sharding
    from vdm_jax.stage import frozen_text

    encoder = frozen_text.make_frozen_text_encoder(config.text.to_dict(), own=True)
    wanted = text_embeddings.with_null(pipeline.all_captions(config), encoder.null_text)
    captions = text_embeddings.share(wanted, *options.shard)
    encoder.batch_size = options.batch_size
    if options.mesh:
        encoder.place(sharding.make_plan(encoder, mesh.parse_mesh(options.mesh)))
    folder = text_embeddings.folder_of(config.data.data_dir, encoder)
    wanted = _missing(folder, captions)
    part, parts = options.shard
    share = f" (share {part} of {parts})" if parts > 1 else ""
    print(
        f"{len(captions)} captions{share}, {len(wanted)} to embed by {encoder.name}, "
        f"{encoder.max_length} tokens of {encoder.embedding_width}",
        flush=True,
    )
    if wanted and (cut := encoder.cut(wanted)):
        print(
            f"{cut} of them are longer than text.max_length = {encoder.max_length} tokens and are "
            "cut",
            flush=True,
        )
    started = time.monotonic()
    with Progress(*_columns(), transient=True) as progress:
        task = progress.add_task("embedding", total=len(wanted))
        for done in text_embeddings.write(
            folder, encoder, wanted, per_shard=options.captions_per_file
        ):
            progress.advance(task, done)
    seconds = time.monotonic() - started
    rate = f", {len(wanted) / seconds:.1f} captions a second" if wanted else ""
    print(f"{folder}: complete{share}, in {seconds:.0f} s{rate}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parsing.parser("vdm data embed", __doc__)
    parser.add_argument(
        "--config",
        required=True,
        metavar="CONFIG",
        help="with a frozen text.encoder: a name or a file",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="embed the share of process I of N, 0 to N - 1 (default 0/1: all)",
    )
    parser.add_argument(
        "--batch_size",
        type=parsing.positive,
        default=32,
        metavar="N",
        help="captions embedded at once (default 32)",
    )
    parser.add_argument(
        "--captions_per_file",
        type=parsing.positive,
        default=1024,
        metavar="N",
        help="what is lost at most when the command is stopped (default 1024)",
    )
    parser.add_argument(
        "--mesh",
        default="",
        metavar="AXES",
        help="lay the encoder over this process's devices, for example tensor=4 or data=2,fsdp=2 "
        "(default: one device)",
    )
    return parser


def _missing(folder: Path, captions: list[str]) -> list[str]:
    """The captions that are to be embedded; where there are any, the folder can be written to."""
    from vdm_jax.data import text_embeddings

    wanted = text_embeddings.missing(folder, captions)
    if wanted:
        outputs.check_folder(folder, "data.data_dir, embeddings")
    return wanted


def _columns() -> tuple:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f}/s")

    description = TextColumn("{task.description}")
    return description, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(part), int(parts)
