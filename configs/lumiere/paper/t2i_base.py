"""Lumiere's image model, 128 x 128, of the size that its paper does not give.

Command: python -m launch.train --config=configs/lumiere/paper/t2i_base.py --workdir=DIR/t2i_base
Hardware: a pod; see docs/pods.md.

About as large as Imagen's base model (2 billion parameters), which the paper's image model is said
to follow.
"""

from vdm_jax.systems import lumiere


def get_config():
    return lumiere.paper_base()
