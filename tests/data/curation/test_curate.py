"""A folder of films becomes a training set: every film is a row, every kept clip is in one shard,
nothing is done twice, and a process that is killed costs the films in hand."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet
import pytest

from tests.data.curation import films
from vdm_jax.data.curation import curate, engine, film, scan
from vdm_jax.data.curation.settings import Clips, Output, Settings
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable
from vdm_jax.data.video_shards import VideoShards

SETTINGS = Settings(clips=Clips(least=1.0, most=10.0), output=Output(shard_minutes=0.1))
CLIPS = {  # shots of each film, in frames
    "long.mp4": [(0, 50), (50, 98), (98, 150)],
    "still.mp4": [(0, 48)],
    "street.mp4": [(0, 60)],
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Good films, and what people have in folders."""
    root = tmp_path_factory.mktemp("videos")
    shots = [films.scene(seed, end - start) for seed, (start, end) in enumerate(CLIPS["long.mp4"])]
    films.write(root / "long.mp4", np.concatenate(shots), gop=25)
    films.write(root / "still.mp4", films.scene(7, 48, pan=(0, 0)))
    films.write(root / "sub" / "street.mp4", films.scene(8, 60))
    (root / "sub" / "street.txt").write_text("a street\na long street\n")
    shutil.copy(root / "long.mp4", root / "sub" / "same bytes.mp4")
    films.write(root / "z copy.mp4", films.scene(8, 60)[3:, :, ::-1], gop=12)
    (root / "empty.mp4").touch()
    with av.open(str(root / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 8000), np.float32), format="fltp")
        silence.rate = 8000
        container.mux([*stream.encode(silence), *stream.encode()])
    (root / "text.mp4").write_text("not a film")
    broken = (root / "long.mp4").read_bytes()
    (root / os.fsdecode(b"caf\xe9.mp4")).write_bytes(broken[: len(broken) // 2])
    (root / "notes.txt").write_text("no film at all")
    films.write(root / "short.mp4", films.scene(9, 12))
    return root


def run(videos, out, settings=SETTINGS, pool=films.serially, **options):
    work = engine.Work(videos=str(videos), out=str(out), settings=settings)
    return curate.run(work, pool, **options)


def rows(out):
    return pyarrow.parquet.read_table(Path(out) / "clips.parquet").to_pylist()


def stored(out, frames=24):
    """The captions and names of the clips that training reads."""
    source = VideoShards(Path(out) / "train", num_frames=frames, image_size=32)
    return sorted(Path(file.path).stem.split(":")[-1] for file in source.files)


@pytest.fixture(scope="module")
def curated(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run(videos, out)


def test_every_film_has_its_rows(curated):
    out, results = curated
    by_film = {}
    for row in rows(out):
        by_film.setdefault(row["film"], []).append(row)
    assert set(by_film) == {
        "long.mp4",
        "still.mp4",
        "sub/street.mp4",
        "sub/same bytes.mp4",
        "z copy.mp4",
        "empty.mp4",
        "sound.mp4",
        "text.mp4",
        "caf\\xe9.mp4",
        "short.mp4",
    }
    assert [row["reason"] for row in by_film["empty.mp4"]] == ["is empty"]
    assert by_film["sound.mp4"][0]["reason"] == "has no video, only audio"
    assert by_film["text.mp4"][0]["reason"].startswith("unreadable")
    assert by_film["caf\\xe9.mp4"][0]["reason"].startswith("unreadable")
    assert by_film["sub/same bytes.mp4"][0]["reason"] == "copy of long.mp4"
    assert by_film["short.mp4"][0]["reason"] == "has no shot that is long enough"
    trim = round(SETTINGS.clips.trim * films.FPS)
    found = [(row["start_frame"], row["end_frame"]) for row in by_film["long.mp4"]]
    assert found == [(0, 50 - trim), (50 + trim, 98 - trim), (98 + trim, 150)]
    assert results.failed == 5
    assert by_film["still.mp4"][0]["reason"].startswith("motion 0")
    assert "still 1 is outside :0.9" in by_film["still.mp4"][0]["reason"]
    (street,), (copy,) = by_film["sub/street.mp4"], by_film["z copy.mp4"]
    assert street["kept"] and copy["reason"] == f"copy of {street['clip']}"


def test_captions_are_the_side_files_or_names(curated):
    by_film = {row["film"]: row for row in rows(curated[0]) if row["clip"]}
    assert by_film["sub/street.mp4"]["captions"] == ["a street", "a long street"]
    assert by_film["sub/street.mp4"]["caption_source"] == "file"
    assert by_film["long.mp4"]["captions"] == ["long"]
    assert by_film["long.mp4"]["caption_source"] == "name"


def test_every_kept_clip_is_in_the_shards_once(curated):
    out, results = curated
    kept = sorted(row["clip"] for row in rows(out) if row["kept"])
    assert len(kept) == results.kept == 4
    assert stored(out) == kept
    assert results.shards > 1


def test_training_reads_the_clips_frames(curated, videos):
    out, _ = curated
    source = VideoShards(out / "train", num_frames=40, image_size=64, image_width=96)
    places = {Path(file.path).stem.split(":")[-1]: n for n, file in enumerate(source.files)}
    by_film = {row["film"]: row for row in rows(out) if row["kept"]}
    street = by_film["sub/street.mp4"]
    clip = [
        n for n in range(len(source)) if source.file_of(n) is source.files[places[street["clip"]]]
    ]
    video = source.read(clip[0])["video"].astype(float)
    expected = films.scene(8, 60)[street["start_frame"] :][:40].astype(float)
    assert np.abs(video - expected).mean() < 6


def times(out):
    """Time of change of every file, by name."""
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for folder in ("films", "measured", "train")
        for path in Path(out, folder).iterdir()
    }


def test_a_second_run_measures_and_writes_nothing(curated, videos):
    out, first = curated
    before, table = times(out), rows(out)
    again = run(videos, out)
    assert times(out) == before
    assert rows(out) == table
    assert again.kept == first.kept


def test_another_range_only_filters(videos, curated, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(curated[0], out)
    before, copies = times(out), {row["film"] for row in rows(out) if row["kept"]}
    keep = {**SETTINGS.keep, "duplicate": "", "motion": "", "still": ""}
    monkeypatch.setattr(scan, "measure", None)  # is not called
    run(videos, out, dataclasses.replace(SETTINGS, keep=keep))
    after = times(out)
    kept = sorted(row["clip"] for row in rows(out) if row["kept"])
    assert stored(out) == kept and len(kept) == 6
    unchanged = {name for name in before if before[name] == after.get(name)}
    assert {name for name in before if not name.startswith("train")} <= unchanged
    # Shards of films whose clips are as before were not written again.
    assert any(name.endswith(".array_record") for name in unchanged)
    assert copies < {row["film"] for row in rows(out) if row["kept"]}


def test_another_stage_is_measured_with_the_same_cuts(videos, curated, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(curated[0], out)
    plain = {row["clip"]: row for row in rows(out)}
    monkeypatch.setattr(scan.cuts, "CutFinder", None)  # is not made
    reference = "tests.data.curation.test_scores:Brightness"
    look = dataclasses.replace(SETTINGS.look, scorers=(reference,))
    keep = {**SETTINGS.keep, "brightest": "100:"}
    run(videos, out, dataclasses.replace(SETTINGS, look=look, keep=keep), shards=False)
    for row in rows(out):
        same = {name: row[name] for name in plain[row["clip"]] if row["clip"]}
        assert not row["clip"] or same == plain[row["clip"]]
        assert not row["clip"] or row["brightest"] > 100


class Failing:
    """A scorer that cannot measure."""

    name, version = "failing", "1"

    def __call__(self, view):
        raise ValueError("no luck")


def test_a_stage_that_fails_is_a_row_and_tried_again_with_other_settings(tmp_path, monkeypatch):
    films.write(tmp_path / "videos" / "film.mp4", films.scene(1, 40))
    look = dataclasses.replace(SETTINGS.look, scorers=("tests.data.curation.test_curate:Failing",))
    broken = dataclasses.replace(SETTINGS, look=look)
    results = run(tmp_path / "videos", tmp_path / "out", broken, shards=False)
    assert [row["reason"] for row in rows(tmp_path / "out")] == ["no luck"]
    assert results.failed == 1
    with monkeypatch.context() as patch:
        patch.setattr(scan, "measure", None)  # the same settings are not tried again
        run(tmp_path / "videos", tmp_path / "out", broken, shards=False)
        assert [row["reason"] for row in rows(tmp_path / "out")] == ["no luck"]
    run(tmp_path / "videos", tmp_path / "out", shards=False)
    assert [row["kept"] for row in rows(tmp_path / "out")] == [True]


def test_a_range_of_an_unknown_score_is_refused(videos, curated, tmp_path):
    settings = dataclasses.replace(SETTINGS, keep={**SETTINGS.keep, "beauty": "5:"})
    with pytest.raises(DataError, match="keep.beauty: no stage measures it; scores are black"):
        run(videos, curated[0], settings, shards=False)


def test_a_film_that_changes_is_measured_again(tmp_path):
    videos = tmp_path / "videos"
    films.write(videos / "one.mp4", films.scene(1, 30))
    films.write(videos / "two.mp4", films.scene(2, 30))
    run(videos, tmp_path / "out", shards=False)
    films.write(videos / "one.mp4", films.scene(3, 45))
    (videos / "two.mp4").unlink()
    run(videos, tmp_path / "out", shards=False)
    assert [(row["film"], row["end_frame"]) for row in rows(tmp_path / "out")] == [("one.mp4", 45)]


def test_two_runs_in_one_folder_are_refused(videos, curated):
    out, _ = curated
    with engine.locked(out), pytest.raises(DataError, match="another run is writing there"):
        run(videos, out)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="--videos=.*nothing: there is no such folder"):
        run(tmp_path / "nothing", tmp_path / "out")


def test_a_damaged_record_is_made_again(videos, curated, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(curated[0], out)
    table = rows(out)
    record = max((out / "measured").iterdir(), key=lambda path: path.stat().st_size)
    record.write_bytes(record.read_bytes()[:1000])
    run(videos, out, shards=False)
    assert rows(out) == table


class _Killed:
    """Kills this process at the `at`-th record or shard that it writes: before it, or behind it."""

    def __init__(self, replace, at, behind):
        self._replace, self._left, self._behind = replace, at, behind

    def __call__(self, *arguments):
        self._left -= 1
        if self._left == 0 and not self._behind:
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._replace(*arguments)
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def _run_killed(videos, out, at, behind):
    os.replace = _Killed(os.replace, at, behind)
    Path.replace = lambda self, target: os.replace(self, target)
    run(videos, out)


def test_kills_lose_nothing_and_repeat_nothing(videos, curated, tmp_path):
    """Processes are killed at one place after the other, each behind where the last one came."""
    out = tmp_path / "out"
    # Forks of a process that imports this once, and no threads of other tests.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vdm_jax.data.curation.curate", "tests.data.curation.films"])
    killed = 0
    for number in range(40):
        process = context.Process(
            target=_run_killed, args=(videos, out, 2 + number % 3, number % 2 == 0)
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
    assert killed >= 6
    assert rows(out) == rows(curated[0])
    assert stored(out) == stored(curated[0])
    assert not list(out.rglob("*.tmp"))


def _dies_at_text(work, key):
    """Ends its process at one film, as some decoders do."""
    if key == "text.mp4":
        os._exit(11)
    engine.identify(work, key)


def test_a_film_that_ends_its_process_is_one_row(videos, tmp_path):
    """Of the pool of processes, which computes the rest."""
    work = engine.Work(videos=str(videos), out=str(tmp_path), settings=SETTINGS)
    work.records.make_folders()
    names = ["long.mp4", "text.mp4", "z copy.mp4"]
    done = list(engine.in_pool(1)(_dies_at_text, engine.fail, work, names))
    assert sorted(done) == sorted(names)
    recorded = {one.name: one for one in work.records.names()}
    assert set(recorded) == set(names)
    assert recorded["text.mp4"].failure == "reading it ended the process"
    assert recorded["long.mp4"].digest and recorded["z copy.mp4"].digest


def test_a_frame_that_memory_would_not_hold_is_refused(videos, monkeypatch):
    monkeypatch.setattr(film, "MOST_PIXELS", 64 * 96 - 1)
    with pytest.raises(Unusable, match="frames of 96 x 64 pixels: at most 6143 are read"):
        film.identify(videos / "still.mp4")


def test_a_film_is_used_up_to_its_damage(videos, tmp_path):
    """The decoder's errors end the film, as a note; what lies before is measured."""
    content = bytearray((videos / "long.mp4").read_bytes())
    index = film.identify(videos / "long.mp4").file.index
    number = int(index.keys[3, 1])
    with av.open(str(videos / "long.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start, size = packets[number].pos, packets[number].size
    content[start : start + size] = bytes(size)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    _, measured = scan.measure(path, film.identify(path), SETTINGS)
    assert 60 <= measured.frames <= 80
    assert measured.note.startswith(f"damaged after {measured.frames} frames")
    assert measured.clips and measured.clips[-1].end <= measured.frames


def test_every_frame_is_decoded_once(videos, monkeypatch):
    """Whatever there is to measure."""
    decoded = []
    frames = film.frames

    def counted(path, index):
        for frame in frames(path, index):
            decoded.append(path)
            yield frame

    monkeypatch.setattr(film, "frames", counted)
    path = videos / "long.mp4"
    _, measured = scan.measure(path, film.identify(path), SETTINGS)
    assert len(decoded) == measured.frames == 150
    assert len(measured.clips) == 3
    assert {len(rows) for _, rows in measured.rows.values()} == {3}


def test_the_codecs_motion_grows_with_the_motion(tmp_path):
    found = []
    for speed in (0.0, 1.0, 3.0):
        path = films.write(tmp_path / f"{speed}.mp4", films.scene(4, 30, pan=(0, speed)))
        _, measured = scan.measure(path, film.identify(path), SETTINGS)
        found.append(measured.rows["motion"][1][0]["coded_motion"])
    assert found[0] < 0.1 / films.HEIGHT
    # Most blocks move with the picture; the vectors of 29 of 30 frames count.
    assert found[1] == pytest.approx(1 / films.HEIGHT, rel=0.4)
    assert found[2] == pytest.approx(3 / films.HEIGHT, rel=0.4)
