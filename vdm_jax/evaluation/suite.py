"""From two sets of clips to figures, each with its protocol: what `vdm evaluate` computes."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.evaluation import (
    action_text,
    distances,
    fidelity,
    frechet,
    intervals,
    judge,
    kinetics,
    shares,
)
from vdm_jax.evaluation.clips import Clips
from vdm_jax.evaluation.i3d import I3DFeatures
from vdm_jax.evaluation.protocol import Protocol, Result

KERNEL_BLOCK = 64  # clips of a block of the kernel distance, where there are enough for two
SPLITS = 10  # of the Inception score
NEIGHBOURS = 3  # of precision and recall
TOP = 5  # classes among which the accuracy beside the first looks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, against what and how.

    Attributes:
      samples, reference: the clips; of the same shape. Without a reference only what needs none.
      subject: of the samples, see `protocol.Result`.
      network: of the metrics of features, None where none is asked for.
      sentences: of the metric of captions, None likewise.
      stride, seed: as the clips were chosen; the seed is the metrics' too.
      replicates, level: of the resampled intervals; 0 replicates = no intervals.
      together: whether all processes of the run measure these clips, each a share of them.
      origin: an evaluation of the same references: the network looks at them once for both.
    """

    samples: Clips
    reference: Clips | None = None
    subject: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: I3DFeatures | None = None
    sentences: action_text.Sentences | None = None
    stride: int = 1
    seed: int = 0
    replicates: int = 1000
    level: float = 0.95
    together: bool = False
    origin: "Evaluation | None" = None

    def __post_init__(self):
        if self.reference is not None:
            ours, theirs = self.samples.videos.shape[1:], self.reference.videos.shape[1:]
            if ours != theirs:
                raise ValueError(f"samples are {list(ours)} a clip, references {list(theirs)}")

    def measure(self, names: Sequence[str]) -> list[Result]:
        """The metrics of `METRICS` by name. Raises ValueError for what they lack."""
        check(names, reference=self.reference is not None)
        return [METRICS[name].compute(self) for name in names]

    def of(self, samples: Clips, subject: Mapping[str, Any]) -> "Evaluation":
        """The same evaluation of other samples."""
        origin = self.origin or self
        return dataclasses.replace(self, samples=samples, subject=subject, origin=origin)

    @functools.cached_property
    def sample_outputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of the samples."""
        return self.each(self.network, self.samples.videos)

    @functools.cached_property
    def reference_outputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of the references."""
        if self.origin is not None:
            return self.origin.reference_outputs
        return self.each(self.network, self.reference.videos)

    def each(self, function: Callable[..., Any], *arrays: np.ndarray) -> Any:
        """`function` of arrays of one row a clip; by shares if the processes measure together."""
        return shares.by_process(function, *arrays) if self.together else function(*arrays)

    def still_logits(self, clips: Clips) -> Float[np.ndarray, "n 400"]:
        """Logits of one frame a clip, chosen by the seed, that stands still."""
        count, frames = clips.videos.shape[:2]
        chosen = np.random.default_rng(self.seed).integers(frames, size=count)
        return self.each(self.network, clips.videos[np.arange(count), chosen][:, None])[0]

    def result(self, metric: str, value: float, *, features: str | None = None, **more) -> Result:
        """A figure of `metric`. features: the layer that it is made of, None = pixels."""
        options = more.pop("options", {})
        clips = self.samples if self.reference is None else self.reference
        network = self.network.protocol if features else {}
        count, frames, height, width, _ = self.samples.videos.shape
        resize = clips.description["resize"]
        protocol = Protocol(
            metric=metric,
            dataset=clips.description["data"] if self.reference is not None else "none",
            split=clips.description["split"] if self.reference is not None else "none",
            samples=count,
            references=None if self.reference is None else len(clips.videos),
            frames=frames,
            stride=self.stride,
            size=(height, width),
            crop="centre square",
            resize=f"{resize}; {network['resize']}" if features else resize,
            padding=network.get("temporal_padding") if features else None,
            features=f"{network['network']}, {features}" if features else None,
            weights=network["weights"] if features else None,
            precision="float32" if features else None,
            seed=self.seed,
            options=options,
        )
        return Result(protocol=protocol, subject=dict(self.subject), value=value, n=count, **more)

    def mean(self, metric: str, values: Float[np.ndarray, "n"], **more) -> Result:
        """The mean over clips of what every clip has, with its interval."""
        found = None
        # Of equal clips PSNR is infinite.
        if self.replicates and len(values) > 1 and np.isfinite(values).all():
            found = intervals.bootstrap(
                np.mean,
                values[:, None],
                replicates=self.replicates,
                level=self.level,
                seed=self.seed,
            )
        return self.result(metric, float(np.mean(values)), **_fields(found), **more)


def _fields(found: intervals.Interval | None) -> dict[str, float]:
    """Of an interval, those that a `Result` has."""
    if found is None:
        return {}
    return {name: getattr(found, name) for name in ("low", "high", "level", "standard_error")}


def _frechet(name: str, layer: str, of: Callable[[Evaluation, bool], np.ndarray]):
    def compute(this: Evaluation) -> Result:
        ours, theirs = of(this, True), of(this, False)
        value = frechet.frechet_from_features(ours, theirs)
        found = None
        if this.replicates and min(len(ours), len(theirs)) >= 4:
            found = frechet.frechet_interval(
                ours, theirs, replicates=this.replicates, level=this.level, seed=this.seed
            )
        extra = {}
        if min(len(ours), len(theirs)) >= 16:
            limit = frechet.frechet_infinity(ours, theirs, seed=this.seed)
            extra = {f"{name}_infinity": limit.value, f"{name}_bias": value - limit.value}
        return this.result(name, value, features=layer, extra=extra, **_fields(found))

    return compute


def _logits(this: Evaluation, of_samples: bool) -> np.ndarray:
    return (this.sample_outputs if of_samples else this.reference_outputs)[0]


def _stills(this: Evaluation, of_samples: bool) -> np.ndarray:
    return this.still_logits(this.samples if of_samples else this.reference)


def _kvd(this: Evaluation) -> Result:
    ours, theirs = _logits(this, True), _logits(this, False)
    enough = min(len(ours), len(theirs)) >= 4 * KERNEL_BLOCK
    block = KERNEL_BLOCK if enough else None
    value, error = distances.kernel_distance(ours, theirs, block_size=block, seed=this.seed)
    return this.result(
        "kvd", value, features="logits", standard_error=error, options={"block_size": block}
    )


def _shares(index: int, name: str):
    def compute(this: Evaluation) -> Result:
        shares = distances.precision_recall(
            this.sample_outputs[1], this.reference_outputs[1], k=NEIGHBOURS
        )
        return this.result(
            name, shares[index], features="pooled features", options={"k": NEIGHBOURS}
        )

    return compute


def _inception(this: Evaluation) -> Result:
    splits = min(SPLITS, len(this.samples.videos))
    score = distances.inception_score(_logits(this, True), splits=splits, seed=this.seed)
    return this.result(
        "is",
        score.value,
        features="logits",
        extra={"is_deviation": score.deviation},
        options={"splits": splits},
    )


def _accuracy(this: Evaluation) -> Result:
    numbers = kinetics.classes(this.samples.captions)
    first, top = (kinetics.among_first(_logits(this, True), numbers, k) for k in (1, TOP))
    found = intervals.share_interval(int(first.sum()), len(first), this.level)
    return this.result(
        "accuracy",
        found.value,
        features="logits",
        extra={f"accuracy_top{TOP}": float(top.mean())},
        **_fields(found),
    )


def _action_text(this: Evaluation) -> Result:
    captions = this.samples.captions
    if not all(captions) or not captions:
        raise ValueError("action_text: the samples have no captions")
    found = action_text.match(_logits(this, True), captions, this.sentences.encode)
    extra = {}
    if found.captions > 1:
        extra = {
            "action_text_others": found.others,
            "action_text_retrieval": found.retrieved,
            "action_text_chance": 1 / found.captions,
        }
    options = {**this.sentences.protocol, "captions": found.captions}
    return this.mean("action_text", found.own, features="logits", extra=extra, options=options)


def _consistency(this: Evaluation) -> Result:
    videos = this.samples.videos
    count, frames = videos.shape[:2]
    if frames < 2:
        raise ValueError(f"consistency: clips of {frames} frame have no consecutive ones")
    start = np.random.default_rng(this.seed).integers(frames - 1, size=count)
    stills = videos[np.arange(count)[:, None], start[:, None] + np.arange(2)]
    features = this.each(this.network, stills.reshape(-1, 1, *videos.shape[2:]))[1]
    pairs = features.reshape(count, 2, -1)
    extra = {}
    if count > 1:
        strangers = np.stack([pairs[:, 0], np.roll(pairs[:, 1], 1, axis=0)], axis=1)
        extra["consistency_strangers"] = fidelity.frame_consistency(strangers).mean
    return this.mean(
        "consistency",
        fidelity.frame_consistency(pairs).clips,
        features="pooled features of still frames",
        extra=extra,
        options={"pairs of frames a clip": 1},
    )


def _paired(name: str, function: Callable[..., fidelity.PerClip]):
    def compute(this: Evaluation) -> Result:
        ours, theirs = this.samples.videos, this.reference.videos
        if len(ours) != len(theirs):
            raise ValueError(
                f"{name} compares clip by clip: {len(ours)} samples, {len(theirs)} references"
            )
        return this.mean(name, this.each(lambda *pair: function(*pair).clips, ours, theirs))

    return compute


def _warp(this: Evaluation) -> Result:
    function = functools.partial(fidelity.warp_error, flow="dis")
    errors, visible = this.each(lambda videos: function(videos)[1:], this.samples.videos)
    seen = errors[np.isfinite(errors)]
    if not len(seen):
        raise ValueError("warp: no pixel of any clip can be followed from frame to frame")
    extra = {"warp_visible": float(np.mean(visible))}
    return this.mean("warp", seen, extra=extra, options={"flow": "dis"})


def _judge(this: Evaluation) -> Result:
    videos, captions = this.samples.videos, this.samples.captions
    if not captions:
        raise ValueError("judge: the samples have no captions")
    right = np.array(
        [
            judge.score(video[None], [caption])["all"]
            for video, caption in zip(videos, captions, strict=True)
        ]
    )
    shares = judge.score(videos, captions)
    extra = {f"judge_{name}": float(shares[name]) for name in judge.FACTORS}
    found = intervals.share_interval(int(right.sum()), len(right), this.level)
    return this.result("judge", found.value, extra=extra, **_fields(found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """What a metric is and needs.

    Attributes:
      title: in words.
      compute: from an `Evaluation`.
      reference, network, sentences: whether it needs them.
      paired: whether sample and reference of one number show the same.
      better: "lower" or "higher".
    """

    title: str
    compute: Callable[[Evaluation], Result]
    reference: bool = True
    network: bool = True
    sentences: bool = False
    paired: bool = False
    better: str = "lower"


METRICS: Mapping[str, Metric] = {
    "fvd": Metric(
        title="Fréchet video distance (Unterthiner et al. 2018): I3D logits",
        compute=_frechet("fvd", "logits", _logits),
    ),
    "ffd": Metric(
        title="Fréchet distance of single frames, as still clips: I3D logits",
        compute=_frechet("ffd", "logits of still frames", _stills),
    ),
    "kvd": Metric(
        title="kernel video distance, unbiased MMD² (Bińkowski et al. 2018): I3D logits",
        compute=_kvd,
    ),
    "precision": Metric(
        title="share of samples on the references' manifold (Kynkäänniemi et al. 2019)",
        compute=_shares(0, "precision"),
        better="higher",
    ),
    "recall": Metric(
        title="share of references on the samples' manifold",
        compute=_shares(1, "recall"),
        better="higher",
    ),
    "is": Metric(
        title="Inception score of I3D's 400 classes (Salimans et al. 2016)",
        compute=_inception,
        reference=False,
        better="higher",
    ),
    "accuracy": Metric(
        title="share of clips whose caption, a class of Kinetics, is I3D's first class",
        compute=_accuracy,
        reference=False,
        better="higher",
    ),
    "action_text": Metric(
        title="similarity of the caption and the actions that I3D sees: MiniLM's embeddings",
        compute=_action_text,
        reference=False,
        sentences=True,
        better="higher",
    ),
    "consistency": Metric(
        title="cosine similarity of two consecutive frames, as still clips: I3D pooled features",
        compute=_consistency,
        reference=False,
        better="higher",
    ),
    "psnr": Metric(
        title="peak signal-to-noise ratio, dB, clip by clip",
        compute=_paired("psnr", fidelity.psnr),
        network=False,
        paired=True,
        better="higher",
    ),
    "ssim": Metric(
        title="structural similarity, clip by clip (Wang et al. 2004)",
        compute=_paired("ssim", fidelity.ssim),
        network=False,
        paired=True,
        better="higher",
    ),
    "warp": Metric(
        title="error of each frame warped along the optical flow to the one before",
        compute=_warp,
        reference=False,
        network=False,
    ),
    "judge": Metric(
        title="share of moving shapes with colour, shape and direction as captioned",
        compute=_judge,
        reference=False,
        network=False,
        better="higher",
    ),
}


def check(names: Sequence[str], *, reference: bool) -> None:
    """Raises ValueError for unknown metrics, and for ones that lack a reference."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"metrics {', '.join(unknown)}: allowed are {', '.join(METRICS)}")
    lacking = [name for name in names if METRICS[name].reference and not reference]
    if lacking:
        raise ValueError(f"metrics {', '.join(lacking)}: need a reference")
    if "warp" in names and importlib.util.find_spec("cv2") is None:
        raise ValueError('metrics warp: needs OpenCV, pip install -e ".[eval]"')
