"""Tune-A-Video (Wu, Ge, Wang, Lei, Gu, Shi, Hsu, Shan, Qie & Shou 2023): an image model is tuned on
one video, and edits it.

The image model's U-Net becomes one over clips (section 3.2):

- The keys and values of self-attention are those of the first and of the previous frame (sparse
  spatio-temporal attention, eq. 4).
- An attention over the frames at each pixel follows each transformer block
  (`models.frame_attention`).

Trained on the one clip and its prompt are the query projections of self-attention and of attention
to the text, and all of the attention over frames, by the image model's own loss (section 3.3 and
figure 4). All other parameters are the image model's. To edit, the clip is inverted through the
tuned network by DDIM with the empty prompt, and sampled from there with the edited prompt and
guidance (section 3.3).

Two choices differ from the published code, so that an untuned network is the image model applied to
each frame but for what self-attention attends to. The last map of the attention over frames starts
at zero with its bias, of which the code zeroes the weight alone. Normalisations take their
statistics over each frame, where the code takes them over all frames of a clip;
`temporal.norm_over_frames` does as the code does, and published files need it.

With `train.tuning.separate` the model is what is tuned, beside the image model's frozen parameters:
checkpoints and files hold no more. Without it there is one set of parameters, as in published
files.
"""

import dataclasses

from ml_collections import ConfigDict

from vdm_jax.models.blocks.cross_frame import FIRST_AND_PREVIOUS, CrossFrame
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.frame_attention import FrameAttentions
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.stage.beside import Beside
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import latent_image
from vdm_jax.systems.latent_image import frozen_networks, make_scheduler, read_frozen

__all__ = [
    "NAME",
    "build",
    "default_config",
    "frozen_networks",
    "inflated",
    "inflated_config",
    "make_scheduler",
    "read_frozen",
    "tuned",
]
NAME = "tune_a_video"
# In the paths of the layers over frames; those that are trained; those of a tuned model. The
# normalisation before the attention over frames stays as it is initialised, as in the code.
TEMPORAL = r"/temporal_\d+/"
_QUERIES = r"/attention_(self|text)/query/"
TRAINED = rf"{_QUERIES}|/temporal_\d+/attention/"
OWN = f"{_QUERIES}|{TEMPORAL}"


def build(config: ConfigDict) -> Stage:
    """The network over clips as one set of parameters. Raises as `latent_image.build`, and
    ValueError for `temporal.attention`."""
    image, temporal = latent_image.build(config), config.temporal
    network = inflated(
        image.network,
        norm_over_frames=temporal.norm_over_frames,
        attention=temporal.attention,
    )
    return dataclasses.replace(image, network=network, train_only=TRAINED, new=TEMPORAL)


def tuned(config: ConfigDict) -> Beside:
    """`build` with what is tuned as the stage's parameters; the image model's are frozen."""
    return Beside.split(build(config), OWN)


def inflated(
    image: LatentUNet,
    *,
    norm_over_frames: bool = False,
    attention: str | tuple[int, ...] = FIRST_AND_PREVIOUS,
) -> LatentUNet:
    """The network over clips that an image network becomes (section 3.2). Raises ValueError for an
    `attention` that `CrossFrame` does not have."""
    return image.clone(
        slots=Slots(self_attention=CrossFrame(frames=attention), in_transformer=FrameAttentions()),
        settings=dataclasses.replace(image.settings, norm_over_frames=norm_over_frames),
    )


def inflated_config(image: ConfigDict, recipe: ConfigDict) -> ConfigDict:
    """A configuration of this system for an image model.

    Args:
      image: the image model's, from which come network, text, autoencoder and the size of images.
      recipe: of this system, from which comes everything else.
    """
    config, image = (each.copy_and_resolve_references() for each in (recipe, image))
    own = {name: recipe.model[name] for name in ("dtype", "remat")}
    with config.unlocked():
        config.text = image.text
        config.model = ConfigDict({**image.model.to_dict(), **own})
        config.data.image_size = image.data.image_size
        config.data.image_width = image.data.get("image_width", 0)
    return config.lock()


def default_config() -> ConfigDict:
    """Every field of a configuration: Stable Diffusion's, tuned as the published code tunes it:
    24 frames of 512 x 512, 500 updates."""
    config = latent_image.default_config().unlock()
    config.system = NAME
    # What self-attention attends to (`cross_frame.CrossFrame`), and whether normalisations take
    # their statistics over all frames.
    config.temporal = ConfigDict({"attention": FIRST_AND_PREVIOUS, "norm_over_frames": False})
    # Whether the image model `base` is frozen beside what is tuned. Training fills its digest, and
    # `vdm tune` the prompt and a digest of the clip.
    config.train.tuning = ConfigDict(
        {"separate": True, "base": "", "digest": "", "prompt": "", "clip": ""}
    )
    config.data.update({"name": "video_folder", "num_frames": 24, "image_size": 512})
    config.data.frame_stride = 2
    config.data.workers = 0
    config.train.update(
        steps=500,
        batch_size=1,
        learning_rate=3e-5,
        warmup_steps=0,
        beta2=0.999,
        weight_decay=0.01,
        ema_decay=0.0,
        cond_dropout=0.0,
        sample_every=0,
        log_every=10,
    )
    config.checkpoint.update(every=100, keep=1)
    config.sample.update(sampler="ddim", steps=50, guidance=12.5)
    return config.lock()
