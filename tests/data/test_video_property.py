"""Random files against a slow reader that knows what was written: clips of `VideoFolder` are the
frames that are shown at the times of the clip, upright and of square pixels."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.data import video_files
from tests.data.video_files import B_FRAMES, CODECS, PATTERNS, Video, pattern, write
from vdm_jax.data import index_cache
from vdm_jax.data.video_folder import VideoFolder

EXAMPLES, PARTS = 200, 10
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


def draw(rng):
    """A random file and a random way to read it."""

    def one_of(*values):
        return values[int(rng.integers(len(values)))]

    suffix = one_of(*CODECS)
    codec = one_of(*CODECS[suffix])
    frames = int(rng.integers(1, 40))
    rates = PATTERNS
    if suffix == ".mpg" or codec == "mpeg4_packed" or frames < 4:
        rates = ("constant",)
    elif suffix == ".avi":
        rates = ("constant", "dropped")
    rate = one_of(*rates)
    turning = suffix in (".mp4", ".mov")
    video = Video(
        codec=codec,
        frames=frames,
        gop=int(rng.integers(1, 30)),
        b_frames=one_of(0, 1, 2, 3) if codec in B_FRAMES else 0,
        open_gop=bool(rng.integers(2)),
        times=() if rate == "constant" else pattern(rate, frames, seed=int(rng.integers(99))),
        width=2 * int(rng.integers(20, 60)),
        height=2 * int(rng.integers(20, 60)),
        sar=one_of(Fraction(1), *ASPECTS) if codec in ("libx264", "mpeg4") else Fraction(1),
        quarter_turns=one_of(-1, 0, 1, 2) if turning else 0,
        mirror=turning and bool(rng.integers(2)),
    )
    return Example(
        suffix=suffix,
        video=video,
        num_frames=int(rng.integers(1, 7)),
        stride=int(rng.integers(1, 4)),
        fps=one_of(0.0, 0.0, 8.0, 30.0, 45.0),
        height=4 * int(rng.integers(6, 13)),
        width=4 * int(rng.integers(6, 13)),
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


@pytest.mark.parametrize("part", range(PARTS))
def test_clips_are_those_of_a_slow_reader(part, tmp_path, monkeypatch):
    monkeypatch.setattr(index_cache, "USER_CACHE", tmp_path / "cache")
    for number in range(EXAMPLES // PARTS):
        example = draw(np.random.default_rng((part, number)))
        path = write(tmp_path / str(number) / f"a{example.suffix}", example.video)
        expected = reference_clips(example)
        try:
            check(path, example, expected)
        except Exception as error:
            error.add_note(f"example {number} of part {part}: {example}")
            raise


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
