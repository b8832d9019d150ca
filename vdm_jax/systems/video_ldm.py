"""Video LDM (Blattmann, Rombach, Ling, Dockhorn, Kim, Fidler & Kreis 2023, "Align your latents").

A latent image model becomes a video model: after each of its layers stands one over frames, a
residual block of (3, 1, 1) convolutions or an attention over frames with sinusoidal positions
(section 3.1). The result z' of that layer is blended with its input z as α z + (1 − α) z' by a
learned α. Here the layers also end in a map that starts at zero, so training starts from the image
model exactly.

The image model's layers are fixed. Only the layers over frames are trained, on the image model's
noise levels. Images that are trained beside clips skip them. The models are instances of this one
network, each a configuration:

- Prediction (section 3.2): the latents of known frames and a mask are inputs too. Training draws
  0, 1 or 2 context frames at the beginning of a clip (`stage.masks`), so a sample is made of a text
  alone, or goes on from a video. Guidance by the context is `context_guidance`.
- Interpolation (section 3.3): by the same inputs the first and the last frame of a clip are known.
  One model, which takes the frame rate, makes T key frames 4T frames, and these 16T.
- The decoder of the autoencoder gets layers over frames too (section 3.1.1). It is trained alone:
  `systems.autoencoder`, by the class `AutoencoderKLFrameDecoder`.

The paper's known frames enter the layers over frames; here they enter by a convolution of their
own, added to z's, which starts at zero and equals further inputs of the first convolution. The
paper's interpolation takes a bit for the frame rate; here it takes the rate. The paper's upsampling
models are not here.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.condition import Number
from vdm_jax.models.condition.channels import KNOWN_FRAMES
from vdm_jax.models.frame_blending import Blended, FrameResiduals
from vdm_jax.models.motion_module import MotionModules
from vdm_jax.stage.conditions.prompt import TextOrNull
from vdm_jax.stage.conditions.scalar import FrameRate
from vdm_jax.stage.conditions.video import ContextFrames
from vdm_jax.stage.guidance import Nested
from vdm_jax.stage.protocols import Condition
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems import latent_image
from vdm_jax.systems.composition import make_view, stage_section
from vdm_jax.systems.latent_image import frozen_networks, make_scheduler, read_frozen

__all__ = [
    "NAME",
    "build",
    "context_guidance",
    "default_config",
    "frozen_networks",
    "make_scheduler",
    "read_frozen",
]
NAME = "video_ldm"
# In the paths of the layers over frames, and of what takes known frames and the frame rate.
TEMPORAL = "_temporal/|^masked_video_conv/|^condition/fps_"
# Frames a second by their logarithm; at first without effect.
_FRAME_RATE = Number(key="fps", max_period=10.0, log2=True, zero=True)


def build(config: ConfigDict) -> Stage:
    """The image model with layers over frames, which alone are trained. Raises as
    `latent_image.build`."""
    image, temporal = latent_image.build(config), config.temporal
    view = _view(config, image.view)
    space = dataclasses.replace(
        image.space,
        data_shape=view.shape,
        encode_frames=temporal.decode_frames,
        decode_frames=temporal.decode_frames,
        decode_overlap=_overlap(temporal, image.space.autoencoder),
    )
    conditions: list[Condition] = []
    if kinds := tuple(config.stage.masks):
        known = ContextFrames(shape=space.data_shape, z_shape=space.z_shape, kinds=kinds)
        conditions.append(known)
    if view.data_fps:
        conditions.append(FrameRate(fps=view.fps, trained=view.rates))
    return dataclasses.replace(
        image,
        network=image.network.clone(
            slots=_slots(config, image.network.settings),
            videos=(*image.network.videos, *([KNOWN_FRAMES] if kinds else [])),
            conditions=(_FRAME_RATE,) if view.data_fps else (),
        ),
        space=space,
        view=view,
        conditions=(*image.conditions, *conditions),
        train_only=TEMPORAL if temporal.train_only else "",
        new=TEMPORAL,
    )


def _slots(config: ConfigDict, settings: Any) -> Slots:
    """The layers over frames (section 3.1)."""
    attention = MotionModules(
        heads=settings.heads,
        max_frames=config.temporal.max_frames,
        norm_groups=settings.norm_groups,
        norm_over_frames=False,
        middle=True,
    )
    return Slots(after_residual=FrameResiduals(), after_attention=Blended(slot=attention))


def _view(config: ConfigDict, whole: View) -> View:
    """How clips are made of the data's: `config.stage`, without a shape there all of each."""
    if config.stage.shape:
        return make_view(config, whole.shape[-1])
    return dataclasses.replace(whole, data_fps=float(config.stage.data_fps))


def _overlap(temporal: ConfigDict, autoencoder: Autoencoder) -> int:
    """Frames that are decoded with two neighbouring parts, where the decoder mixes frames."""
    most = temporal.decode_frames - 1 if autoencoder.frame_reach else 0
    return min(temporal.decode_overlap, most)


def context_guidance(*, context: float, text: float) -> Nested:
    """ε(∅) + s (ε(c_S) − ε(∅)) + g (ε(c_S, text) − ε(c_S)): guidance by the context frames c_S with
    the scale s (equation 7), and by the text with the scale g.

    For the field `guidance` of a sampler. A sampler's own guidance leads towards both by one scale.
    """
    return Nested(scales=((ContextFrames.name, context), (TextOrNull.name, text)))


def default_config() -> ConfigDict:
    """Every field of a configuration: Stable Diffusion 1.5's, with clips of 8 frames of 320 x 512
    pixels (section 4.2; the number of frames is ours).

    `config.stage` is `stage_section`'s; of it count shape, frame_strides, data_fps (0 = the network
    takes no frame rate), and masks: the kinds of known frames that training draws, of
    `diffusion.masks.KINDS`; () = the network takes no known frames.
    """
    config = latent_image.default_config().unlock()
    config.system = NAME
    # The longest clip that can be sampled, whether the image model's layers are fixed, how many
    # frames are decoded at once, and how many of them with both of two neighbouring parts.
    config.temporal = ConfigDict(
        {"max_frames": 32, "train_only": True, "decode_frames": 8, "decode_overlap": 4}
    )
    config.stage = stage_section(masks=())
    config.data.update({"num_frames": 8, "image_size": 512})
    config.train.learning_rate = 1e-4
    return config.lock()
