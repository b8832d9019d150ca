"""Writes a folder of captioned videos as shards: few large files instead of many small ones.

    vdm data shard --data_dir=FOLDER --out=DIR
    vdm data shard --data_dir=FOLDER --out=gs://BUCKET/DIR

The videos stay as they are encoded. Captions, and what is known of each file, lie beside them, so
that a run starts without opening every file. Shards that are there are kept: the command can be
stopped at any time and run again. A configuration reads them with data.name = "video_shards" and
data.data_dir = DIR.

gs:// needs the package gcsfs. Reading needs a local path: a disk, or a bucket that is mounted.
"""

from vdm_jax.cli import parsing


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm data shard", __doc__)
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="the videos")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the shards go")
    parser.add_argument(
        "--shard_mb",
        type=parsing.positive,
        default=256,
        metavar="N",
        help="size of a shard in MB (default 256)",
    )
    options = parser.parse_args(arguments)

    from vdm_jax.data import video_shards

    count = 0
    for done, count in video_shards.write(
        options.data_dir, options.out, options.shard_mb * 1_000_000
    ):
        print(f"\r{done} of {count} shards", end="", flush=True)
    print(f"\n{options.out}: {count} shards; read them with data.name = 'video_shards'")
    return 0
