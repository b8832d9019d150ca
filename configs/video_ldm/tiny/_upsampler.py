"""Video LDM on scenes, the 4 x upsampler: what its two stages of training have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe

make_a_video = load_recipe(__file__, "../../make_a_video/tiny/_recipe.py")


def upsampler(*, temporal: bool) -> ConfigDict:
    """16 frames of 64 x 64 to 256 x 256 pixels. It is trained on patches of 64 x 64 pixels, with
    noise on the coarse clip, whose level it takes (section 3.4)."""
    config = make_a_video.super_resolution(256, temporal=temporal)
    frames = config.stage.shape[0]
    config.stage.low_res = (frames, 64, 64)
    return config
