"""Imagen Video's two cascades: the paper's, and the one for moving shapes of `configs/`."""

from vdm_jax.config import config_folder, load_recipe
from vdm_jax.systems import imagen_video

RECIPE = load_recipe(str(config_folder() / "imagen_video" / "tiny" / "cascade.py"), "_recipe.py")
PAPER, TINY = imagen_video.PAPER, RECIPE.TINY
CASCADES = {"paper": PAPER, "tiny": TINY}
