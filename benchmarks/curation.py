"""How well a curation finds cuts and faults, and how fast it is.

    python -m benchmarks.curation --film=FILM.mp4 --parts=cuts,dissolves,faults,text --scratch=DIR

FILM is Big Buck Bunny, 128 x 128, 24 frames a second. cuts: its cuts against
labels/big_buck_bunny.json. dissolves: its shots joined by dissolves of 8 to 28 frames. faults: its
shots, into each of which one fault is planted; how many clips with and without the fault each range
removes. text: the same for burnt-in text; needs the extra ocr. --transnet=FILE adds TransNetV2 to
the detectors of cuts and dissolves.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LABELS = ROOT / "benchmarks" / "labels" / "big_buck_bunny.json"
FPS = 24
_LENGTH = 72  # frames of a shot with a fault
_SHOTS = 20  # a fault
_NEAR = 2  # frames that a found cut may be off
_COPIES = ("duplicate", "mirrored")
_DISSOLVES = (8, 12, 16, 20, 28)  # frames


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--film", required=True, metavar="FILE")
    parser.add_argument("--scratch", required=True, metavar="DIR")
    parser.add_argument("--parts", default="cuts,faults,dissolves", metavar="NAMES")
    parser.add_argument("--transnet", default="", metavar="FILE")
    sys.path.insert(0, str(ROOT))
    options = parser.parse_args()

    import cv2

    cv2.setNumThreads(1)
    parts = options.parts.split(",")
    if "cuts" in parts:
        _print_cuts(Path(options.film), options.transnet)
    if {"faults", "dissolves", "text"} & set(parts):
        from vdm_jax.data import video_io

        video, _ = video_io.read_video(options.film)
        shots = _shots(json.loads(LABELS.read_text()), len(video))
        scratch = Path(options.scratch)
        if "dissolves" in parts:
            _print_dissolves(video, shots, scratch, options.transnet)
        if "faults" in parts:
            kinds = ("still", "black", "border", "shake", "duplicate", "mirrored")
            _print_faults(video, shots, scratch / "faults", kinds)
        if "text" in parts:
            _print_faults(video, shots, scratch / "text", ("text",))


def _shots(labels: dict, frames: int) -> list[tuple[int, int]]:
    """Shots (first frame, the one behind the last) without a gradual transition or a title."""
    gradual = [(one["first"], one["last"]) for one in labels["gradual"] + labels["overlays"]]
    bounds = [0, *labels["cuts"], min(frames, labels["frames"][1])]
    return [
        (start, end)
        for start, end in zip(bounds, bounds[1:], strict=False)
        if not any(start < last and first < end for first, last in gradual)
    ]


def _print_cuts(path: Path, transnet: str) -> None:
    from vdm_jax.data.curation import film, scan
    from vdm_jax.data.curation.settings import Cuts, Settings

    labels = json.loads(LABELS.read_text())
    known = film.identify(path)
    started = time.process_time()
    _, measured = scan.measure(path, known, Settings(cuts=Cuts(transnet=transnet)))
    taken = time.process_time() - started
    first, last = labels["frames"]
    found = [one for one in measured.transitions if first <= one.first < last]
    gradual = [(one["first"], one["last"]) for one in labels["gradual"]]
    ignored = [(one["first"], one["last"]) for one in labels["overlays"]]
    inside = [one for one in found if not _overlaps(one, ignored) or _overlaps(one, gradual)]
    hits, used = 0, set()
    for one in inside:
        near = [
            cut
            for cut in labels["cuts"]
            if one.first - _NEAR <= cut <= one.last + _NEAR and cut not in used
        ]
        if near:
            used.add(near[0])
            hits += 1
        elif _overlaps(one, gradual):
            hits += 1
    reached = sum(_overlaps(pair, [(one.first, one.last) for one in found]) for pair in gradual)
    total = len(labels["cuts"]) + len(gradual)
    _print_rates("Big Buck Bunny: all transitions", hits, len(inside), len(used) + reached, total)
    print(f"  gradual: {reached} of {len(gradual)}")
    print("  not found:", [cut for cut in labels["cuts"] if cut not in used])
    print(f"throughput, seconds of film a second of one core: {known.seconds / taken:.0f}")
    for name, value in sorted(measured.spent.items(), key=lambda one: -one[1]):
        print(f"  {name}: {known.seconds / value:,.0f}")


def _print_dissolves(
    video: np.ndarray, shots: list[tuple[int, int]], scratch: Path, transnet: str
) -> None:
    from vdm_jax.data.curation import film, scan
    from vdm_jax.data.curation.settings import Cuts, Settings

    rng = np.random.default_rng(0)
    usable = [shot for shot in shots if shot[1] - shot[0] >= 70]
    frames: list[np.ndarray] = []
    places = []
    for number in rng.permutation(len(usable)):
        start, end = usable[number]
        shot = video[start + 2 : min(end - 2, start + 120)]
        if frames:
            length = int(rng.choice(_DISSOLVES))
            share = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
            before = np.stack(frames[-length:])
            mixed = np.rint((1 - share) * before + share * shot[:length]).astype(np.uint8)
            places.append((len(frames) - length, len(frames)))
            frames[-length:] = list(mixed)
            shot = shot[length:]
        frames += list(shot)
    path = write_film(scratch / "dissolves.mp4", np.stack(frames))
    settings = Settings(cuts=Cuts(transnet=transnet))
    _, measured = scan.measure(path, film.identify(path), settings)
    found = measured.transitions
    right = sum(_overlaps(one, places) for one in found)
    reached = sum(_overlaps(place, found) for place in places)
    _print_rates("dissolves", right, len(found), reached, len(places))
    lengths = {length: [0, 0] for length in _DISSOLVES}
    for place in places:
        lengths[place[1] - place[0]][0] += _overlaps(place, found)
        lengths[place[1] - place[0]][1] += 1
    print("  found by length in frames:", {n: f"{a} of {b}" for n, (a, b) in lengths.items()})


def _overlaps(one: Sequence[int], others: Sequence[Sequence[int]]) -> bool:
    return any(one[0] <= other[1] and other[0] <= one[1] for other in others)


def _print_rates(name: str, right: int, found: int, reached: int, total: int) -> None:
    precision, recall = right / max(found, 1), reached / total
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    print(
        f"{name}: precision {precision:.3f} ({right} of {found}), recall {recall:.3f} "
        f"({reached} of {total}), F1 {f1:.3f}"
    )


def _print_faults(
    video: np.ndarray, shots: list[tuple[int, int]], scratch: Path, kinds: Sequence[str]
) -> None:
    """Plants one fault in each shot, curates them, and compares."""
    from vdm_jax.data.curation import curate, engine
    from vdm_jax.data.curation.settings import Settings

    rng = np.random.default_rng(1)
    usable = [shot for shot in shots if shot[1] - shot[0] >= _LENGTH + 4]
    faults: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "clean": lambda shot: shot,
        "still": lambda shot: np.repeat(shot[:1], len(shot), axis=0),
        "black": lambda shot: rng.integers(0, 3, shot.shape, np.uint8),
        "border": _letterboxed,
        "shake": lambda shot: shaken(shot, rng),
        "duplicate": lambda shot: shot[6:],
        "mirrored": lambda shot: shot[4:, :, ::-1],
    }
    faults["text"] = lettered
    faults = {kind: change for kind, change in faults.items() if kind in ("clean", *kinds)}
    folder = scratch / "videos"
    clean = [usable[number] for number in rng.permutation(len(usable))[:_SHOTS]]
    others = [shot for shot in usable if shot not in clean]
    for kind, change in faults.items():
        # Copies are of clean shots; the other faults are in shots of their own.
        copies = kind in ("clean", *_COPIES)
        for number in range(len(clean)):
            start = (clean[number] if copies else others[number % len(others)])[0] + 2
            quality, name = (30, "z") if kind in _COPIES else (18, "a")
            if not copies:  # another part of the film's shots, so that only the fault is common
                start += 3
            shot = video[start : start + _LENGTH]
            if not copies and kind != "black":
                shot = _turned(shot, kind)
            write_film(folder / f"{name}_{kind}" / f"{number:02d}.mp4", change(shot), quality)
    values = {"text": {"detector": "ppocr"}} if "text" in kinds else {}
    settings = Settings.from_dict(values)
    work = engine.Work(videos=str(folder), out=str(scratch / "out"), settings=settings)
    curate.run(work, engine.in_pool(1), shards=False)
    ranges = dict.fromkeys("copy" if kind in _COPIES else kind for kind in kinds)
    _print_filters(scratch / "out", list(ranges))


def _turned(shot: np.ndarray, kind: str) -> np.ndarray:
    """Turned or mirrored, each kind otherwise: different faults of one shot are then no copies."""
    turns = {"still": 1, "shake": 2, "border": 3}
    if kind in turns:
        return np.rot90(shot, turns[kind], axes=(1, 2))
    return shot[:, ::-1]


def _print_filters(out: Path, kinds: Sequence[str]) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(out / "clips.parquet").to_pylist()
    for kind in kinds:
        counts = {"planted": [0, 0], "other": [0, 0]}
        for row in rows:
            planted = row["film"].split("/")[0].split("_")[1]
            if planted in _COPIES:
                planted = "copy"
            if planted == "black" and kind in ("still", "border"):
                continue  # black is both
            if not row["clip"]:
                continue
            where = counts["planted" if planted == kind else "other"]
            where[0] += any(one.startswith(kind) for one in row["reason"].split("; "))
            where[1] += 1
        (right, total), (wrong, clean) = counts["planted"], counts["other"]
        _print_rates(kind, right, right + wrong, right, total)
        print(f"  removes {wrong} of {clean} clips without this fault")


def _letterboxed(shot: np.ndarray) -> np.ndarray:
    changed = shot.copy()
    bar = round(0.12 * shot.shape[1])
    changed[:, :bar] = changed[:, -bar:] = 0
    return changed


def shaken(shot: np.ndarray, rng: np.random.Generator, amount: float = 0.025) -> np.ndarray:
    """Moved by noise of 3 to 8 hertz, of `amount` of the height, and cropped."""
    height = shot.shape[1]
    times = np.arange(len(shot)) / FPS
    path = sum(
        np.sin(2 * np.pi * (rate * times[:, None] + rng.uniform(size=2)))
        for rate in rng.uniform(3, 8, 4)
    )
    path = np.rint(path / path.std() * amount * height).astype(int)
    most = np.abs(path).max()
    size = height - 2 * most
    cut = [
        frame[most + down : most + down + size, most + right : most + right + size]
        for frame, (down, right) in zip(shot, path, strict=True)
    ]
    return np.stack(cut)


def lettered(shot: np.ndarray) -> np.ndarray:
    """With two lines of white text."""
    import cv2

    changed = shot.copy()
    height = shot.shape[1]
    for frame in changed:
        for row, line in enumerate(("SUBSCRIBE NOW", "www.example.com")):
            place = (4, round(height * (0.4 + 0.25 * row)))
            cv2.putText(frame, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1)
    return changed


def write_film(path: Path, video: np.ndarray, quality: int = 18) -> Path:
    """Writes frames as H.264 and returns the path. quality: the constant rate factor."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    video = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": "veryfast", "threads": "1"}
        for picture in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
