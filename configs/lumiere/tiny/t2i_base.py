"""Lumiere on moving shapes, first: text to images of 16 x 16.

Command: python -m launch.prepare_data --data=moving_shapes --config=16x16x32 --data_dir=data
         python -m launch.train --config=configs/lumiere/tiny/t2i_base.py --workdir=DIR/t2i_base
Hardware: 2 CPU cores are enough.
"""

from vdm_jax.systems import lumiere


def get_config():
    return lumiere.tiny_base()
