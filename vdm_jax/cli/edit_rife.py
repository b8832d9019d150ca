"""`vdm edit interpolate --method=rife`: new frames by optical flow, without a video model."""

from vdm_jax.cli import common, edit_files, edit_inputs, outputs, progress

_FPS = 8.0  # of an input without a frame rate


def check(parser, options) -> None:
    """Ends with an error where flags do not fit the method."""
    if options.job != "interpolate":
        parser.error(f"--method=rife has no meaning for {options.job}, only for interpolate")
    given = [name for name in ("model", "weight", *common.SAMPLER_FLAGS) if getattr(options, name)]
    if given:
        parser.error(f"--{given[0]} has no meaning for --method=rife, which needs no model")
    common.refuse_mesh(parser, options, "--method=rife")
    if not options.input:
        parser.error("--method=rife needs --input, the video that gets more frames")


def run(options) -> int:
    """The job. Raises FileNotFoundError, ValueError, fetch.WeightsUnavailable."""
    common.setup(options.device)
    out = outputs.check_folder(options.out or "edited", "--out")

    import numpy as np

    from vdm_jax.pipelines import between
    from vdm_jax.weights import rife

    videos, fps = edit_inputs.whole(options.input)
    prompts = edit_inputs.one_each(options.prompt or [""], len(videos))
    factor, fps = options.factor or 2, fps or _FPS
    loaded = rife.load()
    given = np.stack(videos)

    def track(pairs):
        return progress.track(pairs, options.job)

    made = between.interpolate(loaded, given, factor=factor, track=track)
    outputs.save_videos(out / "given.npz", given, prompts, fps)
    attached = edit_files.attached(options)
    outputs.write_samples(out, made, prompts, fps * factor, attached=attached)
    outputs.write_given(out, given, max(given.shape[2:4]), fps)
    return 0
