"""`vdm edit restructure`: a video with the structure of another and other content (Gen-1)."""

import hashlib
from typing import TYPE_CHECKING

from vdm_jax.cli import common, edit_depth, edit_files, edit_inputs, outputs, progress
from vdm_jax.cli import prompts as prompts_lib

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import Model

FLAGS = ("image", "structure", "temporal", "prior")


def add_arguments(parser) -> None:
    """The flags of the job."""
    job = parser.add_argument_group("for restructure")
    job.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="the content, in the place of --prompt: one picture, or one for each video",
    )
    job.add_argument(
        "--structure",
        type=int,
        metavar="N",
        help="0 to 7: how often the depth is blurred and shrunk; more is freer (default 0)",
    )
    job.add_argument(
        "--temporal",
        type=float,
        metavar="X",
        help="scale of the guidance over time: above 1 frames are more alike (default: the "
        "model's own)",
    )
    job.add_argument(
        "--prior",
        metavar="MODEL",
        help="what makes an image's embedding of --prompt (default: the model's own, "
        "config.model.prior)",
    )


def check(parser, options) -> None:
    """Ends with an error where flags are missing or do not fit each other."""
    if options.job != "restructure":
        return
    for name in ("input", "model"):
        if not getattr(options, name):
            parser.error(f"restructure needs --{name}")
    common.refuse_mesh(parser, options, "restructure")
    if bool(options.prompt) == bool(options.image):
        parser.error("restructure needs either --prompt or --image, what the result shows")
    if options.negative is not None:
        parser.error("--negative has no meaning for restructure, whose content is an embedding")
    if options.image and options.prior:
        parser.error("--prior has no meaning with --image, which is embedded as it is")


def run(options) -> int:
    """The job. Raises what reading its inputs raises, before anything is compiled."""
    prompts_lib.check(options.prompt, "--prompt")
    common.setup(options.device)
    out = outputs.check_folder(options.out or "edited", "--out")

    import jax
    import numpy as np

    from vdm_jax.cli import resuming
    from vdm_jax.pipelines import restructuring

    model = _sized(options, common.load_model(options))
    no_size = dict.fromkeys(("num_frames", "height", "width"))
    sampler = model.sampler(
        **{**common.sampler_changes(options), **no_size},
        method="replacement",
        temporal=options.temporal,
        structure=None if options.structure is None else float(options.structure),
    )
    videos, fps = _videos(options, model)
    mask = _mask(options, videos)
    key, prior_key = jax.random.split(jax.random.key(options.seed))
    images = _images(options, len(videos))
    texts = [] if images is not None else edit_inputs.one_each(options.prompt, len(videos))
    prior = None if images is not None else _prior(options, model, texts)
    fallback = model.config.model.depth
    depth = edit_depth.read_or_estimate(options.depth, videos, fallback)
    content = images
    if prior is not None:
        content = restructuring.embeddings(prior, model.stage, prior_key, texts)
    named = texts or [f"image {number}" for number in range(1, len(videos) + 1)]
    identity = _identity(options, (videos, depth, content, mask))
    parts = outputs.Parts(out, identity, len(videos))
    if parts.done:
        print(f"{parts.done} clips are in {out / outputs.PARTS}: going on behind them")
    kept = resuming.KeptSampler.of(sampler, parts)
    outputs.save_videos(out / "given.npz", videos, named, fps)
    outputs.save_videos(out / "depth.npz", np.repeat(depth, 3, -1), named, fps)
    with progress.report(options.job) as report:
        made = restructuring.restructure(
            kept,
            model.params,
            key,
            depth,
            content,
            videos=None if mask is None else videos,
            mask=mask,
            progress=report,
        )
    outputs.write_samples(out, made, named, fps, parts, edit_files.attached(options))
    outputs.write_given(out, videos, videos.shape[2] * 4, fps)
    return 0


def _sized(options, model: "Model") -> "Model":
    """The model in the size of the flags. Raises ValueError for another kind of model, and for more
    frames than have a learned encoding."""
    from vdm_jax.pipelines import restructuring

    restructuring.check(model.stage)
    frames, height, width, _ = model.stage.video_shape
    most = model.config.temporal.max_frames
    if (options.num_frames or 0) > most:
        raise ValueError(
            f"--num_frames={options.num_frames}: at most {most}, the frames that this model has "
            "learned encodings of"
        )
    wanted = {
        "data.num_frames": options.num_frames or frames,
        "data.image_size": options.height or height,
        "data.image_width": options.width or width,
    }
    step = model.stage.space.multiple * model.stage.network.multiple
    if wanted["data.image_size"] % step or wanted["data.image_width"] % step:
        raise ValueError(f"--height, --width: must be multiples of {step}")
    given = options.num_frames or options.height or options.width
    return model.changed(wanted) if given else model


def _videos(options, model: "Model") -> "tuple[np.ndarray, float]":
    """The first frames of the inputs, as many as the model's clips have, and their frame rate.
    Raises ValueError for shorter ones."""
    import numpy as np

    frames, *size = model.stage.video_shape[:3]
    videos, fps = edit_inputs.first_frames("input", options.input, tuple(size), frames)
    if len(videos[0]) < frames:
        raise ValueError(
            f"--input: has {len(videos[0])} frames, and {frames} are sampled: give a longer video, "
            f"or --num_frames={len(videos[0])}"
        )
    return np.stack(videos), fps or model.fps


def _mask(options, videos: "np.ndarray") -> "np.ndarray | None":
    """bool `f h w`, or `1 h w` of a picture: where the result is new; None = everywhere."""
    if not options.mask:
        return None
    frames, *size = videos.shape[1:4]
    found, _ = edit_inputs.first_frames("mask", [options.mask], tuple(size), frames)
    if len(found[0]) not in (1, frames):
        raise ValueError(
            f"--mask={options.mask}: has {len(found[0])} frames, the result {frames}: must be as "
            "many, or a picture"
        )
    mask = found[0].mean(-1) > 127.5
    if mask.all() or not mask.any():
        raise ValueError(
            f"--mask={options.mask}: is {'bright' if mask.all() else 'dark'} everywhere; it must "
            "be bright where the result is new, and dark elsewhere"
        )
    return mask


def _images(options, count: int) -> "np.ndarray | None":
    """The pictures of --image, one a video; None without. Raises ValueError where they are neither
    one nor as many, or of several sizes."""
    import numpy as np

    if not options.image:
        return None
    found, _ = edit_inputs.whole(options.image, "image")
    pictures = np.stack([video[0] for video in found])
    if len(pictures) not in (1, count):
        raise ValueError(
            f"--image: {len(pictures)} pictures, {count} videos: must be one, or as many"
        )
    return np.broadcast_to(pictures, (count, *pictures.shape[1:]))


def _prior(options, model: "Model", texts: list[str]) -> "Model":
    """What embeds the prompts. Raises ValueError where there is none, and for a prompt that it does
    not take."""
    from vdm_jax.pipelines import model as pretrained

    source = options.prior or model.config.model.prior
    if not source:
        raise ValueError(
            "--prompt: this model's content is an image's embedding, and it names no prior that "
            "makes one of a text; give --prior=MODEL, or --image=FILE"
        )
    prior = pretrained.load(source, offload=options.offload)
    prior.stage.check_prompts(texts)
    return prior


def _identity(options, arrays) -> dict[str, object]:
    """What the clips of a job depend on."""
    from vdm_jax.pipelines import model as pretrained

    names = (*common.SAMPLER_FLAGS, "job", "seed", "structure", "temporal")
    flags = {name: getattr(options, name) for name in names if name != "batch_size"}
    given = [
        None if array is None else [array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
        for array in arrays
    ]
    return {**flags, "model": pretrained.digest(options.model), "given": given}
