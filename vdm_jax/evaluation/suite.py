"""From two sets of clips to figures, each with its protocol: what `vdm evaluate` computes."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vdm_jax.evaluation import (
    action_text,
    distances,
    fidelity,
    frechet,
    judge,
    kinetics,
    vocabularies,
)
from vdm_jax.evaluation.comparison import Evaluation, interval_fields
from vdm_jax.evaluation.prediction import groups_of
from vdm_jax.evaluation.protocol import Result

KERNEL_BLOCK = 64  # clips of a block of the kernel distance, where there are enough for two
SPLITS = 10  # of the Inception score
NEIGHBOURS = 3  # of precision and recall
HALVES = 400  # for the bias of a Fréchet distance, where no intervals are wanted
SOUND = 5  # clips a feature, from which a Fréchet distance and its interval are sound
TOP = 5  # classes among which the accuracy beside the first looks


def _frechet(name: str, layer: str, of: Callable[[Evaluation, bool], np.ndarray]):
    """The estimate of the distance of the distributions, which the interval is for; the distance of
    these clips, which is larger by its bias, is NAME_uncorrected."""

    def compute(this: Evaluation) -> Result:
        ours, theirs = of(this, True), of(this, False)
        groups = groups_of(this.prediction)
        count, dim = min(groups.count(ours, theirs), len(theirs)), ours.shape[1]
        plain = frechet.frechet_from_features(ours, theirs)
        if count < 4:
            return this.result(
                name,
                plain,
                features=layer,
                options={"estimate": "of these clips, biased"},
                note=f"{name}: {count} clips are too few to correct the distance or bound it",
            )
        found = frechet.frechet_interval(
            ours,
            theirs,
            replicates=this.replicates or HALVES,
            level=this.level,
            seed=this.seed,
            groups=groups,
        )
        extra = {f"{name}_uncorrected": plain}
        if count >= 16:
            limit = frechet.frechet_infinity(ours, theirs, seed=this.seed, groups=groups)
            extra[f"{name}_infinity"] = limit.value
        note = ""
        if count < SOUND * dim:
            note = (
                f"{name}: {count} clips for {dim} features are few, so the estimate and its "
                f"interval are rough; they are sound from {SOUND * dim} clips"
            )
        return this.result(
            name,
            max(found.corrected, 0.0),
            features=layer,
            extra=extra,
            options={"estimate": "corrected for the bias of few clips, by halves"},
            note=note,
            **(interval_fields(found) if this.replicates else {}),
        )

    return compute


def _logits(this: Evaluation, of_samples: bool) -> np.ndarray:
    return (this.sample_outputs if of_samples else this.reference_outputs)[0]


def _stills(this: Evaluation, of_samples: bool) -> np.ndarray:
    return this.still_logits(this.samples if of_samples else this.reference)


def _kvd(this: Evaluation) -> Result:
    prediction = this.prediction
    if prediction is not None and (prediction.each > 1 or prediction.of_references):
        raise ValueError(
            "kvd: its estimate is for independent clips. With known frames take one sample a clip "
            "(--samples_per_clip=1), and the known frames from other clips than the references "
            "(--known_from)"
        )
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
    extra = {f"accuracy_top{TOP}": float(top.mean())}
    return this.share("accuracy", first, features="logits", extra=extra)


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
    videos = this.seen(this.samples.videos)
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


def _paired(name: str, function: Callable[..., fidelity.PerClip], **fixed: str):
    def compute(this: Evaluation) -> Result:
        ours, theirs = this.samples, this.reference
        prediction = this.prediction
        if prediction is not None and not prediction.of_references:
            raise ValueError(
                f"{name} compares clip by clip: the references must be the clips that the known "
                "frames are from (omit --known_from)"
            )
        each = groups_of(prediction).each
        if len(ours.videos) != each * len(theirs.videos):
            raise ValueError(
                f"{name} compares clip by clip: {len(ours.videos)} samples, "
                f"{len(theirs.videos)} references"
            )
        if ours.names and theirs.names and list(ours.names) != list(theirs.names):
            raise ValueError(f"{name} compares clip by clip: the clips' names differ")
        true = np.repeat(theirs.videos, each, axis=0) if each > 1 else theirs.videos
        clips = [this.seen(videos, predicted=True) for videos in (ours.videos, true)]
        values = this.each(lambda *pair: function(*pair).clips, *clips)
        pairs = {"pairs": "by name"} if ours.names and theirs.names else {}
        options = {**fixed, **pairs}
        return this.mean(name, values, predicted=True, options=options)

    return compute


def _warp(this: Evaluation) -> Result:
    function = functools.partial(fidelity.warp_error, flow="dis")
    videos = this.seen(this.samples.videos)
    errors, visible = this.each(lambda videos: function(videos)[1:], videos)
    if not np.isfinite(errors).any():
        raise ValueError("warp: no pixel of any clip can be followed from frame to frame")
    extra = {"warp_visible": float(np.mean(visible))}
    return this.mean("warp", errors, extra=extra, options={"flow": "dis"})


def _judge(this: Evaluation) -> Result:
    videos, captions = this.samples.videos, this.samples.captions
    if not captions:
        raise ValueError("judge: the samples have no captions")
    vocabulary = vocabularies.choose(captions)
    right = np.array(
        [
            judge.score(video[None], [caption], vocabulary)["all"]
            for video, caption in zip(videos, captions, strict=True)
        ]
    )
    shares = judge.score(videos, captions, vocabulary)
    extra = {f"judge_{name}": float(shares[name]) for name in vocabulary.factors if name in shares}
    return this.share("judge", right.astype(bool), extra=extra)


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
        compute=_paired("psnr", fidelity.psnr, equal_frames="as one value off by one"),
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
        title="share of samples that show what their captions say and nothing else",
        compute=_judge,
        reference=False,
        network=False,
        better="higher",
    ),
}


def measure(evaluation: Evaluation, names: Sequence[str]) -> list[Result]:
    """The metrics of `METRICS` by name. Raises ValueError for what they lack."""
    check(names, reference=evaluation.reference is not None)
    return [METRICS[name].compute(evaluation) for name in names]


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
