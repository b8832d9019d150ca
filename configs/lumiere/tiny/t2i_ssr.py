"""Lumiere on moving shapes: images of 16 x 16 to 32 x 32.

Command: python -m launch.prepare_data --data=moving_shapes --config=32x32x32 --data_dir=data
         python -m launch.train --config=configs/lumiere/tiny/t2i_ssr.py --workdir=DIR/t2i_ssr
Hardware: 2 CPU cores are enough.
"""

from vdm_jax.systems import lumiere


def get_config():
    return lumiere.tiny_ssr()
