"""Writes a picture of a prepared data set: some clips as training reads them, with their captions.

    vdm data show --data=scenes --data_dir=data --out=scenes.png
    vdm data show --data=scenes/64x64x16_two:held_out --extras=mask,depth,edges --out=scenes.png
    vdm data show --data=scenes --num_frames=1 --out=frames.png
    vdm data show --config=CONFIG --out=clips.png

--data and --data_dir name a data set as for vdm data prepare, with :SPLIT behind it (default:
train). Clips are evenly chosen from the first to the last. Below a clip are the arrays that
--extras names.
"""

import functools

from vdm_jax.cli import outputs, parsing

_FRAMES, _SIZE = 16, 64  # of data sets whose videos differ in length or size


def main(arguments: list[str]) -> int:
    from vdm_jax import config as config_lib

    parser = parsing.parser("vdm data show", __doc__)
    parser.add_argument("--data", metavar="NAME[/VARIANT][:SPLIT]", help="a data set")
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where data sets are kept (default: data)"
    )
    parser.add_argument("--config", metavar="CONFIG", help="instead: the data of a configuration")
    parser.add_argument("--out", required=True, metavar="FILE", help="the picture, a PNG")
    number = functools.partial(parser.add_argument, type=parsing.positive, metavar="N")
    number("--num_clips", default=16, help="default 16")
    number("--num_frames", help="of a clip, with --data (default: the data set's)")
    number("--image_size", help="in pixels, with --data (default: the data set's)")
    parser.add_argument(
        "--extras",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAMES",
        help="further arrays, with --data: mask, depth and edges of scenes",
    )
    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    if bool(options.config) == bool(options.data):
        parser.error("give --data or --config")
    if overrides and not options.config:
        parser.error("--config.FIELD=VALUE needs --config")
    if options.config:
        if options.data_dir or options.num_frames or options.image_size or options.extras:
            parser.error("--config says what is read: change it with --config.data.FIELD=VALUE")
        data = config_lib.load_config(options.config, overrides).data
    else:
        data = _section(options)
    outputs.check_file(options.out, "--out")
    summary = _write(data, options.num_clips, options.out)
    print(f"{options.out}: {summary}")
    return 0


def _section(options):
    """The section `data` of a configuration that reads what the flags name."""
    from ml_collections import ConfigDict

    from vdm_jax.data import tfds_source

    name, _, split = options.data.partition(":")
    name, _, variant = name.partition("/")
    frames, size = options.num_frames, options.image_size
    if name in tfds_source.DATASETS:
        builder = tfds_source.make_builder(name, variant, options.data_dir or "data")
        stored = tfds_source.video_shape(name, builder)
        frames, size = frames or stored[0], size or stored[1]
    return ConfigDict(
        {
            "name": name,
            "config": variant,
            "data_dir": options.data_dir or "data",
            "split": split or "train",
            "num_frames": frames or _FRAMES,
            "image_size": size or _SIZE,
            "frame_stride": 1,
            "fps": 0.0,
            "extras": options.extras,
        }
    )


def _write(data, num_clips: int, out: str) -> str:
    """Writes the contact sheet of a source and returns the source's summary."""
    import numpy as np

    from vdm_jax.data import pipeline, video_io

    source = pipeline.make_source(data)
    chosen = np.unique(np.linspace(0, len(source) - 1, num_clips).round().astype(int))
    videos, captions = [], []
    for index in chosen:
        # A clip of one frame is a random one: in the middle of the clips all would look alike.
        clip = source.read(int(index), np.random.default_rng(int(index)))
        videos.append(clip["video"])
        captions.append(clip["caption"])
        for name in source.extras:
            videos.append(_visible(clip[name]))
            captions.append(name)
    video_io.contact_sheet(out, np.stack(videos), captions, max_clips=len(videos))
    return source.summary()


def _visible(array):
    """An array of a clip, uint8 [f, h, w, c], as grey pixels from black to white."""
    import numpy as np

    scaled = array.astype(np.float32) * (255 / max(int(array.max()), 1))
    return np.repeat(scaled[..., :1].astype(np.uint8), 3, axis=-1)
