"""How much of a clip's pictures is covered by text.

Stable Video Diffusion drops clips with more than 7% (section 3.1). The detector is rapidocr's, of
which only detection is used. It is optional: onnxruntime, which runs it, is large.
"""

import importlib.metadata
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.settings import Text
from vdm_jax.data.source import DataError

_PACKAGE = "rapidocr-onnxruntime"
_VERSION = 1
# Corners of the boxes that text is in, in pixels, and how sure the detector is of each.
Detect = Callable[[UInt8[np.ndarray, "h w 3"]], list[tuple[Float[np.ndarray, "4 2"], float]]]


class TextDetector:
    """Scores clips: `text`, the greatest share of a picture that text covers, over the first, the
    middle and the last sample.

    The model is loaded at the first clip, in the process that measures.
    """

    def __init__(self, settings: Text, version: str, loaded: Callable[[], Detect]):
        self.version = version
        self._least_score, self._loaded = settings.least_score, loaded
        self._detect: Detect | None = None

    def __call__(self, view: View) -> dict[str, float]:
        if self._detect is None:
            self._detect = self._loaded()
        return {"text": max(self._share(picture) for picture in view.picks)}

    def _share(self, picture: UInt8[np.ndarray, "h w 3"]) -> float:
        covered = np.zeros(picture.shape[:2], np.uint8)
        for box, score in self._detect(picture):
            if score >= self._least_score:
                cv2.fillConvexPoly(covered, np.rint(box).astype(np.int32), 1)
        return float(covered.mean())


def load(settings: Text) -> TextDetector:
    """The detector that settings ask for. Raises DataError where its package is missing."""
    try:
        version = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"text.detector = {settings.detector!r}: the package {_PACKAGE} is missing; "
            f"pip install {_PACKAGE}, or leave text.detector at none"
        ) from None
    return TextDetector(settings, f"{_PACKAGE} {version} {_VERSION}", _load_rapidocr)


def _load_rapidocr() -> Detect:
    from rapidocr_onnxruntime import RapidOCR

    detector = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1).text_det

    def detect(picture):
        boxes, scores, _ = detector(np.ascontiguousarray(picture[..., ::-1]))
        return [] if boxes is None else list(zip(boxes, scores, strict=True))

    return detect
