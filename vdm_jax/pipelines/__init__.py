"""What users call: models and cascades that sample, edit, save and load."""

from collections.abc import Mapping
from pathlib import Path

from vdm_jax.pipelines import cascade, model
from vdm_jax.pipelines.cascade import CascadeModel
from vdm_jax.pipelines.model import Model


def load(
    source: str | Path = model.DEFAULT,
    *,
    mesh: Mapping[str, int] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    offload: bool = False,
) -> Model | CascadeModel:
    """Loads a trained model or cascade.

    Args:
      source: a shipped name, a .safetensors file, or a working directory of training.
      mesh: sizes of the axes of `parallel.mesh.AXES`, such as {"fsdp": 4}, over all devices; every
        process of the mesh calls this alike. None: the whole model on one device.
      loras: published LoRA files and their scales, which are added to a model's parameters.
      offload: keep frozen networks (autoencoder, text encoder, base of an adapted model) in the
        host's memory, and each on the device only while it is used.

    Raises FileNotFoundError, ValueError, CheckpointError, MeshError.
    """
    if model.find_cascade(source) is not None:
        if loras:
            raise ValueError(f"loras: {str(source)!r} is a cascade, and one model is needed here")
        return cascade.load(source, mesh=mesh, offload=offload)
    return model.load(source, mesh=mesh, loras=loras, offload=offload)
