"""Prepares a data set on disk; does nothing where that is done already.

    python -m launch.prepare_data --data=moving_shapes --config=16x16x8 --data_dir=data

moving_shapes is rendered here, in seconds to minutes by size. Its configurations are named by
height, width and frames: 16, 32 or 64 pixels, 8, 16 or 32 frames, for example 64x64x16, and with
two shapes 64x64x16_two. The other TFDS data sets (ucf101, moving_mnist, bair_robot_pushing_small,
robonet, starcraft_video, davis) are downloaded from where their authors keep them. Folders of
video files need no preparation (data.name = "video_folder").
"""

import time

from vdm_jax.cli import common


def main(arguments: list[str]) -> int:
    parser = common.parser("python -m launch.prepare_data", __doc__)
    parser.add_argument(
        "--data", default="moving_shapes", metavar="NAME", help="data set (default moving_shapes)"
    )
    parser.add_argument(
        "--config", default="", metavar="NAME", help="its configuration (default: its first)"
    )
    parser.add_argument(
        "--data_dir", default="data", metavar="DIR", help="where data sets are (default data/)"
    )
    options = parser.parse_args(arguments)

    from vdm_jax.data import tfds_source

    if options.data == "video_folder":
        print("video_folder needs no preparation: set data.data_dir to the folder")
        return 0
    started = time.monotonic()
    builder = tfds_source.make_builder(options.data, options.config, options.data_dir)
    done_already = bool(builder.info.splits)
    if not done_already:
        size = builder.info.download_size  # 0 where it is not known, or nothing is downloaded
        download = f" ({size} to download)" if size else ""
        print(f"preparing {builder.info.full_name} in {options.data_dir}{download}", flush=True)
    tfds_source.prepare(builder)
    splits = ", ".join(f"{name} {info.num_examples}" for name, info in builder.info.splits.items())
    seconds = "was there" if done_already else f"took {time.monotonic() - started:.0f} s"
    print(f"{builder.data_path}: {splits} clips ({seconds})")
    return 0
