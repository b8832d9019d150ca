"""Video LDM (Blattmann, Rombach, Ling, Dockhorn, Kim, Fidler & Kreis 2023, "Align your latents").

A latent image model becomes a video model: after each of its layers stands one over frames, a
residual block of (3, 1, 1) convolutions or an attention over frames with sinusoidal positions
(section 3.1). The result z' of that layer is blended with its input z as α z + (1 − α) z' by a
learned α. Here the layers also end in a map that starts at zero, so training starts from the image
model exactly.

The image model's layers are fixed. Only the layers over frames are trained, on the image model's
noise levels. Images that are trained beside clips skip them.

The paper's prediction, interpolation and upsampling models, and the fine-tuning of the decoder, are
not here.
"""

import dataclasses

from ml_collections import ConfigDict

from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.frame_blending import Blended, FrameResiduals
from vdm_jax.models.motion_module import MotionModules
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import latent_image
from vdm_jax.systems.latent_image import frozen_networks, make_scheduler, read_frozen

__all__ = ["NAME", "build", "default_config", "frozen_networks", "make_scheduler", "read_frozen"]
NAME = "video_ldm"
TEMPORAL = "_temporal/"  # in the paths of the layers over frames


def build(config: ConfigDict) -> Stage:
    """The image model with layers over frames, which alone are trained. Raises as
    `latent_image.build`."""
    image, temporal = latent_image.build(config), config.temporal
    settings = image.network.settings
    attention = MotionModules(
        heads=settings.heads,
        max_frames=temporal.max_frames,
        norm_groups=settings.norm_groups,
        norm_over_frames=False,
        middle=True,
    )
    slots = Slots(after_residual=FrameResiduals(), after_attention=Blended(slot=attention))
    return dataclasses.replace(
        image,
        network=image.network.clone(slots=slots),
        train_only=TEMPORAL if temporal.train_only else "",
        new=TEMPORAL,
    )


def default_config() -> ConfigDict:
    """Every field of a configuration: Stable Diffusion 1.5's, with clips of 8 frames of 320 x 512
    pixels (section 4.2; the number of frames is ours)."""
    config = latent_image.default_config().unlock()
    config.system = NAME
    # The longest clip that can be sampled, and whether the image model's layers are fixed.
    config.temporal = ConfigDict({"max_frames": 32, "train_only": True})
    config.data.update({"num_frames": 8, "image_size": 512})
    config.train.learning_rate = 1e-4
    return config.lock()
