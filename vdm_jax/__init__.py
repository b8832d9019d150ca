"""Video diffusion models in JAX: text in, video out.

As a library (the command is `vdm`):

    import jax, vdm_jax

    model = vdm_jax.load("moving_shapes")
    video = model.sample(jax.random.key(0), prompt="a red circle moving left")
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load", "save_model"]

if TYPE_CHECKING:
    from vdm_jax.pipelines import load
    from vdm_jax.pipelines.model import save_model


def __getattr__(name: str):
    # On first use: data workers import this package and must not pay for networks and Orbax.
    if name in ("load", "save_model"):
        from vdm_jax import pipelines

        return pipelines.load if name == "load" else pipelines.model.save_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
