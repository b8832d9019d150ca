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
from vdm_jax.systems import imagen_video, vdm
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


def tiny_base() -> ConfigDict:
    """The image model of 16 x 16 pixels for moving shapes: four frames of a clip a step, each on
    its own."""
    config = _tiny(stage_config("t2i_base", (4, 16, 16), fps=24.0))
    config.process.logsnr_shift = -2.0
    config.train.steps = 5000
    config.sample.steps = 64
    config.sample.guidance = 2.0
    return config


def tiny_ssr() -> ConfigDict:
    """The image model that makes 32 x 32 of 16 x 16 pixels."""
    config = _tiny(stage_config("t2i_ssr", (4, 32, 32), low_res=(4, 16, 16), fps=24.0))
    imagen_video.about_bilinear(config)
    # Beyond half of the times the condition is all but noise, and sampling uses a tenth of them.
    config.stage.max_augmentation = 0.5
    config.train.steps = 3000
    config.sample.steps = 32
    config.sample.augmentation = 3.0
    return config


def whole_clip(config: ConfigDict) -> ConfigDict:
    """Makes a tiny image model's configuration that of its space-time U-Net of 32 frames."""
    inflate(config, resize=(0,))
    _, *size = config.stage.shape
    config.stage.shape = (32, *size)
    if config.stage.low_res:
        config.stage.low_res = (32, *config.stage.low_res[1:])
    config.stage.frame_strides = ()
    config.model.temporal_depth = 2
    return config


def _tiny(config: ConfigDict) -> ConfigDict:
    vdm.two_cores(config)
    size = config.stage.shape[1]
    config.stage.frame_strides = (8,)
    config.model.channels = 64
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = (1, 1)
    config.model.attention_levels = (0, 1)
    config.model.patch_size = 4
    config.model.coordinates = True
    config.text.encoder = "words"
    config.text.max_length = 8
    config.text.vocabulary_size = 16
    config.data.name = "moving_shapes"
    config.data.config = f"{size}x{size}x32"
    config.data.num_frames = 32
    config.data.image_size = config.data.image_width = size
    return config


def paper_base() -> ConfigDict:
    """The image model of 128 x 128 at the paper's size."""
    config = _paper(stage_config("t2i_base", (1, 128, 128), fps=16.0), frames=80, size=128)
    config.model.channels = 256
    config.model.num_res_blocks = (2, 3, 3, 3)
    config.model.attention_levels = (1, 2, 3)
    config.sample.guidance = 8.0
    return config


def paper_ssr() -> ConfigDict:
    """The image model that makes 1024 x 1024 of 128 x 128."""
    config = stage_config("t2i_ssr", (1, 1024, 1024), low_res=(1, 128, 128), fps=16.0)
    config = _paper(config, frames=80, size=1024)
    config.model.channels = 128
    config.model.num_res_blocks = (2, 2, 4, 4)
    # Convolutions only over space: it is trained on parts of frames.
    config.model.attention_levels = (3,)
    config.model.spatial_attention = "none"
    config.model.norm_groups = 0
    config.model.patch_size = 4
    config.sample.augmentation = 3.0
    return config


def _paper(config: ConfigDict, *, frames: int, size: int) -> ConfigDict:
    config.stage.frame_strides = (1,)
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.head_dim = 64
    config.model.remat = "full"
    config.text.encoder = "t5_xxl"
    config.text.max_length = 128
    config.data.name = "video_folder"
    config.data.num_frames = frames
    config.data.image_size = config.data.image_width = size
    config.data.fps = 16.0
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 10_000
    config.train.steps = 500_000
    config.sample.threshold = "dynamic"
    return config
