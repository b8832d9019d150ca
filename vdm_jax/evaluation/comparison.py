"""Clips that are measured beside the clips that they are compared with, and figures of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vdm_jax.evaluation import action_text, intervals, shares
from vdm_jax.evaluation.clips import UNCHANGED, Clips, check_rates, crop_of, rate_text, told
from vdm_jax.evaluation.i3d import I3DFeatures
from vdm_jax.evaluation.prediction import Prediction, groups_of
from vdm_jax.evaluation.protocol import Features, Protocol, Result


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
      prediction: how the samples continue clips; None = nothing was known of them.
      remarks: that belong to every figure.
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
    prediction: Prediction | None = None
    remarks: Sequence[str] = ()

    def __post_init__(self):
        if self.reference is not None:
            ours, theirs = self.samples.videos.shape[1:], self.reference.videos.shape[1:]
            if ours != theirs:
                raise ValueError(f"samples are {list(ours)} a clip, references {list(theirs)}")
            check_rates(self.samples, self.reference)
        if self.prediction is not None:
            frames = self.samples.videos.shape[1]
            if self.prediction.frames >= frames:
                raise ValueError(
                    f"known frames {self.prediction.frames}: clips of {frames} frames leave "
                    "nothing to predict"
                )
            if self.reference is not None:
                groups_of(self.prediction).count(self.samples.videos, self.reference.videos)

    def of(self, samples: Clips, subject: Mapping[str, Any]) -> "Evaluation":
        """The same evaluation of other samples."""
        origin = self.origin or self
        return dataclasses.replace(self, samples=samples, subject=subject, origin=origin)

    @functools.cached_property
    def sample_outputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of the samples."""
        return self.each(self.network, self.seen(self.samples.videos))

    @functools.cached_property
    def reference_outputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of the references."""
        if self.origin is not None:
            return self.origin.reference_outputs
        return self.each(self.network, self.seen(self.reference.videos))

    def seen(self, videos: np.ndarray, predicted: bool = False) -> np.ndarray:
        """The frames of the videos that are looked at: all, or without the known ones where the
        prediction says so, or `predicted` does."""
        if self.prediction is None or not (predicted or self.prediction.over == "predicted"):
            return videos
        return videos[:, self.prediction.frames :]

    def each(self, function: Callable[..., Any], *arrays: np.ndarray) -> Any:
        """`function` of arrays of one row a clip; by shares if the processes measure together."""
        return shares.by_process(function, *arrays) if self.together else function(*arrays)

    def still_logits(self, clips: Clips) -> Float[np.ndarray, "n 400"]:
        """Logits of one frame a clip, chosen by the seed, that stands still."""
        videos = self.seen(clips.videos)
        count, frames = videos.shape[:2]
        chosen = np.random.default_rng(self.seed).integers(frames, size=count)
        return self.each(self.network, videos[np.arange(count), chosen][:, None])[0]

    def result(
        self,
        metric: str,
        value: float,
        *,
        features: str | None = None,
        predicted: bool = False,
        note: str = "",
        **more,
    ) -> Result:
        """A figure of `metric`. features: the layer that it is made of, None = pixels. predicted:
        whether it is of the predicted frames only, whatever the prediction says."""
        clips = self.samples if self.reference is None else self.reference
        count, frames, height, width, _ = self.seen(self.samples.videos, predicted).shape
        resize = self._resize()
        protocol = Protocol(
            metric=metric,
            dataset=clips.description["data"] if self.reference is not None else "none",
            split=clips.description["split"] if self.reference is not None else "none",
            samples=count,
            references=None if self.reference is None else len(clips.videos),
            frames=frames,
            stride=self.stride,
            size=(height, width),
            crop=crop_of(height, width),
            resize=f"{resize}; {self.network.protocol['resize']}" if features else resize,
            features=self._features(features) if features else None,
            seed=self.seed,
            options=self._options(predicted) | more.pop("options", {}),
        )
        return Result(
            protocol=protocol,
            subject=dict(self.subject),
            value=value,
            n=count,
            note="; ".join([note] * bool(note) + self._notes()),
            **more,
        )

    def _features(self, layer: str) -> Features:
        network = self.network.protocol
        return Features(
            name=f"{network['network']}, {layer}",
            weights=network["weights"],
            precision="float32",
            padding=network.get("temporal_padding"),
        )

    def _resize(self) -> str:
        """The filter of the references, and that of the samples where it is another."""
        ours = self.samples.description["resize"]
        theirs = ours if self.reference is None else self.reference.description["resize"]
        return theirs if ours in (theirs, UNCHANGED) else f"{theirs}; of samples {ours}"

    def _options(self, predicted: bool) -> dict[str, Any]:
        """What of the clips belongs to every protocol."""
        found: dict[str, Any] = {}
        rate = self.samples.fps if self.reference is None else self.reference.fps
        if rate is not None:
            found["fps"] = rate_text(rate)
        if self.prediction is not None:
            over = "predicted" if predicted else self.prediction.over
            found |= self.prediction.options | {"over": f"{over} frames"}
        return found

    def _notes(self) -> list[str]:
        sides = {"samples": self.samples, "references": self.reference}
        return [
            *self.remarks,
            *(
                f"left out of the {side}: {told(clips.left_out)}"
                for side, clips in sides.items()
                if clips is not None and clips.left_out
            ),
        ]

    def mean(self, metric: str, values: Float[np.ndarray, "n"], **more) -> Result:
        """The mean over clips of what every clip has, with its interval; NaN is left out.

        Samples that continue one clip are no independent ones: their means are resampled.
        """
        rows = values.reshape(-1, groups_of(self.prediction).each)
        rows = np.array([row[~np.isnan(row)].mean() for row in rows if not np.isnan(row).all()])
        found = None
        # Of equal clips PSNR is infinite.
        if self.replicates and len(rows) > 1 and np.isfinite(rows).all():
            found = intervals.bootstrap(
                np.mean,
                rows[:, None],
                replicates=self.replicates,
                level=self.level,
                seed=self.seed,
            )
        return self.result(metric, float(np.nanmean(values)), **interval_fields(found), **more)

    def share(self, metric: str, right: Bool[np.ndarray, "n"], **more) -> Result:
        """The share of clips that are right, with its interval.

        Samples that continue one clip count as one: they may all be right for the same reason.
        """
        value, count = float(right.mean()), len(right) // groups_of(self.prediction).each
        found = intervals.share_interval(round(value * count), count, self.level)
        found = found._replace(low=min(found.low, value), high=max(found.high, value))
        return self.result(metric, value, **interval_fields(found), **more)


def interval_fields(found: intervals.Interval | None) -> dict[str, float]:
    """Of an interval, those that a `Result` has."""
    if found is None:
        return {}
    return {name: getattr(found, name) for name in ("low", "high", "level", "standard_error")}
