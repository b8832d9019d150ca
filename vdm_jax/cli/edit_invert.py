"""`vdm edit invert`: the noise that a model makes a video of, and what other prompts make of it."""

import hashlib
from typing import TYPE_CHECKING

from vdm_jax.cli import common, edit_files, edit_inputs, outputs, progress
from vdm_jax.cli import prompts as prompts_lib

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.pipelines import Model
    from vdm_jax.stage.sampler import Sampler

FLAGS = ("inversion",)
DEFAULT = "fixed_point"
_Z_PARTS = "z_parts"


def add_arguments(parser) -> None:
    """The flags of the job."""
    job = parser.add_argument_group("for invert")
    job.add_argument(
        "--inversion",
        metavar="NAME",
        help="how a step of the sampler is inverted: first or second, the order; fixed_point "
        "(default), the step's own inverse, at 11 times the evaluations of first",
    )


def check(parser, options) -> None:
    """Ends with an error where flags are missing or do not fit each other."""
    if options.job != "invert":
        return
    common.refuse_mesh(parser, options, "invert")
    if not options.input:
        parser.error("invert needs --input, the video whose noise is sought")
    for name in ("guidance", "negative", "oscillate_after"):
        if getattr(options, name) is not None and not options.then:
            parser.error(
                f"--{name} has no meaning for invert without --then: the inversion is unguided"
            )


def run(options) -> int:
    """The job. Raises what reading its inputs raises, before anything is compiled."""
    prompts_lib.check(options.then, "--then")
    prompts_lib.check([options.negative or ""], "--negative")
    common.setup(options.device, options)
    out = outputs.check_folder(options.out or "edited", "--out")

    import jax
    import numpy as np

    from vdm_jax.cli import resuming
    from vdm_jax.diffusion import inversion as inversions
    from vdm_jax.evaluation import fidelity
    from vdm_jax.pipelines import inversion

    method = inversions.make_inversion(options.inversion or DEFAULT)
    model = common.load_model(options)
    plain, edited = _samplers(options, model)
    found = edit_inputs.read(options, model, plain)
    given, prompts = _first_clip(found.videos, plain.video_shape[0]), found.prompts
    model.stage.check_prompts([*prompts, *options.then])
    for note in found.notes:
        print(note)
    identity, count = _identity(options, found), len(given) * (1 + len(options.then))
    z_parts = outputs.Parts(out, identity, len(given), _Z_PARTS)
    parts = outputs.Parts(out, identity, count)
    if parts.done:
        print(f"{parts.done} clips are in {out / outputs.PARTS}: going on behind them")
    outputs.save_videos(out / "given.npz", given, prompts, found.rate)
    key = jax.random.key(options.seed)

    if (done := z_parts.done) < len(given):
        rest = inversion.invert(
            plain, model.params, key, given[done:], prompts[done:], method, first=done
        )
        for z in progress.track(rest, options.job, _batches(plain, len(given) - done)):
            z_parts.add(z)
    z = np.asarray(z_parts.videos())
    texts = [*prompts, *(text for text in options.then for _ in prompts)]
    made = []
    for number, sampler in enumerate([plain] + [edited] * len(options.then)):
        kept = resuming.KeptSampler.of(sampler, parts)
        part = texts[number * len(z) : (number + 1) * len(z)]
        stream = kept.stream(model.params, key, part, start=z)
        name = "edit" if number else "reconstruct"
        made += progress.track(stream, name, _batches(sampler, len(z)))
    videos = np.concatenate(made)
    figures = fidelity.psnr(videos[: len(z)], given).clips
    arrays = {"z": z, "psnr": figures, "prompts": np.array(prompts, dtype=str)}
    print(outputs.save_arrays(out / "z.npz", arrays))
    for prompt, figure in zip(prompts, figures, strict=True):
        print(f"reconstruction of {prompt or 'the video'!r}: PSNR {figure:.2f} dB")
    attached = edit_files.attached(options, copies=1 + len(options.then))
    outputs.write_samples(out, videos, texts, found.fps, parts, attached)
    z_parts.remove()
    outputs.write_given(out, given, given.shape[2] * 4, found.rate)
    return 0


def _samplers(options, model: "Model") -> "tuple[Sampler, Sampler]":
    """The sampler that is inverted, and the guided one of --then. Raises ValueError."""
    import dataclasses

    from vdm_jax.diffusion import inversion as inversions
    from vdm_jax.diffusion.samplers import DDIM

    changes = common.sampler_changes(options)
    edited = model.sampler(**changes)
    # Without --prompt the condition is null: a guidance scale of 0.
    with_text = model.stage.text_encoder is not None
    unguided = 0.0 if with_text and not options.prompt else 1.0
    plain = model.sampler(
        **{**changes, "guidance": unguided, "negative": None, "oscillate_after": 0}
    )
    chosen = options.sampler is not None or options.eta
    if not chosen and not inversions.is_invertible(plain.rule):
        plain, edited = (dataclasses.replace(part, rule=DDIM()) for part in (plain, edited))
    inversions.check_rule(plain.rule)
    return plain, edited


def _first_clip(videos: "np.ndarray", frames: int) -> "np.ndarray":
    """The first `frames` frames. Raises ValueError for a shorter video."""
    if videos.shape[1] < frames:
        raise ValueError(
            f"--input: the video has {videos.shape[1]} frames at the model's frame rate, and "
            f"{frames} are inverted: give a longer video, or --num_frames={videos.shape[1]}"
        )
    return videos[:, :frames]


def _batches(sampler: "Sampler", count: int) -> int:
    return -(-count // min(sampler.batch_size, count))


def _identity(options, found: edit_inputs.Inputs) -> dict[str, object]:
    """What z and the clips of a job depend on."""
    from vdm_jax.pipelines import model as pretrained

    names = (*common.SAMPLER_FLAGS, "job", "seed", "then")
    flags = {name: getattr(options, name) for name in names if name != "batch_size"}
    return {
        **flags,
        "inversion": options.inversion or DEFAULT,
        "model": pretrained.digest(options.model or pretrained.DEFAULT),
        "prompts": found.prompts,
        "null": not options.prompt,
        "given": [found.videos.shape, hashlib.sha256(found.videos.tobytes()).hexdigest()],
    }
