"""What commands write: refused before the work, in parts while it goes on, pictures last."""

import errno
import io
import os
import subprocess

import numpy as np
import pytest

from vdm_jax.cli import common, drawn, edit, outputs, prompts, sample
from vdm_jax.data import video_io
from vdm_jax.evaluation import clips


def videos(count, first=0):
    values = np.arange(first, first + count, dtype=np.uint8)[:, None, None, None, None]
    return np.broadcast_to(values, (count, 2, 8, 8, 3)).copy()


def full(*_, number=errno.ENOSPC, **__):
    """What the operating system says in the place of writing."""
    raise OSError(number, os.strerror(number))


@pytest.fixture
def no_sampling(monkeypatch):
    """Fails a test that loads or samples a model."""

    def refuse(*_, **__):
        raise AssertionError("the model is loaded before the output is checked")

    monkeypatch.setattr(common, "load_any", refuse)
    monkeypatch.setattr(common, "load_model", refuse)


@pytest.mark.parametrize("command", [sample.main, lambda flags: edit.main(["extend", *flags])])
def test_a_file_in_the_place_of_a_folder_is_refused_first(command, tmp_path, no_sampling):
    (tmp_path / "taken").write_text("")
    with pytest.raises(outputs.OutputError, match=r"--out=.*taken/out: cannot be written: Not a d"):
        command(["--prompt=a", "--device=cpu", f"--out={tmp_path / 'taken' / 'out'}"])
    with pytest.raises(outputs.OutputError, match=r"--out=.*taken: cannot be written: File exists"):
        command(["--prompt=a", "--device=cpu", f"--out={tmp_path / 'taken'}"])
    with pytest.raises(outputs.OutputError, match="gs://bucket/x: must be a folder of this mach"):
        command(["--prompt=a", "--device=cpu", "--out=gs://bucket/x"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_folder_that_takes_no_file_is_refused(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda *_: full(number=number))
    with pytest.raises(outputs.OutputError, match=os.strerror(number)):
        outputs.check_folder(tmp_path / "new", "--out")
    assert not list((tmp_path / "new").iterdir())


def test_a_full_disk_is_refused(tmp_path):
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        with pytest.raises(outputs.OutputError, match="No space left on device; make room, or giv"):
            outputs.check_folder(tmp_path / "out", "--out")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_is_checked_and_kept(tmp_path):
    path = tmp_path / "new" / "figures.json"
    assert outputs.check_file(path, "--out") == path and not path.exists()
    path.write_text("kept")
    outputs.check_file(path, "--out")
    assert path.read_text() == "kept"
    with pytest.raises(outputs.OutputError, match="is a folder; give the name of a file"):
        outputs.check_file(tmp_path, "--out")


def test_little_room_is_a_warning(tmp_path, capsys):
    outputs.check_folder(tmp_path, "--out", needed=1 << 60)
    assert "are free, and the results may take" in capsys.readouterr().err


def test_parts_outlive_a_kill(tmp_path, capsys):
    """Nothing is called at the end: what a killed process leaves is what was added."""
    parts = outputs.Parts(tmp_path, {"seed": 0}, 5)
    parts.add(videos(2))
    parts.add(videos(2, first=2))
    (tmp_path / outputs.PARTS / "00000004.npy").write_bytes(b"half a part")

    again = outputs.Parts(tmp_path, {"seed": 0}, 5)
    assert again.done == 4
    held = clips.from_path(
        tmp_path / outputs.PARTS / "00000002.npy",
        num_frames=2,
        size=8,
        stride=1,
        count=None,
        seed=0,
    )
    np.testing.assert_array_equal(held.videos, videos(2, first=2))  # vdm evaluate --samples
    again.add(videos(1, first=4))
    np.testing.assert_array_equal(again.videos(), videos(5))
    again.remove()
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("other", [({"seed": 1}, 5), ({"seed": 0}, 6)])
def test_parts_of_another_command_are_kept_and_not_used(other, tmp_path, capsys):
    outputs.Parts(tmp_path, {"seed": 0}, 5).add(videos(2))
    assert outputs.Parts(tmp_path, *other).done == 0
    assert (tmp_path / f"{outputs.PARTS}_1" / "00000000.npy").is_file()
    assert "samples of another command" in capsys.readouterr().err


def test_a_full_disk_loses_a_batch_at_most(tmp_path, monkeypatch):
    parts = outputs.Parts(tmp_path, {}, 4)
    parts.add(videos(2))

    with monkeypatch.context() as patch, pytest.raises(outputs.OutputError) as error:
        patch.setattr(os, "fsync", full)
        parts.add(videos(2))
    assert "No space left on device. 2 of 4 samples are in" in str(error.value)
    assert outputs.Parts(tmp_path, {}, 4).done == 2


def test_samples_are_whole_before_any_picture(tmp_path, monkeypatch, capsys):
    """The first writer of a picture finds the archive finished; its failure ends nothing."""
    out = tmp_path / "out"

    def broken(*_, **__):
        with np.load(out / "samples.npz") as saved:
            np.testing.assert_array_equal(saved["video"], videos(7))
            assert saved["fps"] == 12 and list(saved["prompts"]) == ["a"] * 7
        raise RuntimeError("no encoder")

    for name in ("write_mp4", "write_gif"):
        monkeypatch.setattr(video_io, name, broken)
    outputs.write_samples(out, videos(7), ["a"] * 7, 12)
    told = capsys.readouterr()
    assert f"warning: {out / '0000_a.mp4'} could not be written: no encoder" in told.err
    assert "warning: 3 more pictures could not be written" in told.err
    assert {path.name for path in out.iterdir()} == {"samples.npz", "contact_sheet.png"}
    assert "0 clips" in told.out and "samples.gif" not in told.out


def test_an_archive_is_whole_or_not_there(tmp_path, monkeypatch):
    path = outputs.save_videos(tmp_path / "samples.npz", videos(2), ["a", "b"], 8)

    def half(file, **_):
        file.write(b"half")
        full()

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(outputs.OutputError, match="samples.npz could not be written: No space"):
        outputs.save_videos(path, videos(3), ["a", "b", "c"], 8)
    with np.load(path) as saved:
        assert len(saved["video"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_an_interrupted_command_goes_on(model_file, tmp_path, monkeypatch, capsys):
    """The samples of an interrupted and a resumed run are those of one that was not interrupted."""
    flags = [f"--model={model_file}", "--device=cpu", "--steps=2", "--batch_size=2"]
    flags += ["--prompt=a red square", "--num_samples=5"]
    assert sample.main([*flags, f"--out={tmp_path / 'whole'}"]) == 0
    add, out = drawn.Drawn.add, f"--out={tmp_path / 'a:b'}"

    def killed(self, indices, batch):
        if len(self.done) == 4:
            raise KeyboardInterrupt
        add(self, indices, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(drawn.Drawn, "add", killed)
        sample.main([*flags, out])
    capsys.readouterr()
    with (
        monkeypatch.context() as patch,
        pytest.raises(outputs.OutputError, match="All samples are"),
    ):
        patch.setattr(np, "savez_compressed", full)
        sample.main([*flags, out])
    assert "4 samples are in" in capsys.readouterr().out
    assert sample.main([*flags, out]) == 0  # there is room again
    assert "5 samples are in" in capsys.readouterr().out
    with (
        np.load(tmp_path / "whole/samples.npz") as one,
        np.load(tmp_path / "a:b/samples.npz") as two,
    ):
        np.testing.assert_array_equal(one["video"], two["video"])
    assert len(list((tmp_path / "a:b").glob("*.mp4"))) == 5  # FFmpeg took a: for a protocol
    assert not (tmp_path / "a:b" / outputs.PARTS).exists()


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(b"", "utf-8"), (b"", "utf-16-le"), (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le")]
    + [(b"\xfe\xff", "utf-16-be"), (b"\xff\xfe\0\0", "utf-32-le")],
)
def test_prompt_files_of_any_unicode(mark, encoding, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff prompts.txt")  # a name that is not UTF-8
    path.write_bytes(mark + "a red circle\r\n\r\n红色圆圈\n".encode(encoding))
    lines = prompts.read_lines(["first"], str(path), sample._parser())
    assert [line.prompt for line in lines] == ["first", "a red circle", "红色圆圈"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nrød".encode("latin-1"), "is not utf-8 .* at byte 3.; save it as UTF-8"),
        (b"\xff\xfea", "is not utf-16"),
    ],
)
def test_other_prompt_files_are_refused(content, message, tmp_path, no_sampling):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sample.main([f"--prompts_file={path}", f"--out={tmp_path / 'out'}"])


@pytest.mark.parametrize("flag", ["prompt", "negative"])
def test_half_a_surrogate_pair_is_refused(flag, no_sampling):
    with pytest.raises(ValueError, match=rf"--{flag}: .*character 3 is half a surrogate pair"):
        sample.main([f"--{flag}=a \udcff", "--prompt=a"])


def test_a_name_that_is_no_text_does_not_end_the_run(tmp_path, monkeypatch):
    out, raw = tmp_path / os.fsdecode(b"\xff"), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="utf-8"))

    def main(_):
        outputs.write_samples(out, videos(1), ["a"], 8)

    with pytest.raises(SystemExit) as end:
        common.run(main, [])
    assert end.value.code == 0
    assert {path.name for path in out.iterdir()} == {
        "samples.npz",
        "0000_a.mp4",
        "samples.gif",
        "contact_sheet.png",
    }
