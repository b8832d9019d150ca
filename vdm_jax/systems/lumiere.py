"""Lumiere (Bar-Tal, Chefer, Tov, Herrmann, Paiss, Zada, Ephrat, Hur, Liu, Raj, Li, Rubinstein,
Michaeli, Wang, Sun, Dekel & Mosseri 2024): all frames of a clip in one pass.

A text-to-image U-Net is trained first. Inflated (section 3.1), it becomes a space-time U-Net, that
halves and doubles frames as it does height and width: convolutions over space and time follow its
layers at all levels but the coarsest, attention over time at that. The inflated network first
returns what the image model returns for each frame (`models.space_time_unet`), and only what is new
is trained. A super-resolution model is made likewise, trained on few frames in a row and
sampled in overlapping windows, whose predictions are averaged at each step (section 3.2,
`diffusion.windows`). Of a video a part may be known (section 4.2, `diffusion.masks`): one model
makes clips from images, completes them, and moves a part of a still.

The paper gives frames, resolutions and window overlap, not the networks' sizes: those are ours.
"""

from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.stage.conditions.video import MaskedVideo
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import vdm
from vdm_jax.systems.composition import cascade_parts, prompt_conditions, stage_section
from vdm_jax.systems.network import make_network

# The parameters that inflation adds to an image model.
NEW = "_temporal/|^masked_video_conv/"


def build(config: ConfigDict) -> Stage:
    """An image model, a space-time U-Net, or a super-resolution model of either.

    Raises ValueError where a value is not allowed.
    """
    network, text_encoder = make_network(
        config, low_res=bool(config.stage.low_res), masked_video=bool(config.stage.masks)
    )
    parts = cascade_parts(config, frame_rate=False)
    conditions = prompt_conditions(config, text_encoder) + parts.pop("conditions")
    if config.stage.masks:
        shape = parts["view"].shape
        conditions += (MaskedVideo(shape=shape, kinds=tuple(config.stage.masks)),)
    inflated = config.model.temporal == "space_time"
    return Stage(
        network=network,
        **parts,
        conditions=conditions,
        train_only=NEW if config.stage.train_new_only else "",
        new=NEW if inflated else "",
    )


def stage_config(
    name: str,
    shape: tuple[int, int, int],
    *,
    low_res: tuple[int, int, int] | tuple[()] = (),
    fps: float,
) -> ConfigDict:
    """The configuration of an image model that makes or refines frames of `shape` (f, h, w), all
    but the size of its network; `inflate` makes a space-time U-Net of it."""
    config = vdm.default_config().unlock()
    config.system = "lumiere"
    config.stage = stage_section(
        name=name,
        shape=shape,
        low_res=low_res,
        data_fps=fps,
        masks=(),
        train_new_only=False,
    )
    config.model = ConfigDict(
        {
            **config.model.to_dict(),
            "num_res_blocks": (2, 2, 2, 2),
            "temporal": "none",
            "temporal_levels": (),
            "temporal_resize": (),
            "temporal_depth": 1,
        }
    )
    config.data.image_width = shape[2]
    return config.lock()


def inflate(config: ConfigDict, *, resize: tuple[int, ...]) -> ConfigDict:
    """Makes the configuration of an image model that of the space-time U-Net inflated from it.

    resize: the levels after which frames are halved. `train.init_from` is to name the image model.
    """
    config.stage.train_new_only = True
    config.model.temporal = "space_time"
    config.model.temporal_levels = tuple(range(len(config.model.channel_mult)))
    config.model.temporal_resize = resize
    return config


def stylise(params: PyTree, style: PyTree, amount: float) -> PyTree:
    """The parameters of a space-time U-Net whose image layers lean to another image model's.

    W = amount · W_style + (1 − amount) · W, amount from 0.5 to 1 in the paper (section 4.1).

    Args:
      params: of the space-time U-Net.
      style: of an image model of the same network, fine-tuned on a style.
      amount: from 0 to 1.

    Raises ValueError where the image model does not fit.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount = {amount}: must be from 0 to 1")

    def mixed(own: PyTree, other: PyTree, above: str) -> PyTree:
        if unknown := [name for name in other if name not in own]:
            raise ValueError(f"the image model has {above}{unknown[0]}, the other has not")
        return {name: of(own[name], other.get(name), f"{above}{name}") for name in own}

    def of(own: PyTree, other: PyTree | None, name: str) -> PyTree:
        if other is None:
            return own
        if isinstance(own, dict):
            return mixed(own, other, f"{name}/")
        if own.shape != other.shape:
            raise ValueError(f"{name} is {own.shape}, of the image model {other.shape}")
        return amount * other + (1 - amount) * own

    return mixed(params, style, "")
