"""Captions come from files, from names, or from commands, and say where they come from."""

import json
import os
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest

from tests.data.curation import films
from vdm_jax.data.curation import captioning, captions, curate, engine
from vdm_jax.data.curation.settings import Captions, Settings
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable
from vdm_jax.data.video_shards import VideoShards

PYTHON = f'"{sys.executable}" -c'


@pytest.mark.parametrize(
    "name,expected",
    [
        ("big_buck-bunny.mp4", "big buck bunny"),
        ("Straße 3.mp4", "Straße"),
        ("0001.mp4", "holidays in Rome"),
        ("0001 b.mp4", "holidays in Rome"),
        ("猫.x.mp4", "holidays in Rome"),
        ("黒い猫.mp4", "黒い猫"),
    ],
)
def test_names_become_words(tmp_path, name, expected):
    found = captions.film_captions(tmp_path / "holidays_in_Rome_2019" / name)
    assert (found.texts, found.source) == ((expected,), "name")


def test_a_file_beside_the_film_goes_first(tmp_path):
    (tmp_path / "film.json").write_text(json.dumps({"captions": ["one", "two"]}))
    found = captions.film_captions(tmp_path / "film.mp4")
    assert (found.texts, found.source) == (("one", "two"), "file")
    (tmp_path / "film.json").write_text("{")
    with pytest.raises(Unusable, match="its caption cannot be read"):
        captions.film_captions(tmp_path / "film.mp4")


def test_a_command_is_run_without_a_shell():
    command = f"{PYTHON} \"import sys; print('two\\nlines', sys.argv[1])\" {{text}}"
    assert captioning.run_command(command, text="$HOME; ls 'x") == "two lines $HOME; ls 'x"


@pytest.mark.parametrize(
    "command,error,message",
    [
        (f'{PYTHON} "1/0"', Unusable, "failed with status 1: ZeroDivisionError"),
        (f'{PYTHON} ""', Unusable, "failed with status 0"),
        ("no-such-program {text}", DataError, "'no-such-program' cannot be started: No such file"),
        ("echo {image}", DataError, r"is no command \('image'\); it may use {text}"),
        ('echo "', DataError, "is no command"),
    ],
)
def test_commands_that_fail(command, error, message):
    with pytest.raises(error, match=message):
        captioning.run_command(command, text="x")


def test_merging_needs_what_is_merged():
    with pytest.raises(DataError, match="captions.merge: needs captions.frame and captions.clip"):
        Settings(captions=Captions(merge="cat", clip="cat"))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """The middle frame's brightness, the clip's number of frames, and both."""
    root = tmp_path_factory.mktemp("captioned")
    scenes = [films.scene(seed, 54) for seed in (1, 2)]
    films.write(root / "videos" / "film.mp4", np.concatenate(scenes))
    image = "from PIL import Image; print('level', Image.open(r'{image}').getpixel((9, 9))[0])"
    count = root / "count.py"
    count.write_text(
        "import sys\n"
        "from vdm_jax.data import video_indexing\n"
        f"open({str(root / 'calls')!r}, 'a').write('x')\n"
        "print(len(video_indexing.build(sys.argv[1])), 'frames')\n"
    )
    settings = Settings(
        captions=Captions(
            frame=f'{PYTHON} "{image}"',
            clip=f'"{sys.executable}" "{count}" {{video}}',
            merge=f"{PYTHON} \"import sys; print(' and '.join(sys.argv[1:]))\" {{frame}} {{clip}}",
        )
    )
    work = engine.Work(videos=str(root / "videos"), out=str(root / "out"), settings=settings)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    curate.run(work, films.serially)
    return root, work


def test_kept_clips_have_four_captions_of_which_one_is_drawn(captioned):
    root, _ = captioned
    rows = pyarrow.parquet.read_table(root / "out" / "clips.parquet").to_pylist()
    assert len(rows) == 2
    for row in rows:
        frame, again, clip, merged = row["captions"]
        assert row["caption_source"] == "command"
        assert frame == again and frame.startswith("level ")
        assert clip == f"{row['end_frame'] - row['start_frame']} frames"
        assert merged == f"{frame} and {clip}"
    source = VideoShards(root / "out" / "train", num_frames=8, image_size=16)
    rng = np.random.default_rng(0)
    drawn = Counter(source.read(0, rng)["caption"].split(" ")[0] for _ in range(60))
    assert 0.5 < (drawn["level"]) / 60 < 0.95  # .5 and the merged text's .25 begin so


def test_commands_run_once_for_a_clip(captioned):
    root, work = captioned
    assert (root / "calls").read_text() == "xx"
    curate.run(work, films.serially)
    assert (root / "calls").read_text() == "xx"
