"""What `vdm evaluate` measures: samples of a model or a cascade, or videos, and references."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdm_jax.cli import common, progress

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from vdm_jax.evaluation.clips import Clips
    from vdm_jax.evaluation.prediction import Prediction
    from vdm_jax.stage.stage import Stage


_NAMED_ALREADY = ("sampler", "steps", "guidance", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a model or a cascade is sampled.

    Attributes:
      draw: (prompts, clips or None) to videos, uint8 `n f h w c`. clips: what the videos of the
        prompts refine, or go on from.
      stage: that is sampled; None for a cascade.
      data: the section `data` of its configuration; of a cascade that of the last stage.
      shape: (f, h, w) of a video.
      every: frames of the data's clips from one frame of a sample to the next.
      settings: of the sampler, for the protocol.
      method, weight: by which known frames guide sampling.
    """

    draw: Callable[..., "np.ndarray"]
    stage: "Stage | None"
    data: "ConfigDict"
    shape: tuple[int, int, int]
    every: int
    settings: dict[str, Any]
    method: str = ""
    weight: float | None = None

    @property
    def stride(self) -> int:
        """Frames of the stored videos from one frame of a sample to the next."""
        return self.data.frame_stride * self.every

    @property
    def refines(self) -> bool:
        """Whether a video is the refined version of another, which the references give."""
        from vdm_jax.stage.conditions.video import LowResVideo

        return self.stage is not None and self.stage.find(LowResVideo) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured, as `comparison.Evaluation` takes it."""

    samples: "Clips"
    reference: "Clips | None"
    subject: dict[str, Any]
    stride: int
    prediction: "Prediction | None" = None
    remarks: Sequence[str] = ()


def drawing(options) -> Drawing:
    """The model or the cascade of the flags, with its own sampler where the flags say nothing.

    Raises ValueError for flags that a cascade does not have, and what `pipelines.load` raises.
    """
    import jax

    from vdm_jax import pipelines
    from vdm_jax.stage.conditions.video import MaskedVideo

    model = common.load_any(options)
    changes = {k: v for k, v in common.sampler_changes(options).items() if v is not None}
    key = jax.random.key(options.seed)
    if isinstance(model, pipelines.CascadeModel):
        known = [name for name in ("known", "method", "weight") if getattr(options, name)]
        if changes or known:
            flags = ", ".join(f"--{name}" for name in [*changes, *known])
            raise ValueError(f"{flags}: a cascade is sampled as its stages' configurations say")
        config = model.last_config
        shape = tuple(config.stage.shape)
        return Drawing(
            draw=lambda prompts, _=None: model.sample(key, prompts=prompts),
            stage=None,
            data=config.data,
            shape=shape,
            every=max(1, config.data.get("num_frames", shape[0]) // shape[0]),
            settings={"sampler": "cascade"},
        )
    method = {}
    if options.known:
        # As vdm edit: a network that was trained with masks is given them.
        masks = model.stage.find(MaskedVideo) is not None and "low_res" not in options.known
        default = "trained" if masks else None
        method = {"method": options.method or default, "weight": options.weight}
    sampler = model.sampler(**method, **changes)
    view = model.stage.view
    strides = view.frame_strides or (view.data_shape[0] // view.shape[0],)
    return Drawing(
        draw=functools.partial(_drawn, options, sampler, model.params, key),
        stage=model.stage,
        data=model.config.data,
        shape=sampler.video_shape[:3],
        every=strides[0],
        settings={
            "sampler": sampler.rule_name,
            "steps": sampler.steps,
            "guidance": sampler.guidance_scale,
            # Whatever else a flag chose; how many samples are computed at once changes nothing.
            **{name: value for name, value in changes.items() if name not in _NAMED_ALREADY},
        },
        **(_method_of(sampler.method) if options.known else {}),
    )


def _method_of(method) -> dict[str, Any]:
    from vdm_jax.diffusion import conditional

    name = next(name for name, kind in conditional.METHODS.items() if kind is type(method))
    return {"method": name, "weight": getattr(method, "weight", None)}


def _drawn(options, sampler, params, key, prompts, clips=None):
    """The videos of the prompts, with a bar in the first process."""
    import jax
    import numpy as np

    from vdm_jax.evaluation import prediction
    from vdm_jax.pipelines import editing

    total = len(prompts)
    quiet = options.json or jax.process_index() != 0
    if options.known:
        # The prompts are one a sample, and a clip's samples have the clip's prompt.
        each = options.samples_per_clip
        known, texts = prediction.parse_known(options.known), prompts[::each]
        stream = editing.predict(sampler, params, key, clips, texts, each=each, **known)
    else:
        inputs = {} if clips is None else {"inputs": {"low_res": sampler.stage.coarse(clips)}}
        stream = sampler.stream(params, key, prompts, **inputs)
    batches = -(-total // min(sampler.batch_size, total))
    return np.concatenate(list(progress.track(stream, "sampling", batches, quiet=quiet)))


def given(options) -> Measured:
    """The clips of --samples and their references. Raises DataError, for metrics that compare clip
    by clip also where the names of the clips do not pair."""
    from vdm_jax.evaluation import clips, suite

    stride, fps = options.stride or 1, options.fps
    frames, height, width = clips.size_of(options.samples, stride, fps)
    cut = {
        "num_frames": options.num_frames or frames,
        "size": options.size or (height, width),
        "stride": stride,
        "fps": fps,
    }
    path = Path(options.samples)
    subject = {"model": path.name}
    count, seed = options.num_samples, options.seed
    by_name = any(suite.METRICS[name].paired for name in options.metrics)
    if by_name and options.num_references not in (None, count):
        raise ValueError("--num_references: metrics that compare clip by clip have one a sample")
    if by_name and Path(options.reference).exists():
        listings = (clips.open_path(name, **cut) for name in (path, options.reference))
        samples, reference, remarks = clips.paired(*listings, count, seed)
        return Measured(
            samples=samples, reference=reference, subject=subject, stride=stride, remarks=remarks
        )
    samples = clips.from_path(path, count=count, seed=seed, **cut)
    reference = None
    if options.reference:
        count = options.num_references or len(samples.videos)
        reference = _reference(options, options.reference, count, cut)
    # Clips of a data set have no names.
    if by_name and (not samples.captions or list(samples.captions) != list(reference.captions)):
        raise ValueError(
            f"--reference={options.reference}: its clips pair with samples of the same captions in "
            "the same order only, and these have others; give the references as a directory or an "
            "archive"
        )
    return Measured(samples=samples, reference=reference, subject=subject, stride=stride)


def sampled(options) -> Measured:
    """Samples of the model and their references."""
    from vdm_jax.evaluation import clips

    found = drawing(options)
    _check_shape(options, found)
    each = options.samples_per_clip
    count = options.num_references or max(1, options.num_samples // each)
    reference = references(options, found, options.reference, count)
    if options.protocol and len(reference.videos) != count:
        raise ValueError(
            f"--protocol={options.protocol} is of {count} test videos, but {len(reference.videos)} "
            "were found. Use --known, --num_references and --samples_per_clip for fewer"
        )
    continued = reference
    if options.known and options.known_from:
        continued = references(options, found, options.known_from, options.num_samples // each)
    total = options.num_samples
    if options.known:
        total = each * len(continued.videos)
    rows = [i // each if options.known else i % len(continued.videos) for i in range(total)]
    prompts = _prompts(found, continued, rows)
    needed = None
    if options.known:
        needed = continued.videos
    elif found.refines:
        needed = continued.videos[rows]
    samples = clips.Clips(
        videos=found.draw(prompts, needed),
        captions=prompts,
        description={"data": "samples", "split": "", "resize": clips.UNCHANGED},
    )
    subject = {"model": options.model or "moving_shapes", **found.settings}
    return Measured(
        samples=samples,
        reference=reference,
        subject=subject,
        stride=found.stride,
        prediction=_prediction(options, found, continued),
    )


def _check_shape(options, found: Drawing) -> None:
    """Raises ValueError where the model does not make what the paper's protocol measures."""
    from vdm_jax.evaluation import prediction

    if not options.protocol:
        return
    paper = prediction.PAPER_PROTOCOLS[options.protocol]
    if found.shape != (paper.frames, *paper.size):
        height, width = paper.size
        raise ValueError(
            f"--protocol={options.protocol} is of {paper.frames} frames of {height} x {width}, but "
            f"the model makes {list(found.shape)}. Use --known=frames:{paper.known} and "
            f"--samples_per_clip={paper.each} for other models"
        )


def _prediction(options, found: Drawing, continued: "Clips") -> "Prediction | None":
    from vdm_jax.evaluation import prediction

    if not options.known:
        return None
    return prediction.Prediction(
        **prediction.parse_known(options.known),
        method=found.method,
        weight=found.weight,
        each=options.samples_per_clip,
        of_references=not options.known_from,
        source=" ".join(filter(None, (continued.description[k] for k in ("data", "split")))),
        over=options.over,
    )


def _prompts(found: Drawing, clips: "Clips", rows: Sequence[int]) -> list[str]:
    """The prompt of each sample: the caption or the class of its clip, "" for models of neither.

    Where nothing else of the clip is used, clips without a caption are passed over.
    """
    from vdm_jax.stage.conditions.prompt import Label, Prompt

    condition = None
    if found.stage is not None:
        condition = next((c for c in found.stage.conditions if isinstance(c, Prompt)), None)
        if condition is None:
            return [""] * len(rows)
    texts = [str(label) for label in clips.labels] if isinstance(condition, Label) else []
    texts = texts or list(clips.captions) or [""] * len(clips.videos)
    if not all(texts) and any(texts) and not found.refines and not found.method:
        texts = [text for text in texts if text]
        return [texts[i % len(texts)] for i in range(len(rows))]
    return [texts[row] for row in rows]


def references(options, found: Drawing, spec: str | None, count: int) -> "Clips":
    """Clips as the model makes them, of `spec` or of the model's own data set."""
    from vdm_jax.data import tfds_source
    from vdm_jax.evaluation import clips

    data, (frames, height, width) = found.data, found.shape
    if spec:
        cut = {
            "num_frames": frames,
            "size": (height, width),
            "stride": found.stride,
            "fps": float(data.get("fps", 0.0)),
        }
        return _reference(options, spec, count, cut)
    if not tfds_source.is_rendered(data.name):
        section = data.copy_and_resolve_references()
        with section.unlocked():
            section.num_frames, section.frame_stride = frames, found.stride
            section.image_size, section.image_width = height, width
        return clips.from_data(section, count, options.seed)
    return _coarsened(clips.from_data(data, count, options.seed), found)


def _coarsened(clips: "Clips", found: Drawing) -> "Clips":
    """Rendered clips in the shape that the stage makes, as in training."""
    import numpy as np

    from vdm_jax.stage import resize
    from vdm_jax.stage.space import from_uint8, to_uint8

    taken = clips.videos[:, :: found.every][:, : found.shape[0]]
    shape = (taken.shape[1], *found.shape[1:])
    if taken.shape[1:4] == shape and found.every == 1:
        return clips
    if any(a % b for a, b in zip(taken.shape[1:4], shape, strict=True)):
        raise ValueError(f"the data's clips are {list(taken.shape[1:4])}, samples {list(shape)}")
    means = to_uint8(resize.coarsen(from_uint8(taken), shape))
    description = {**clips.description, "resize": "means over blocks of pixels"}
    return dataclasses.replace(clips, videos=np.asarray(means), description=description)


def _reference(options, spec: str, count: int, cut: dict) -> "Clips":
    """The clips that `spec` names."""
    from ml_collections import ConfigDict

    from vdm_jax.data import pipeline, tfds_source
    from vdm_jax.evaluation import clips

    if Path(spec).exists():
        return clips.from_path(spec, count=count, seed=options.seed, **cut)
    name, _, split = spec.partition(":")
    name, _, config = name.partition("/")
    height, width = clips.height_width(cut["size"])
    if tfds_source.is_rendered(name):
        frames = tfds_source.single_frames(name, cut["num_frames"])
        config = config or ("" if frames else f"{height}x{width}x{cut['num_frames']}")
        return clips.from_rendered(name, config, split or "held_out", count, frames=frames)
    section = ConfigDict(
        {
            "name": name,
            "config": config,
            "data_dir": options.data_dir,
            "split": split or "test",
            "num_frames": cut["num_frames"],
            "image_size": height,
            "image_width": width,
            "frame_stride": cut["stride"],
            "fps": 0.0,
        }
    )
    source = pipeline.make_source(section)
    return clips.from_source(source, count, options.seed, spec, section.split)
