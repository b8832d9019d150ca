"""What Lumiere is compared with: keyframes, and a model that fills in the frames between them.

Command: vdm train --config=lumiere/tiny/keyframes_cascade --workdir=DIR
"""

from vdm_jax.pipelines import cascade as cascade_sampling


def get_config():
    return cascade_sampling.cascade_config(["keyframes", "tsr"])
