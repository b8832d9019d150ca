"""Random files against a slow reader that knows what was written: clips of `VideoFolder` are the
frames that are shown at the times of the clip, upright and of square pixels."""

import dataclasses
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from tests.data import video_files
from tests.data.video_files import B_FRAMES, CODECS, PATTERNS, Video, pattern, write
from vdm_jax.data import index_cache
from vdm_jax.data.video_folder import VideoFolder

EXAMPLES = 200
KINDS = [(suffix, codec) for suffix, codecs in CODECS.items() for codec in codecs]
ASPECTS = (Fraction(64, 45), Fraction(8, 9), Fraction(4, 3), Fraction(1, 2))
NEAR = 16  # mean difference, of 255, to a picture that another library has resized


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    suffix: str
    video: Video
    num_frames: int
    stride: int
    fps: float
    height: int
    width: int


@st.composite
def videos(draw, suffix, codec):
    """Any video that such a file can hold."""
    frames = draw(st.integers(1, 39))
    rates = PATTERNS
    if suffix == ".mpg" or codec == "mpeg4_packed" or frames < 4:
        rates = ("constant",)
    elif suffix == ".avi":
        rates = ("constant", "dropped")
    rate = draw(st.sampled_from(rates))
    seed = draw(st.integers(0, 98)) if rate == "jitter" else 0
    turning, sides = suffix in (".mp4", ".mov"), st.integers(20, 59).map(lambda half: 2 * half)
    squeezed = codec in ("libx264", "mpeg4")
    return Video(
        codec=codec,
        frames=frames,
        gop=draw(st.integers(1, 29)),
        b_frames=draw(st.integers(0, 3)) if codec in B_FRAMES else 0,
        open_gop=draw(st.booleans()),
        times=() if rate == "constant" else pattern(rate, frames, seed=seed),
        width=draw(sides),
        height=draw(sides),
        sar=draw(st.sampled_from((Fraction(1), *ASPECTS))) if squeezed else Fraction(1),
        quarter_turns=draw(st.integers(-1, 2)) if turning else 0,
        mirror=draw(st.booleans()) if turning else False,
    )


@st.composite
def examples(draw, suffix, codec):
    """A file and a way to read it."""
    sides = st.integers(6, 12).map(lambda quarter: 4 * quarter)
    return Example(
        suffix=suffix,
        video=draw(videos(suffix, codec)),
        num_frames=draw(st.integers(1, 6)),
        stride=draw(st.integers(1, 3)),
        fps=draw(st.sampled_from((0.0, 8.0, 30.0, 45.0))),
        height=draw(sides),
        width=draw(sides),
    )


def reference_frames(path, example):
    """Every frame of the file, decoded from first to last, as a clip of the example shows it."""
    video = example.video
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            stored = frame.to_ndarray(format="rgb24")
            turned = np.rot90(stored, video.quarter_turns)
            turned = turned[:, ::-1] if video.mirror else turned
            sideways = video.quarter_turns % 2
            aspect = 1 / video.sar if sideways else video.sar
            # The stored pixels that a clip shows once pixels are square.
            height, width = turned.shape[0], turned.shape[1] * float(aspect)
            scale = min(height / example.height, width / example.width)
            top = max(height - example.height * scale, 0) / 2
            left = max(width - example.width * scale, 0) / 2 / float(aspect)
            box = (left, top, turned.shape[1] - left, turned.shape[0] - top)
            image = Image.fromarray(np.ascontiguousarray(turned))
            size = (example.width, example.height)
            pictures.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box)))
    return np.stack(pictures).astype(int)


def reference_clips(example):
    """For each clip and each of its frames the numbers that are right: two where the time is that
    of a change from one to the other, as exactly as the container stores it."""
    video = example.video
    fps = 25 if video.codec.startswith(("mpeg1", "mpeg2")) else video.fps
    times = np.array(video.times or np.arange(video.frames) / fps)
    if len(times) > 1:
        fps = (len(times) - 1) / times[-1]
    step = example.stride * (fps / example.fps if example.fps else 1)
    hop = example.num_frames * step
    rounding = {".gif": 0.011, ".mkv": 0.0011, ".webm": 0.0011}.get(example.suffix, 1e-4) * fps
    places = times * fps
    even = np.abs(places - np.arange(len(times))).max()
    clips = []
    for clip in range(100):
        wanted = clip * hop + step * np.arange(example.num_frames)
        # Rounded times change the mean rate, and with it each place.
        slack = rounding * (1 + wanted / max(len(times) - 1, 1)) + 1e-6
        if wanted[-1] > len(times) - slack[-1]:
            break
        if len(times) == 1 and (clip or example.num_frames > 1):
            break  # one frame is one clip of one frame, at any rate
        clips.append([])
        for place, off in zip(wanted, slack, strict=True):
            right = set()
            for rule in (
                (np.arange(len(times)) if even < 0.35 else None),
                places if even > 0.25 else None,
            ):
                if rule is not None:
                    right |= {
                        int(np.searchsorted(rule, p, "right")) - 1
                        for p in (place - off, place + off)
                    }
            clips[-1].append(set(range(max(min(right), 0), max(right) + 1)))
    return clips


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_cache, "USER_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.mark.parametrize(("suffix", "codec"), KINDS)
@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=-(-EXAMPLES // len(KINDS)), derandomize=True, database=None, deadline=None
)
def test_clips_are_those_of_a_slow_reader(suffix, codec, data):
    example = data.draw(examples(suffix, codec))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, f"a{suffix}"), example.video)
        check(path, example, reference_clips(example))


def check(path, example, expected):
    settings = {
        "num_frames": example.num_frames,
        "image_size": example.height,
        "image_width": example.width,
        "frame_stride": example.stride,
        "fps": example.fps,
    }
    if not expected:
        with pytest.raises(ValueError, match="too short"):
            VideoFolder(path.parent, **settings)
        return
    assert video_files.sequential(path) == list(range(example.video.frames))
    source = VideoFolder(path.parent, **settings)
    # The last clip may end just where the last frame does, as exactly as times are stored.
    assert len(expected) <= len(source) <= len(expected) + 1
    pictures = reference_frames(path, example)
    order = np.random.default_rng(0).permutation(len(expected))
    for clip in order[:4]:
        shown = source[int(clip)]["video"].astype(int)
        for place, (picture, right) in enumerate(zip(shown, expected[clip], strict=True)):
            away = np.abs(pictures - picture).mean(axis=(1, 2, 3))
            # Pictures of different numbers may be alike in what the clip shows of them.
            assert min(away[number] for number in right) < min(NEAR, away.min() + 3), (
                f"clip {clip}, frame {place}: {int(away.argmin())}, not {right}"
            )
