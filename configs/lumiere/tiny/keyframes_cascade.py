"""What Lumiere is compared with: keyframes, and a model that fills in the frames between them.

Command: python -m launch.train_cascade --workdir=DIR \\
             --cascade=configs/lumiere/tiny/keyframes_cascade.py
"""

from vdm_jax.pipelines import cascade as cascade_sampling


def get_config():
    return cascade_sampling.cascade_config(["keyframes", "tsr"])
