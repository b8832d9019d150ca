"""The scenes world: captions, held-out combinations, the renderer, and what TFDS keeps of it."""

import dataclasses
import io
import sys
from importlib import resources

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vdm_jax.cli import show_data
from vdm_jax.data import pipeline, tfds_source
from vdm_jax.data.scenes import backgrounds, builder, grammar, things, world
from vdm_jax.data.scenes.builder import Scenes
from vdm_jax.data.scenes.grammar import BACKGROUNDS, PLACES, SPRITES, THINGS, Item, Thing
from vdm_jax.data.source import DataError
from vdm_jax.data.tfds_source import TFDSSource, make_builder
from vdm_jax.evaluation import clips
from vdm_jax.stage.window import Part

CONFIGS = {config.name: config for config in Scenes.BUILDER_CONFIGS}
ONE, TWO = CONFIGS["64x64x16"], CONFIGS["64x64x16_two"]


def test_captions_are_english_and_read_back():
    cat = Item("cat", "", "left", "", "meadow")
    assert grammar.make_caption([cat]) == "a cat on the left of a green meadow"
    circle = Item("circle", "red", "top right", "", "meadow")
    both = "a cat on the left and a red circle at the top right of a green meadow"
    assert grammar.make_caption([cat, circle]) == both
    moving = [Item("owl", "", "", "up", "night"), Item("square", "blue", "", "left", "night")]
    caption = "an owl moving up and a blue square moving left over a starry night"
    assert grammar.make_caption(moving) == caption
    assert grammar.parse_caption(caption) == tuple(moving)
    for background in BACKGROUNDS:
        for thing in THINGS:
            for place in PLACES:
                item = Item(*thing, place, "", background)
                assert grammar.parse_caption(grammar.make_caption([item])) == (item,)


@pytest.mark.parametrize(
    "caption",
    [
        "a red cat on the left of a green meadow",  # sprites have no colour
        "a circle on the left of a green meadow",  # and shapes have one
        "a cat on the left of a blue meadow",
        "a cat on the left over a green meadow",
        "a cat moving right of a green meadow",
        "a cat moving right and a dog on the left over a green meadow",
        "a cat",
    ],
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="a green meadow"):
        grammar.parse_caption(caption)


def test_places_are_the_nine_cells():
    at = (0.2, 0.5, 0.8)
    assert [grammar.place(x, y) for y in at for x in at] == list(PLACES)
    assert grammar.place(0.39, 0.5) == "left" and grammar.place(0.41, 0.5) == "middle"


def test_splits_share_no_combination():
    for split in grammar.SPLITS:
        for thing in THINGS:
            on = [b for b in BACKGROUNDS if thing in grammar.things(split, b)]
            assert len(on) == (8 if split == "train" else 2)
            assert len(grammar.motions(split, thing)) == (3 if split == "train" else 1)
    for background in BACKGROUNDS:  # each is seen in training, with most things
        assert len(grammar.things("train", background)) > 50
    # Which motions are held out does not follow from which backgrounds are.
    held = {
        (tuple(grammar.held_out_background(t, b) for b in BACKGROUNDS), grammar.motions("train", t))
        for t in THINGS
    }
    assert len(held) == 20
    with pytest.raises(ValueError, match="train, held_out"):
        grammar.things("test", "meadow")


@pytest.mark.parametrize("split", grammar.SPLITS)
@pytest.mark.parametrize("config", [ONE, TWO], ids=lambda config: config.name)
def test_scenes_keep_to_their_split_and_to_the_frame(config, split):
    for index in range(60):
        scene = config.scene(split, index)
        assert len(set(scene.things)) == config.num_objects
        for thing, motion in zip(scene.things, scene.motions, strict=True):
            assert thing in grammar.things(split, scene.background)
            assert motion in grammar.motions(split, thing)
        radius = scene.diameter[:, None, None] / 2
        assert (scene.centres - radius > 0).all() and (scene.centres + radius < 1).all()
        travelled = scene.centres[:, -1] - scene.centres[:, 0]
        assert (np.abs(travelled).max(-1) >= 0.299).all()
        said = grammar.parse_caption(scene.caption)
        assert tuple(item.thing for item in said) == scene.things
        assert {item.background for item in said} == {scene.background}
        for text, centres in zip(scene.frame_captions, scene.centres.swapaxes(0, 1), strict=True):
            places = [item.place for item in grammar.parse_caption(text)]
            assert places == [grammar.place(*centre) for centre in centres]


def test_larger_scenes_show_the_same_in_more_pixels():
    large = CONFIGS["256x256x16"]
    ((scene, clip),), ((small, wanted),) = (
        list(builder.clips(config, "train", 1)) for config in (large, ONE)
    )
    assert clip.video.shape == (16, 256, 256, 3) and clip.mask.shape == (16, 256, 256, 1)
    assert scene.caption == small.caption
    covered = clip.mask.reshape(16, 64, 4, 64, 4, 1).mean((2, 4))
    assert np.abs(covered - wanted.mask).mean() < 0.01 < wanted.mask.mean()
    # The object has detail of its own: within squares that it covers, pixels differ.
    squares = clip.video.reshape(16, 64, 4, 64, 4, 3).astype(float).std((2, 4))
    assert squares[covered[..., 0] == 1].max() > 10


def test_scenes_are_functions_of_seed_split_and_index():
    first, again = (list(builder.clips(TWO, "train", n)) for n in (2, 3))
    for index, (drawn, clip) in enumerate(first):
        for a, b in zip(clip, again[index][1], strict=True):
            np.testing.assert_array_equal(a, b)
        assert drawn.caption == TWO.scene("train", index).caption
    texts = {
        dataclasses.replace(TWO, seed=seed).scene(split, index).caption
        for seed in (0, 1)
        for split in grammar.SPLITS
        for index in (0, 1)
    }
    assert len(texts) == 8
    # Data sets prepared elsewhere are only comparable while this holds.
    means = [clip.video.mean() for _, clip in again]
    np.testing.assert_allclose(means, [125.65, 128.40, 180.83], atol=0.01)


def scene(things_, centres, *, diameter=24, depth=(200, 240), background="meadow", frames=1):
    """Objects that stand still, with lengths in pixels of 64."""
    return world.Scene(
        background=background,
        things=tuple(things_),
        motions=("left",) * len(things_),
        diameter=np.full(len(things_), diameter / 64),
        centres=np.repeat(np.array(centres, float)[:, None] / 64, frames, 1),
        depth=np.array(depth[: len(things_)], np.uint8),
        texture=(3,),
    )


def test_a_picture_keeps_its_area_and_place_wherever_it_is_drawn():
    picture = things.pictures()[THINGS.index(Thing("circle", "red"))]
    rng = np.random.default_rng(0)
    for _ in range(20):
        centre, diameter = rng.uniform(20, 44, 2), rng.uniform(16, 28)
        (patch,), (corner,) = things.resample(picture, centre[None], diameter)
        cover = patch[..., 3] / 255
        np.testing.assert_allclose(cover.sum(), np.pi * diameter**2 / 4, rtol=0.02)
        place = np.arange(len(cover)) + 0.5
        centroid = np.array([cover.sum(0) @ place, cover.sum(1) @ place]) / cover.sum() + corner
        np.testing.assert_allclose(centroid, centre, atol=0.05)
        assert cover.max() <= 1 + 1e-6 and patch[..., 0].max() <= 255.01


def test_the_nearer_object_hides_the_other():
    red, blue = Thing("square", "red"), Thing("square", "blue")
    at = [(24, 32), (36, 32)]  # they share columns 24 to 36
    for depth, seen in (((200, 240), 2), ((240, 200), 1)):
        clip = world.render(scene([red, blue], at, depth=depth), 64)
        shared = (0, slice(22, 42), slice(25, 35))
        assert (clip.mask[shared] == seen).all()
        assert (clip.depth[shared] == 240).all()
        color = (255, 0, 0) if seen == 1 else (0, 0, 255)
        assert (clip.video[shared] == color).all()


def test_masks_depth_edges_and_boxes_agree():
    for index in range(8):
        drawn = TWO.scene("train", index)
        clip = world.render(drawn, 64)
        boxes = 64 * drawn.boxes
        for k, depth in enumerate(drawn.depth):
            own = clip.mask[..., 0] == k + 1
            assert (clip.depth[..., 0][own] == depth).all()
            for f in range(16):
                rows, columns = own[f].any(1).nonzero()[0], own[f].any(0).nonzero()[0]
                left, top, right, bottom = boxes[f, k]
                assert columns[0] >= left - 1 and columns[-1] + 1 <= right + 1
                assert rows[0] >= top - 1 and rows[-1] + 1 <= bottom + 1
                if k == drawn.depth.argmax():  # of which nothing is hidden
                    seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                    np.testing.assert_allclose(seen, boxes[f, k], atol=1.1)
        ground = clip.mask == 0
        ramp = np.broadcast_to(np.round(np.linspace(0, 127, 64))[:, None, None], clip.depth.shape)
        np.testing.assert_array_equal(clip.depth[ground], ramp[ground])
        # Every edge is on an object, every object has edges all around.
        assert (clip.mask[clip.edges > 0] > 0).all()
        inner = clip.mask[:, 1:-1, 1:-1] > 0
        for rows, columns in ((slice(2, None), slice(1, -1)), (slice(1, -1), slice(2, None))):
            inner = inner & (clip.mask[:, rows, columns] > 0)
        assert set(np.unique(clip.edges)) == {0, 255}


def test_edges_are_the_outline_of_the_nearer_object():
    clip = world.render(scene([Thing("square", "red")], [(32, 32)], diameter=20), 64)
    wanted = np.zeros((64, 64), np.uint8)
    wanted[22:42, 22:42] = 255
    wanted[23:41, 23:41] = 0
    np.testing.assert_array_equal(clip.edges[0, ..., 0], wanted)
    red, blue = Thing("square", "red"), Thing("square", "blue")
    clip = world.render(scene([red, blue], [(24, 32), (36, 32)], depth=(200, 240)), 64)
    edges = clip.edges[0, 25:39, :, 0]
    assert (edges[:, 24] == 255).all()  # the nearer square's left side,
    assert (edges[:, 23] == 0).all()  # beside which the other one goes on


def test_backgrounds_differ_in_colour_or_texture():
    rng = np.random.default_rng(0)
    features = {}
    for name in BACKGROUNDS:
        drawn = np.stack([backgrounds.draw(name, rng, 64)[1] for _ in range(6)])
        assert drawn.min() >= 0 and drawn.max() <= 255
        assert (drawn[0] != drawn[1]).any()
        features[name] = drawn.mean((0, 1, 2))
        grain = np.abs(np.diff(drawn, axis=1)).mean(), np.abs(np.diff(drawn, axis=2)).mean()
        assert min(grain) > 0.3  # none is flat
        features[name, "grain"] = np.log(grain)
    names = list(BACKGROUNDS)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert np.abs(features[a] - features[b]).max() > 15, (a, b)
    vertical, horizontal = features["meadow", "grain"], features["sea", "grain"]
    assert vertical[1] > vertical[0] + 0.5 and horizontal[0] > horizontal[1] + 0.5


def test_sprites_are_small_and_have_their_licence():
    folder = resources.files("vdm_jax.data.scenes") / "sprites"
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(files) == {f"{noun}.png" for noun in SPRITES} | {"LICENSE"}
    assert b"Noto Emoji" in files["LICENSE"] and b"Apache License" in files["LICENSE"]
    assert sum(map(len, files.values())) <= 300_000
    for noun in SPRITES:
        image = Image.open(io.BytesIO(files[f"{noun}.png"]))
        assert image.size == (things.SIDE, things.SIDE) and image.mode == "RGBA"
    boxes = things.extents()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides.max(1) > 0.9).all()  # each fills its picture along one axis


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with few clips of the second configuration."""
    folder = tmp_path_factory.mktemp("scenes")
    few = dataclasses.replace(TWO, train_clips=12, held_out_clips=5)
    with pytest.MonkeyPatch.context() as patch:
        # First, because TFDS keeps for good what it makes of BUILDER_CONFIGS at the first look.
        patch.setattr(Scenes, "builder_configs", {few.name: few})
        patch.setattr(Scenes, "BUILDER_CONFIGS", [few])
        tfds_source.prepare(make_builder("scenes", few.name, str(folder)))
        yield {"config": few.name, "data_dir": str(folder)}


def test_what_is_written_is_what_is_rendered(prepared):
    read = make_builder("scenes", **prepared)
    for split, count in (("train", 12), ("held_out", 5)):
        rendered = {
            clip.video.tobytes(): (drawn, clip) for drawn, clip in builder.clips(TWO, split, count)
        }
        source = read.as_data_source(split)
        assert len(source) == count
        for example in source:
            drawn, clip = rendered.pop(example["video"].tobytes())
            for name in ("mask", "depth", "edges"):
                np.testing.assert_array_equal(example[name], getattr(clip, name))
            np.testing.assert_array_equal(example["boxes"], drawn.boxes)
            assert example["caption"].decode() == drawn.caption
            assert [text.decode() for text in example["frame_captions"]] == drawn.frame_captions
            names = {
                name: read.info.features[name].feature.names
                for name in ("object", "color", "motion")
            }
            labels = {name: [names[name][i] for i in example[name]] for name in names}
            assert labels["object"] == [thing.object for thing in drawn.things]
            assert labels["color"] == [thing.color or "none" for thing in drawn.things]
            assert labels["motion"] == list(drawn.motions)
            assert list(BACKGROUNDS)[example["background"]] == drawn.background
        assert not rendered
    assert "tensorflow" not in sys.modules


def source(prepared, **arguments):
    return TFDSSource("scenes", **prepared, image_size=64, **arguments)


def test_a_single_frame_has_its_own_caption(prepared):
    whole = source(prepared, num_frames=16)
    texts = whole[3]["frame_captions"]
    assert whole[3]["caption"] == grammar.make_caption(grammar.parse_caption(whole[3]["caption"]))
    assert "moving" in whole[3]["caption"] and len(texts) == 16
    frames = source(prepared, num_frames=1)
    seen = set()
    for seed in range(40):
        example = frames.read(3, np.random.default_rng(seed))
        (number,) = [
            f for f, pixels in enumerate(whole[3]["video"]) if (pixels == example["video"][0]).all()
        ]
        assert example["caption"] == texts[number]
        seen.add(number)
    assert len(seen) > 10
    part = whole.read_part(3, Part((9,), (0, 64), (0, 64)))
    assert part["caption"] == texts[9]
    np.testing.assert_array_equal(part["video"][0], whole[3]["video"][9])
    several = whole.read_part(3, Part((2, 9), (0, 64), (0, 64)))
    assert several["caption"] == whole[3]["caption"]
    image = whole.read_frame(3, np.random.default_rng(0))
    (number,) = [f for f, p in enumerate(whole[3]["video"]) if (p == image["image"]).all()]
    assert image["caption"] == texts[number]
    with pytest.raises(DataError, match="data.num_frames = 8: scenes/64x64x16_two has 16"):
        source(prepared, num_frames=8)


def test_every_caption_that_is_read_is_listed(prepared):
    for frames in (1, 16):
        stored = source(prepared, num_frames=frames)
        listed = set(stored.captions())
        for index in range(len(stored)):
            example = stored[index]
            assert {example["caption"], *example["frame_captions"]} <= listed
        assert any("moving" in text for text in listed) == (frames == 16)


def section(prepared, **fields):
    values = {"image_size": 64, "num_frames": 16, "frame_stride": 1, "fps": 0.0, "image_frames": 0}
    values |= {"name": "scenes", "split": "train", "workers": 0, **prepared, **fields}
    return ConfigDict({"data": values})


def test_extras_are_cut_and_turned_with_the_video(prepared):
    config = section(prepared, extras=("mask", "depth"), augment=("mirror", "reverse"))
    batches = pipeline.make_dataset(config, text_encoder=None, batch_size=6, seed=0, report=None)
    batch = next(iter(batches))
    assert batch["mask"].shape == batch["depth"].shape == (6, 16, 64, 64, 1)
    stored = source(prepared, num_frames=16, extras=("mask", "depth"))
    turned = 0
    for video, mask, depth in zip(batch["video"], batch["mask"], batch["depth"], strict=True):
        turns = [
            (slice(None, None, a), slice(None), slice(None, None, b))
            for a in (1, -1)
            for b in (1, -1)
        ]
        ((turn, clip),) = [
            (turn, clip)
            for turn in turns
            for clip in map(stored.read, range(len(stored)))
            if (clip["video"][turn] == video).all()
        ]
        np.testing.assert_array_equal(clip["mask"][turn], mask)
        np.testing.assert_array_equal(clip["depth"][turn], depth)
        turned += turn != turns[0]
    assert turned
    part = Part((1, 4), (8, 16), (32, 24))
    cut = stored.read_part(0, part)
    np.testing.assert_array_equal(cut["mask"], part.of(stored[0]["mask"]))
    with pytest.raises(DataError, match="allowed are mask, depth, edges"):
        pipeline.make_source(section(prepared, extras=("flow",)).data)
    with pytest.raises(DataError, match="video_folder has none"):
        pipeline.make_source(section(prepared, name="video_folder", extras=("mask",)).data)


def test_images_beside_clips_have_their_own_extras(prepared):
    config = section(prepared, extras=("mask", "depth"), augment=("mirror",), image_frames=3)
    batches = pipeline.make_dataset(config, text_encoder=None, batch_size=4, seed=0, report=None)
    batch = next(iter(batches))
    assert batch["images"].shape == (4, 3, 64, 64, 3)
    stored = source(prepared, num_frames=16, extras=("mask", "depth"))
    clips = [stored.read(index) for index in range(len(stored))]
    mirrored = 0
    for row in range(4):
        for image in range(3):
            ((clip, frame, turn),) = [
                (clip, frame, turn)
                for clip in clips
                for frame in range(16)
                for turn in (1, -1)
                if (clip["video"][frame][:, ::turn] == batch["images"][row, image]).all()
            ]
            mirrored += turn < 0
            for name in ("mask", "depth"):
                found = batch[f"image_{name}"][row, image]
                np.testing.assert_array_equal(found, clip[name][frame][:, ::turn], err_msg=name)
    assert 0 < mirrored < 12


def test_clips_and_frames_are_rendered_without_preparing(tmp_path):
    data = {"name": "scenes", "config": TWO.name, "data_dir": str(tmp_path), "split": "train"}
    whole = clips.from_data(ConfigDict(data | {"num_frames": 16}), 3, seed=0)
    frames = clips.from_data(ConfigDict(data | {"num_frames": 1}), 3, seed=0)
    assert whole.description["split"] == frames.description["split"] == "held_out"
    assert frames.videos.shape == (3, 1, 64, 64, 3)
    for index, (drawn, clip) in enumerate(builder.clips(TWO, "held_out", 3)):
        np.testing.assert_array_equal(whole.videos[index], clip.video)
        assert whole.captions[index] == drawn.caption
        number = index * 7 % 16
        np.testing.assert_array_equal(frames.videos[index, 0], clip.video[number])
        assert frames.captions[index] == drawn.frame_captions[number]
    for count, wanted in ((16, whole), (1, frames)):
        section = ConfigDict(data | {"num_frames": count})
        listed = tfds_source.rendered_captions(section, "held_out")
        assert set(wanted.captions) <= set(listed)
        assert any("moving" in text for text in listed) == (count == 16)
    with pytest.raises(DataError, match="scenes has .*64x64x16_two"):
        clips.from_rendered("scenes", "16x16x8", "train", 1)
    assert not list(tmp_path.iterdir())


def test_show_writes_a_sheet(prepared, tmp_path, capsys):
    data = [f"--data=scenes/{prepared['config']}", f"--data_dir={prepared['data_dir']}"]
    out = tmp_path / "sheet.png"
    arguments = ["--num_clips=3", "--extras=mask,edges", f"--out={out}"]
    assert show_data.main([*data, *arguments]) == 0
    assert "split train: 12 clips" in capsys.readouterr().out
    whole = Image.open(out).size
    assert show_data.main([*data, "--num_frames=1", "--num_clips=3", f"--out={out}"]) == 0
    assert Image.open(out).size < whole
    with pytest.raises(SystemExit):
        show_data.main([f"--out={out}"])
