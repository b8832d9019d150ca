"""What others see of the files of a run while it goes on, also on a mounted bucket."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

from vdm_jax.training import log_files, metrics
from vdm_jax.training.log_files import AppendedFile, EventFile


class Bucket(type(Path())):
    """A path of a bucket that gcsfuse mounts: bytes arrive when the file is closed, all at once."""

    def open(self, mode="r", **options):
        return Upload(Path(self)) if mode == "ab" else super().open(mode, **options)


class Upload(io.BytesIO):
    def __init__(self, path):
        super().__init__()
        self._path = path

    def close(self):
        if not self.closed:
            with open(self._path, "ab") as file:
                file.write(self.getvalue())
        super().close()


@pytest.fixture
def clock(monkeypatch):
    """A list with the time, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(log_files.time, "monotonic", lambda: now[0])
    return now


def events(path):
    """The events of a file; every record is compared with tensorboardX's."""
    data, found, copy = path.read_bytes(), [], RecordWriter(str(path) + ".copy")
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        record = data[at + 12 : at + 12 + length]
        found.append(event_pb2.Event.FromString(record))
        copy.write(record)
        at += 16 + length
    copy.close()
    assert Path(copy.path).read_bytes() == data
    Path(copy.path).unlink()
    return found


def test_lines_reach_a_bucket_within_a_period(tmp_path, clock):
    file = AppendedFile(Bucket(tmp_path / "log"), period=60)
    file.write(b"a")
    assert not (tmp_path / "log").exists()  # what the bucket does
    clock[0] += 59
    file.write(b"b")
    assert not (tmp_path / "log").exists()
    clock[0] += 1
    file.write(b"c")
    assert (tmp_path / "log").read_bytes() == b"abc"
    file.write(b"d")
    file.close()
    file.close()
    assert (tmp_path / "log").read_bytes() == b"abcd"


def test_lines_reach_a_disk_at_once(tmp_path):
    file = AppendedFile(tmp_path / "log")
    file.write(b"a\n")
    assert (tmp_path / "log").read_bytes() == b"a\n"
    file.close()


def test_events_are_as_tensorboard_reads_them(tmp_path):
    file = EventFile(tmp_path / "tensorboard", purge_from=7)
    value = summary_pb2.Summary.Value(tag="train/loss", simple_value=0.5)
    file.add(8, value)
    file.close()
    file.add(9, value)  # in the same file
    file.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    version, purge, *points = events(path)
    assert version.file_version == "brain.Event:2"
    assert purge.step == 7 and purge.session_log.status == event_pb2.SessionLog.START
    assert [point.step for point in points] == [8, 9]
    assert points[0].summary.value[0] == value and points[0].wall_time > 1.7e9


def test_metrics_are_in_a_bucket_at_the_next_checkpoint(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(metrics, "Path", Bucket)
    writer = metrics.MetricWriter(tmp_path)
    writer.scalars(1, {"loss": 0.5, "grad_norm": float("nan")})
    writer.video(1, "samples", np.zeros((2, 4, 4, 3), np.uint8), 8)
    writer.close()  # the loop does so before it saves
    writer.scalars(2, {"loss": 0.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines == [{"step": 1, "loss": 0.5, "grad_norm": "nan"}]
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2]
    (path,) = (tmp_path / "tensorboard").iterdir()
    _, scalars, video, later = events(path)
    assert [value.tag for value in scalars.summary.value] == ["train/loss"]
    assert video.summary.value[0].image.encoded_image_string.startswith(b"GIF89a")
    assert later.summary.value[0].simple_value == 0.25


def test_a_resumed_run_drops_later_lines_and_hides_later_points(tmp_path):
    for first in (0, 1):
        writer = metrics.MetricWriter(tmp_path, first_step=first)
        writer.scalars(1 + first, {"loss": 1.0})
        writer.scalars(2 + first, {"loss": 2.0})
        writer.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [1, 2, 3]
    newest = max((tmp_path / "tensorboard").iterdir())
    assert [event.step for event in events(newest)] == [0, 2, 2, 3]
