"""An Imagen Video stage on a real film, 8 frames of 32 x 32 to 64 x 64, without text.

Command: python -m benchmarks.shots --film=FILM.mp4 --out=DIR/shots
         vdm train --config=imagen_video/film/ssr_64 --workdir=DIR/ssr_64 \\
             --config.data.data_dir=DIR/shots/train
Hardware: 4 minutes of a GPU that others share, or 3 hours of 2 CPU cores.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    return recipe.film_config("ssr_64")
