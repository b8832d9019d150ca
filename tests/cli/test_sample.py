"""`vdm sample`: prompts and seeds in lists and files, recipes in files, samples that are there."""

import json

import numpy as np
import pytest

from vdm_jax.cli import common, prompts, requests, sample
from vdm_jax.data import recipes
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler as sampling

LINES = """# a queue
{"prompt": "a red square", "seed": [3, 4], "num_samples": 2}

{"prompt": "a {red|blue} square"}
{"prompt": "a blue square", "seed": 3, "steps": 3, "guidance": 2}
"""


@pytest.fixture(scope="module")
def loaded(model_file):
    """The model, loaded once: it keeps its compiled samplers."""
    return pretrained.load(model_file)


@pytest.fixture
def flags(model_file):
    return [f"--model={model_file}", "--device=cpu", "--steps=2", "--batch_size=1"]


@pytest.fixture
def draw(flags, loaded, tmp_path, monkeypatch):
    """Runs the command and returns what it wrote, and which prompts it sampled."""
    drawn, stream = [], sampling.Sampler.stream
    monkeypatch.setattr(common, "load_any", lambda options, loras: loaded)

    def watched(self, params, key, texts, *args, **kwargs):
        drawn.extend(texts)
        return stream(self, params, key, texts, *args, **kwargs)

    monkeypatch.setattr(sampling.Sampler, "stream", watched)

    def run(*more, out="out", own=flags):
        drawn.clear()
        more = [*more, *(["--batch_size=1"] if not own else [])]
        assert sample.main([*own, *more, f"--out={tmp_path / out}"]) == 0
        with np.load(tmp_path / out / "samples.npz") as saved:
            return saved["video"], list(drawn)

    return run


def test_alternatives_are_written_out_in_order():
    assert prompts.alternatives("a {red|blue} {circle|square}") == [
        "a red circle",
        "a red square",
        "a blue circle",
        "a blue square",
    ]
    assert prompts.alternatives("a {red} circle {") == ["a {red} circle {"]
    assert prompts.alternatives("a {big |}circle") == ["a big circle", "a circle"]
    with pytest.raises(ValueError, match="stands for 16384 prompts"):
        prompts.alternatives("{a|b}" * 14)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 1: is no JSON"),
        ('["a"]', "line 1: must be an object"),
        ('{"promt": "a"}', "no field promt; the nearest is prompt"),
        ('{"prompt": "a", "height": 16}', "no field height; --height sets it for all"),
        ('{"prompt": 3}', "prompt = 3: must be a text"),
        ('{"prompt": "a", "seed": "x"}', "seed: must be an integer"),
        ('{"prompt": "a", "seed": true}', "seed: must be an integer"),
        ('{"prompt": "a", "steps": 2.5}', "steps = 2.5: '2.5' is not an integer"),
        ('{"prompt": "a", "guidance": "2"}', "guidance = '2': must be a number"),
        ('{"prompt": "a", "sampler": 2}', "sampler = 2: must be a text"),
        ('{"prompt": "a", "num_samples": 0}', "num_samples = 0"),
    ],
)
def test_a_line_that_cannot_be_is_refused(line, message, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=message) as error:
        prompts.read_lines([], str(file), sample._parser())
    assert str(file) in str(error.value)


def test_lines_become_samples_in_their_order(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(LINES)
    lines = prompts.read_lines(["a"], str(file), sample._parser())
    found = requests.from_lines(lines, [0, 9], 1)
    assert [(one.prompt, one.seed, one.place) for one in found] == [
        ("a", 0, 0),
        ("a red square", 3, 0),
        ("a red square", 3, 1),
        ("a red square", 4, 0),
        ("a red square", 4, 1),
        ("a red square", 0, 1),
        ("a blue square", 0, 2),
        ("a blue square", 3, 0),
        ("a", 9, 0),
        ("a red square", 9, 1),
        ("a blue square", 9, 2),
    ]
    assert [dict(one.settings) for one in found if one.settings] == [{"steps": 3, "guidance": 2.0}]
    groups = list(requests.groups(found, range(len(found))))
    assert sorted(index for one in groups for index in one.indices) == list(range(len(found)))
    assert [(one.seed, one.first, len(one.indices)) for one in groups] == [
        (0, 0, 3),
        (3, 0, 2),
        (4, 0, 2),
        (3, 0, 1),
        (9, 0, 3),
    ]
    # A gap in the places ends a group.
    assert [one.indices for one in requests.groups(found, [0, 6])] == [(0,), (6,)]


def test_a_queue_draws_what_is_missing_and_says_so(draw, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text(LINES)
    whole, drawn = draw(f"--prompts_file={file}", out="whole")
    assert len(whole) == len(drawn) == 7

    short, _ = draw("--prompt=a red square", "--seed=4", "--num_samples=2")
    np.testing.assert_array_equal(short, whole[2:4])  # a line with a seed is that command
    capsys.readouterr()
    again, drawn = draw(f"--prompts_file={file}")
    assert "2 of 7 samples are in" in capsys.readouterr().out and len(drawn) == 5
    np.testing.assert_array_equal(again, whole)

    again, drawn = draw(f"--prompts_file={file}")
    assert "7 of 7 samples are in" in capsys.readouterr().out and not drawn
    np.testing.assert_array_equal(again, whole)
    more, drawn = draw(f"--prompts_file={file}", "--seed=0,5", out="whole")
    assert drawn == ["a red square", "a blue square"] and len(more) == 9
    np.testing.assert_array_equal(more[:7], whole)
    other, drawn = draw(f"--prompts_file={file}", "--steps=3")
    assert len(drawn) == 6  # the last line sets its own steps
    assert not np.array_equal(other[:6], whole[:6])


def test_a_file_is_made_again_from_itself(draw, tmp_path):
    texts = ["--prompt=a {red|blue} square", "--num_samples=2", "--seed=5"]
    whole, _ = draw(*texts, "--format=mp4,webm,gif,webp,png")
    out = tmp_path / "out"
    for number, name in enumerate(
        (
            "0000_a_red_square.mp4",
            "0001_a_red_square.webm",
            "0002_a_blue_square.gif",
            "0003_a_blue_square.webp",
        )
    ):
        again, drawn = draw(f"--like={out / name}", out=f"like_{number}", own=[])
        assert len(drawn) == 1
        np.testing.assert_array_equal(again[0], whole[number])
    again, _ = draw(f"--like={out / '0003_a_blue_square_png'}", out="like_png", own=[])
    np.testing.assert_array_equal(again[0], whole[3])
    for name in ("samples.gif", "contact_sheet.png", "samples.npz"):
        again, drawn = draw(f"--like={out / name}", out="out", own=[])
        np.testing.assert_array_equal(again, whole)
        assert not drawn  # they are there


def test_what_a_file_says_is_changed_by_flags(draw, tmp_path, flags):
    whole, _ = draw("--prompt=a red square", "--num_samples=2", "--seed=5,6")
    like = f"--like={tmp_path / 'out' / '0001_a_red_square.mp4'}"
    varied, _ = draw(like, "--seed=5,6", "--prompt=a {red|blue} square", out="varied", own=[])
    np.testing.assert_array_equal(varied[0], whole[1])
    np.testing.assert_array_equal(varied[2], whole[3])
    assert not np.array_equal(varied[0], varied[1])
    longer, _ = draw(like, "--steps=3", out="longer", own=[])
    assert not np.array_equal(longer[0], whole[1])
    with pytest.raises(SystemExit):
        sample.main([like, "--num_samples=2"])


def test_another_model_is_named(draw, tmp_path, model_file, capsys):
    draw("--prompt=a red square")
    path = tmp_path / "out" / "0000_a_red_square.mp4"
    recipe = recipes.read(path)
    assert recipe["samples"][0]["prompt"] == "a red square"
    assert recipe["flags"] == ["--steps=2"] and recipe["model"] == str(model_file)
    changed = tmp_path / "changed.npz"
    np.savez(changed, recipe=json.dumps({**recipe, "digest": "sha256:0"}))
    with pytest.raises(ValueError, match="which now is sha256:"):
        sample.main([f"--like={changed}", f"--out={tmp_path / 'x'}"])
    assert sample.main([f"--like={changed}", f"--model={model_file}", f"--out={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": "vdm edit", "flags": ["extend"]}, "made by vdm edit.*its flags: extend"),
        ({"flags": ["--out=/etc"]}, r"damaged: \['--out=/etc'\]"),
        ({"samples": [{"prompt": "a"}]}, "damaged"),
        ({"samples": []}, "damaged"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change, message, tmp_path):
    recipe = requests.recipe("m", "sha256:0", [], [requests.Request(prompt="a", seed=0, place=0)])
    np.savez(tmp_path / "a.npz", recipe=json.dumps({**recipe, **change}))
    with pytest.raises(ValueError, match=message):
        sample.main([f"--like={tmp_path / 'a.npz'}"])
