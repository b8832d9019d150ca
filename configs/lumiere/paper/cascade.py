"""Lumiere at the paper's frames and resolutions: two image models, and what is inflated from them.

Command: vdm train --config=lumiere/paper/cascade --workdir=DIR
         vdm sample --model=DIR --prompt="a dog that runs over a beach"
"""

from vdm_jax.pipelines import cascade as cascade_sampling


def get_config():
    return cascade_sampling.cascade_config(
        ["base_80f_128", "ssr_1024"], init_from={"base_80f_128": "t2i_base", "ssr_1024": "t2i_ssr"}
    )
