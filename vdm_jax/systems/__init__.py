"""The systems of the field, one file each, composed of the library's parts."""

from vdm_jax.stage.stage import Stage
from vdm_jax.systems import imagen_video, lumiere, vdm

SYSTEMS = {"vdm": vdm.build, "imagen_video": imagen_video.build, "lumiere": lumiere.build}


def build(config) -> Stage:
    """The stage that a configuration describes; `config.system` names the system.

    Raises ValueError where a field's value is not allowed.
    """
    if config.system not in SYSTEMS:
        raise ValueError(f"system = {config.system!r}: allowed are {', '.join(SYSTEMS)}")
    return SYSTEMS[config.system](config)
