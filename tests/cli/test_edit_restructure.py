"""vdm edit restructure, and the depth of vdm edit control, on files."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from tests.systems.test_gen1 import FRAMES, SIDE, WIDTH, make_config, write_pair
from tests.systems.test_latent_image import write_folder
from vdm_jax import systems
from vdm_jax.cli import edit, edit_depth, outputs
from vdm_jax.data import depth, video_io
from vdm_jax.pipelines import model as pretrained
from vdm_jax.pipelines import restructuring
from vdm_jax.stage import sampler_program
from vdm_jax.weights import fetch


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a model of phase 4."""
    folder = tmp_path_factory.mktemp("restructure")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        config = make_config((write_folder(folder / "image"), write_pair(folder / "pair")))
        shapes = nn.meta.unbox(systems.build(config).abstract_params())
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        yield str(pretrained.save_model(folder / "gen1", params, config))


@pytest.fixture(scope="module")
def loaded(model):
    return pretrained.load(model)


@pytest.fixture(autouse=True)
def load_once(model, loaded, monkeypatch):
    """The model is read once for all tests."""
    load = pretrained.load
    monkeypatch.setattr(
        pretrained, "load", lambda path, **o: loaded if path == model else load(path, **o)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip of three frames, its depth, a picture, and masks."""
    folder = tmp_path_factory.mktemp("files")
    video = np.zeros((3, 32, 48, 3), np.uint8)
    for frame in range(3):
        video[frame, 8:24, 10 + 2 * frame : 26 + 2 * frame] = 255
    video_io.write_mp4(folder / "clip.mp4", video, fps=6, min_size=32)
    grey = np.arange(3 * SIDE * SIDE, dtype=np.uint16).reshape(3, SIDE, SIDE) % 256
    np.savez(folder / "depth.npz", depth=grey.astype(np.uint8))
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(folder / "style.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, : SIDE // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(folder / "dark.png")
    return folder


@pytest.fixture
def seen(monkeypatch):
    """Sampling without a network: grey videos; what it was given, by name."""
    found = {}

    def compiled(sampler, *_):
        def run(params, frozen, key, indices, cond, start, known):
            found.update(cond=cond, known=known, sampler=sampler)
            shape = (len(indices), *sampler.video_shape)
            return np.full(shape, 9, np.uint8), np.ones(len(indices), bool)

        return run

    monkeypatch.setattr(sampler_program, "compile_sampler", compiled)
    return found


def flags(files, model, *more):
    given = [f"--input={files / 'clip.mp4'}", f"--model={model}", "--device=cpu", *more]
    return ["restructure", *given]


def test_depth_content_and_settings_reach_the_sampler(model, files, seen, tmp_path):
    more = [f"--depth={files / 'depth.npz'}", f"--image={files / 'style.png'}", "--structure=3"]
    more += ["--temporal=1.25", "--guidance=4", "--steps=2", f"--out={tmp_path}"]
    assert edit.main(flags(files, model, *more)) == 0
    wanted = depth.read(files / "depth.npz", frames=FRAMES)
    np.testing.assert_array_equal(seen["cond"]["structure"][0], wanted)
    assert (np.asarray(seen["cond"]["image_embedding"]) == 77).all()
    sampler = seen["sampler"]
    (guidance,) = sampler.guidance
    assert (guidance.scale, guidance.temporal, sampler.settings) == (4, 1.25, {"structure": 3.0})
    assert seen["known"] is None
    with np.load(tmp_path / "samples.npz") as made, np.load(tmp_path / "depth.npz") as given:
        assert made["video"].shape == (1, FRAMES, SIDE, SIDE, 3) and float(made["fps"]) == 6
        np.testing.assert_array_equal(given["video"][0, ..., :1], wanted)
    assert outputs.PARTS not in {path.name for path in tmp_path.iterdir()}


def test_outside_of_the_mask_the_source_stays(model, files, seen, tmp_path):
    more = [f"--depth={files / 'depth.npz'}", f"--image={files / 'style.png'}"]
    more += [f"--mask={files / 'mask.png'}", "--steps=2", f"--out={tmp_path}"]
    assert edit.main(flags(files, model, *more)) == 0
    source = video_io.read_video(files / "clip.mp4", size=(SIDE, SIDE), frames=FRAMES)[0]
    with np.load(tmp_path / "samples.npz") as made:
        video = made["video"][0]
    assert (video[:, :, : SIDE // 2] == 9).all()
    np.testing.assert_array_equal(video[:, :, SIDE // 2 :], source[:, :, SIDE // 2 :])
    known = np.asarray(seen["known"].measurement.known)[0, ..., 0]
    assert not known[:, :, : SIDE // 2].any() and known[:, :, SIDE // 2 :].all()


def test_a_prior_embeds_the_prompt(model, files, seen, tmp_path, monkeypatch):
    asked = []

    def embed(prior, stage, key, prompts):
        asked.append((prior, prompts))
        return np.full((1, 1, 1, 1, WIDTH), 0.5, np.float32)

    made = SimpleNamespace(stage=SimpleNamespace(check_prompts=lambda texts: None))
    load = pretrained.load
    monkeypatch.setattr(
        pretrained, "load", lambda path, **o: made if path == "prior" else load(path, **o)
    )
    monkeypatch.setattr(restructuring, "embeddings", embed)
    more = [f"--depth={files / 'depth.npz'}", "--prompt=a cat", "--prior=prior"]
    more += ["--steps=3"]  # a sampler of its own: those of other tests are kept
    assert edit.main(flags(files, model, *more, f"--out={tmp_path}")) == 0
    assert asked == [(made, ["a cat"])]
    assert (np.asarray(seen["cond"]["image_embedding"]) == 0.5).all()
    with np.load(tmp_path / "samples.npz") as found:
        assert list(found["prompts"]) == ["a cat"]


def test_the_embedding_must_be_of_the_models_width(loaded):
    with pytest.raises(ValueError, match=r"prior: samples \[2, 8, 8, 4\] .* \[1, 1, 1, 6\]"):
        restructuring.embeddings(loaded, loaded.stage, jax.random.key(0), ["a"])


def test_an_estimator_is_used_for_all_videos(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    videos = np.zeros((2, 3, 8, 8, 3), np.uint8)
    monkeypatch.setattr(depth, "estimate", lambda folder, given: given[..., :1] + 5)
    assert (edit_depth.read_or_estimate([str(tmp_path)], videos) == 5).all()
    assert (edit_depth.read_or_estimate([], videos, fallback=str(tmp_path)) == 5).all()
    with pytest.raises(ValueError, match="is an estimator; give it alone"):
        edit_depth.read_or_estimate([str(tmp_path), "depth.npz"], videos)
    with pytest.raises(ValueError, match="--depth: 1 files, 2 videos: must be as many"):
        edit_depth.read_or_estimate(["depth.npz"], videos)


@pytest.mark.parametrize(
    "more,message",
    [
        ([], "restructure needs either --prompt or --image"),
        (["--image=x", "--prompt=y"], "restructure needs either --prompt or --image"),
        (["--image=x", "--prior=y"], "--prior has no meaning with --image"),
        (["--image=x", "--negative=y"], "--negative has no meaning for restructure"),
        (["--image=x", "--mesh=fsdp=2"], "--mesh has no meaning for restructure"),
        (["--image=x", "--control=depth"], "--control has no meaning for restructure"),
    ],
)
def test_mistakes_of_flags(files, model, more, message, capsys):
    with pytest.raises(SystemExit):
        edit.main(flags(files, model, *more))
    assert message in capsys.readouterr().err


def test_depth_is_for_controls_of_depth(capsys):
    given = ["control", "--model=m", "--controlnet=c", "--prompt=a", "--depth=d", "--input=x"]
    with pytest.raises(SystemExit):
        edit.main([*given, "--control=canny"])
    assert "--depth is for --control=depth with --input" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more,message",
    [
        (["--image=IMAGE"], "--depth: the job follows depth, and there is none"),
        (["--image=IMAGE", "--depth=none.npz"], "none.npz: no such file or folder"),
        (["--image=IMAGE", "--depth=DEPTH", "--depth=DEPTH"], "2 files, 1 videos"),
        (["--prompt=a cat", "--depth=DEPTH"], "it names no prior that makes one of a text"),
        (["--image=none.png", "--depth=DEPTH"], "--image=none.png: there is no such file"),
        (["--image=IMAGE", "--depth=DEPTH", "--structure=8"], "structure = 8: must be a whole num"),
        (["--image=IMAGE", "--depth=DEPTH", "--temporal=-1"], "temporal = -1.0: must not be negat"),
        (["--image=IMAGE", "--depth=DEPTH", "--num_frames=3"], "--num_frames=3: at most 2, the fr"),
        (["--image=IMAGE", "--depth=DEPTH", "--height=13"], "must be multiples of"),
        (["--image=IMAGE", "--depth=DEPTH", "--mask=DARK"], "is dark everywhere"),
    ],
)
def test_what_does_not_fit_is_refused_before_compiling(
    files, model, tmp_path, monkeypatch, more, message
):
    monkeypatch.setattr(sampler_program, "compile_sampler", lambda *_: 1 / 0)
    paths = {"IMAGE": "style.png", "DEPTH": "depth.npz", "DARK": "dark.png"}
    for word, name in paths.items():
        more = [flag.replace(word, str(files / name)) for flag in more]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        edit.main(flags(files, model, *more, f"--out={tmp_path}"))


def test_a_clip_that_is_too_short_is_named(files, model, tmp_path):
    video_io.write_mp4(tmp_path / "short.mp4", np.zeros((1, 32, 32, 3), np.uint8), min_size=32)
    given = [f"--input={tmp_path / 'short.mp4'}", f"--model={model}", "--device=cpu"]
    given += [f"--image={files / 'style.png'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="has 1 frames, and 2 are sampled: .* --num_frames=1"):
        edit.main(["restructure", *given])
    with pytest.raises(ValueError, match="this model takes no structure and content"):
        edit.main(["restructure", given[0], "--model=moving_shapes", *given[2:]])
