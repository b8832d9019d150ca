"""Lumiere on moving shapes: images of 16 x 16 to 32 x 32.

Command: vdm train --config=lumiere/tiny/t2i_ssr --workdir=DIR/t2i_ssr
Hardware: 2 CPU cores are enough.
"""

from vdm_jax.systems import lumiere


def get_config():
    return lumiere.tiny_ssr()
