"""Video diffusion models in JAX: text in, video out.

As a library (command lines are in `launch/`):

    import jax, vdm_jax

    model = vdm_jax.load("moving_shapes")
    video = model.sample(jax.random.key(0), prompt="a red circle moving left")
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load", "save_model"]

if TYPE_CHECKING:
    from vdm_jax.pipelines.model import load, save_model


def __getattr__(name: str):
    # On first use: data workers import this package and must not pay for networks and Orbax.
    if name in ("load", "save_model"):
        from vdm_jax.pipelines import model as pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
