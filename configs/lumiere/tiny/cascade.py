"""Lumiere on moving shapes: two image models, and what is inflated from them.

Command: vdm train --config=lumiere/tiny/cascade --workdir=DIR
         vdm sample --model=DIR --prompt="a red circle moving left"
"""

from vdm_jax.pipelines import cascade as cascade_sampling


def get_config():
    return cascade_sampling.cascade_config(
        ["base_32f_16", "ssr_32"], init_from={"base_32f_16": "t2i_base", "ssr_32": "t2i_ssr"}
    )
