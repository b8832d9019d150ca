"""What the benchmark of Tune-A-Video measures, on rendered scenes."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import tune_a_video as benchmark
from tests.systems.test_latent_image import write_folder
from vdm_jax.data.scenes import grammar, world
from vdm_jax.weights import fetch

FRAMES = 8


@pytest.fixture(scope="module")
def source():
    """A clip of a coloured shape, which has all kinds of edits."""
    sources = (benchmark.make_source(index, FRAMES) for index in range(50))
    return next(one for one in sources if set(one.edits) == set(benchmark.KINDS))


def test_an_edit_changes_what_it_names_alone(source):
    (item,) = grammar.parse_caption(source.prompt)
    for kind, edit in source.edits.items():
        assert grammar.parse_caption(source.prompts[kind]) == (edit,)
        changed = {part for part in edit._fields if getattr(edit, part) != getattr(item, part)}
        assert changed == {kind}


def test_the_source_itself_has_its_motion_and_its_pixels_and_no_edit(source):
    found = benchmark.measure(source.video, source, "object")
    assert not found.edited and not found.whole
    assert found.correlation > 0.99 and found.psnr > 60
    assert np.isnan(benchmark.measure(source.video, source, "background").psnr)


def test_a_perfect_edit_is_seen():
    """The scene rendered with the edited object, at the same places over the same texture."""
    for index in range(50):
        source = benchmark.make_source(index, FRAMES)
        scene = world.draw_scene(benchmark._SEED, "train", index, num_objects=1, num_frames=FRAMES)
        if set(source.edits) == set(benchmark.KINDS):
            break
    edited = type(scene)(**{**vars(scene), "things": (source.edits["color"].thing,)})
    video = world.render(edited, 64).video
    found = benchmark.measure(video, source, "color")
    assert found.edited and found.whole and found.correlation > 0.99 and found.psnr > 40
    backwards = benchmark.measure(video[::-1], source, "color")
    assert backwards.correlation < -0.99


def test_pixels_near_the_object_do_not_count(source):
    video = source.video.copy()
    near = benchmark.grown(source.mask, 4)
    video[near] = 0
    assert benchmark.psnr_outside(video, source) > 60
    video[~near] ^= 1
    assert 47 < benchmark.psnr_outside(video, source) < 49
    assert benchmark.correlation(np.zeros((4, 2)), np.arange(8.0).reshape(4, 2)) == 0


def test_the_table_has_intervals():
    nan = float("nan")
    found = [benchmark.Measured(i > 2, i > 5, 0.1 * i, 30.0 + i) for i in range(8)]
    row = benchmark.figures([*found, benchmark.Measured(False, False, nan, nan)])
    assert row["n"] == 9 and row["correlation_n"] == row["psnr_n"] == 8
    low, high = row["psnr"][1:]
    assert low < 33.5 < high
    table = benchmark.as_table({"a, all": {**row, "seconds": 3.0}})
    assert "| a, all | 9 | 55.6% [" in table and table.rstrip().endswith("| 3 |")


def test_the_command_goes_on_and_writes_its_files(tmp_path, monkeypatch, capsys):
    """With results that are the sources."""
    made = []

    def maker(name, first, options, folder):
        def make(index, source):
            made.append((name, index))
            if len(made) == 2:
                raise KeyboardInterrupt
            return np.stack([source.video] * len(source.edits))

        return make

    monkeypatch.setattr(benchmark, "maker", maker)
    flags = ["--clips=2", f"--frames={FRAMES}", "--variants=untuned", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["tune_a_video", *flags])
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    benchmark.main()
    assert made == [("untuned", 0), ("untuned", 1), ("untuned", 1)]
    assert "| untuned, all |" in (tmp_path / "table.md").read_text()
    row = json.loads((tmp_path / "figures.json").read_text())["rows"]["untuned, all"]
    assert row["edited"][0] == 0 and row["correlation"][0] > 0.99
    assert (tmp_path / "contact_sheet.png").is_file()


@pytest.mark.slow
def test_a_clip_is_tuned_on_and_edited(tmp_path, source, monkeypatch):
    """On drawn weights: what the results show does not matter."""
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    options = argparse.Namespace(
        model=str(write_folder(tmp_path / "model")),
        updates=1,
        learning_rate=1e-3,
        steps=1,
        guidance=2.0,
    )
    for name in ("tune_a_video", "untuned"):
        results, _ = benchmark.run(name, [source], options, tmp_path / name)
        assert set(results) == {f"0_{kind}" for kind in source.edits}
        assert all(video.shape == source.video.shape for video in results.values())
