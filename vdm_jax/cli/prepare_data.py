"""Prepares a data set on disk; does nothing where that is done already.

    vdm data prepare --data=moving_shapes/16x16x8 --data_dir=data
    vdm data prepare --data=scenes
    vdm data prepare --config=vdm/moving_shapes

The third prepares the data set that a configuration trains on.

moving_shapes is rendered here, in seconds to minutes by size. Its variants are named by height,
width and frames: 16, 32 or 64 pixels, 8, 16 or 32 frames, for example 64x64x16, and with two shapes
64x64x16_two. scenes is rendered too, in one to two minutes: 64x64x16, and with two objects
64x64x16_two; 256x256x16 is for super-resolution, 64x64x65 for frame interpolation. The other TFDS
data sets (ucf101, moving_mnist, bair_robot_pushing_small, robonet, starcraft_video, davis) are
downloaded from where their authors keep them. Folders of video files need no preparation (data.name
= "video_folder").
"""

import time

from vdm_jax.cli import outputs, parsing


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm data prepare", __doc__)
    parser.add_argument(
        "--data",
        metavar="NAME[/VARIANT]",
        help="a data set (default: moving_shapes), and which variant of it (default: its first)",
    )
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where data sets are kept (default: data)"
    )
    parser.add_argument(
        "--config", metavar="CONFIG", help="instead: the data set of this configuration"
    )

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    if options.config:
        if options.data or options.data_dir:
            parser.error(
                "--config names the data: leave out --data, and set --config.data.data_dir"
            )
        data = config_lib.load_config(options.config, overrides).data
        name, variant, folder = data.name, data.config, data.data_dir
    else:
        if overrides:
            parser.error("--config.FIELD=VALUE needs --config")
        name, _, variant = (options.data or "moving_shapes").partition("/")
        folder = options.data_dir or "data"
    if name in ("video_folder", "video_shards"):
        print(f"{name} needs no preparation: set data.data_dir to the folder")
        return 0

    from vdm_jax.data import tfds_source

    started = time.monotonic()
    builder = tfds_source.make_builder(name, variant, folder)
    done_already = bool(builder.info.splits)
    if not done_already:
        outputs.check_folder(folder, "data.data_dir" if options.config else "--data_dir")
        size = builder.info.download_size  # 0 where it is unknown, or nothing is downloaded
        download = f" ({size} to download)" if size else ""
        print(f"preparing {builder.info.full_name} in {folder}{download}", flush=True)
    tfds_source.prepare(builder)
    splits = ", ".join(f"{name} {info.num_examples}" for name, info in builder.info.splits.items())
    seconds = "was there" if done_already else f"took {time.monotonic() - started:.0f} s"
    print(f"{builder.data_path}: {splits} clips ({seconds})")
    return 0


def render_missing(data) -> None:
    """Renders an embedded data set where a run needs it and it is missing, and says so.

    data: the section `data` of a configuration; other data sets are left alone. Several processes
    render nothing: their disks may be shared or not, so the data must be there before.
    """
    import jax

    from vdm_jax.data import tfds_source

    if not tfds_source.is_rendered(data.name) or jax.process_count() > 1:
        return
    builder = tfds_source.make_builder(data.name, data.config, data.data_dir)
    if not builder.info.splits:
        outputs.check_folder(data.data_dir, "data.data_dir")
        print(f"{builder.info.full_name} is not in {data.data_dir}/: rendering it", flush=True)
        tfds_source.prepare(builder)
