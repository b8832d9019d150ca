"""What hosts have to read and to decode, and that it is hardly more than what is learned from."""

import functools

import pytest

from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.cli import compile as compile_
from vdm_jax.cli import compile_pages, feeding
from vdm_jax.stage import sampler as sampling

CONFIGS = config_lib.config_folder()
PAPER = [
    f"{file.parts[-3]}/paper/{file.stem}"
    for file in sorted(CONFIGS.glob("*/paper/*.py"))
    if file.stem not in ("_recipe", "cascade")
]
PAPER += [
    f"vdm/{file.stem}" for file in sorted(CONFIGS.glob("vdm/*.py")) if "moving" not in file.stem
]


@functools.cache
def load(name):
    config = config_lib.load_config(name)
    return config, systems.build(config)


def test_every_paper_configuration_is_there():
    assert len(PAPER) >= 16 and "lumiere/paper/t2i_ssr" in PAPER


@pytest.mark.parametrize("name", PAPER)
def test_a_batch_is_hardly_more_than_what_is_learned_from(name):
    config, stage = load(name)
    images = config.data.image_frames
    batch = feeding.batch_bytes(stage, config.train.batch_size, images)
    learned = feeding.learned_bytes(stage, config.train.batch_size, images)
    assert learned <= batch <= 1.3 * learned
    # The pixels alone too: text is most of a batch of small frames.
    shapes = stage.abstract_batch(1, images)
    pixels = sum(feeding._bytes(shapes[key]) for key in ("video", "images") if key in shapes)
    frames, height, width = stage.view.crop_shape
    assert pixels <= 1.3 * 3 * (frames + images) * height * width


def test_the_largest_batches_have_become_small():
    """Whole clips were 65 GB a step for Lumiere's image super-resolution, 97 for the last SSR."""
    sizes = {"lumiere/paper/t2i_ssr": 0.06, "imagen_video/paper/ssr_1280x768": 7.2}
    for name, most in sizes.items():
        config, stage = load(name)
        shapes = stage.abstract_batch(config.train.batch_size)
        assert feeding._bytes(shapes["video"]) < most * 1e9


def test_needs_scale_with_the_speed_and_the_pixels():
    config, stage = load("imagen_video/paper/ssr_1280x768")
    rate = feeding.Rate(
        shape=(2, 96, 160), clips_per_second=64.0
    )  # 1/64 of the frames, 1/64 of h w
    needs = functools.partial(feeding.needs, config, stage, family="v5p", rate=rate)
    one = needs(devices=64, slices=1, clips_per_second=16.0)
    # 16 clips a second of 64 * 64 times the pixels, 64 small clips a second and core.
    assert one.cores == 16 * 64 * 64 / 64 and one.hosts == 16 and one.host_clips == 1.0
    assert one.hosts_needed == -(-1024 // 208)
    assert one.step_bytes == feeding.batch_bytes(stage, 256) == 16 * one.host_bytes
    fast = needs(devices=64, slices=1, clips_per_second=32.0)
    assert (fast.cores, fast.step_bytes) == (2 * one.cores, one.step_bytes)
    # Single frames: one is decoded, not 80.
    _, image = load("lumiere/paper/t2i_ssr")
    assert feeding.decoded_pixels(image) == 1024 * 1024
    assert feeding.decoded_pixels(image, image_frames=2) == 3 * 1024 * 1024
    gpus = feeding.needs(
        config, stage, family="h100", devices=16, slices=2, clips_per_second=1.0, rate=rate
    )
    assert (gpus.hosts, gpus.host_cores, gpus.hosts_needed) == (2, 0, 0)


def test_the_page_has_a_row_for_every_sampler():
    rows = compile_pages.requests("0")["Sampling"]
    cascades = ("imagen_video/paper/", "lumiere/paper/")
    stages = [name for name in PAPER if name.startswith(cascades)]
    assert {row.config for row in rows} >= set(stages)
    assert all(row.what == "sample" for row in rows)
    for row in [row for row in rows if row.config in stages]:
        config, stage = load(row.config)
        sampler = sampling.Sampler.from_config(stage, config.sample)
        assert sampler.batch_size == 4 and row.topology == "v5p:2x2x1"  # a clip a chip


def test_cells_of_the_page():
    config, stage = load("lumiere/paper/t2i_ssr")
    found = feeding.needs(
        config, stage, family="v5p", devices=64, slices=1, clips_per_second=3933.0
    )
    cells = compile_pages.feeding_cells(found.to_dict())
    assert cells.count("|") == compile_pages.FEEDING_HEAD[0].count("|")
    assert "| 246 |" in cells and "of 16 |" in cells
    rows = dict(compile_._feeding_rows(found.to_dict()))
    assert rows["hosts"] == "16" and rows["clips to decode"] == "245.8 a second and host"
    assert rows["hosts to decode them"] == "1, of 208 virtual cores each"
