"""Stable Video Diffusion (Blattmann, Dockhorn, Kulal, Mendelevitch, Kilian, Lorenz, Levi, English,
Voleti, Letts, Jampani & Rombach 2023): a latent image model, trained further on video.

The network is a latent image U-Net with layers over frames in its slots (`models.frame_blending`,
appendix D). It is preconditioned as in EDM (Karras et al. 2022) with c_skip = 1 / (σ² + 1), c_out =
−σ / √(σ² + 1), c_in = 1 / √(σ² + 1), c_noise = log σ / 4 and weight (1 + σ²) / σ². With z = c_in
(x + σ ε) that is velocity prediction with weight 1. Training draws log σ from N(P_mean, P_std²).

Three stages of training follow one another (section 3 and appendix D), each a configuration:

1. An image model that predicts ε on discrete timesteps is trained on to these noise levels
   (`model.temporal = False`).
2. Layers over frames are added, and all layers are trained on captioned clips.
3. The network takes the image that a clip begins with: its latents beside z, its embedding in the
   place of the text, or beside the text (`model.still`, `model.context`).

Samples are guided by a scale that rises over the frames. The null condition keeps the numbers
(section 4.3).
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vdm_jax.data import frame_rate
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import EDMSchedule, LogNormal
from vdm_jax.models.autoencoder import Autoencoder, AutoencoderKLTemporalDecoder
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.stage.conditions.prompt import TextOrNull
from vdm_jax.stage.conditions.still import Micro, Still
from vdm_jax.stage.image_encoder import IMAGE_ENCODER
from vdm_jax.stage.protocols import Condition
from vdm_jax.stage.space import AUTOENCODER, LatentSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems import vdm
from vdm_jax.systems.composition import FrozenPart
from vdm_jax.systems.image_embedding import (
    abstract_image_encoder,
    make_image_encoder,
    part_folder,
    read_image_encoder,
)
from vdm_jax.systems.network import DTYPES, make_text_encoder
from vdm_jax.weights import autoencoder as autoencoder_weights
from vdm_jax.weights import scheduler
from vdm_jax.weights import stable_video as weights

NAME = "stable_video"
CONTEXTS = ("still", "text")
# What a model of images, or of text and clips, lacks.
NEW = "temporal|^condition/numbers_"
WIDER = "^input_conv/kernel$"
HERE = Path("configuration")  # what errors name in the place of a file


def build(config: ConfigDict) -> Stage:
    """The model: U-Net, process, latent space and conditions. Raises ValueError,
    FileNotFoundError."""
    model, data, schedule = config.model, config.data, make_scheduler(config)
    autoencoder = make_autoencoder(config)
    network = make_network(config)
    size = (data.image_size, data.image_width or data.image_size, autoencoder.in_channels)
    shape = (model.frames or data.num_frames, *size)
    overlap = min(model.decode_overlap, model.decode_frames - 1) if autoencoder.frame_reach else 0
    space = LatentSpace(
        data_shape=shape,
        autoencoder=autoencoder,
        encode_frames=model.decode_frames,
        decode_frames=model.decode_frames,
        decode_overlap=overlap,
    )
    return Stage(
        network=network,
        process=Process(
            schedule=EDMSchedule(sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max),
            prediction="v",
            loss_name="v_mse",
            training_schedule=LogNormal(P_mean=config.process.P_mean, P_std=config.process.P_std),
        ),
        space=space,
        view=View(
            shape=shape,
            data_shape=(data.num_frames, *size),
            data_fps=frame_rate.playback(config),
            frame_strides=_frame_strides(config),
        ),
        conditions=_conditions(config, network, space),
        new=NEW if model.temporal else "",
        wider=WIDER if model.still else "",
    )


def _frame_strides(config: ConfigDict) -> tuple[int, ...]:
    """`model.frame_strides`. Raises ValueError where they do not fit `model.frames`."""
    frames, strides = config.model.frames, tuple(config.model.frame_strides)
    if bool(frames) != bool(strides) or (strides and strides[0] != 1):
        raise ValueError(
            f"model.frames = {frames}, model.frame_strides = {strides}: set both or neither; the "
            "first stride must be 1"
        )
    return strides


def make_network(config: ConfigDict) -> LatentUNet:
    """The U-Net of `config.model`. Raises ValueError where a value is not allowed."""
    model = config.model
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    if model.context not in CONTEXTS or (model.context == "still" and not model.still):
        allowed = ", ".join(CONTEXTS) if model.still else "text, without model.still"
        raise ValueError(f"model.context = {model.context!r}: allowed are {allowed}")
    if model.still and not model.temporal:
        raise ValueError("model.still = True: needs model.temporal = True")
    network = weights.from_config(model.unet.to_dict(), HERE)
    videos = network.videos if model.still else ()
    if network.in_channels != (1 + len(videos)) * network.out_channels:
        raise ValueError(
            f"model.unet.in_channels = {network.in_channels}: must be "
            f"{(1 + len(videos)) * network.out_channels} with model.still = {model.still}"
        )
    return network.clone(
        text=weights.CONTEXT if model.context == "still" else "text_embeddings",
        conditions=network.conditions if model.temporal else (),
        videos=videos,
        slots=network.slots if model.temporal else Slots(),
        dtype=DTYPES[model.dtype],
        remat=model.remat,
    )


def _conditions(
    config: ConfigDict, network: LatentUNet, space: LatentSpace
) -> tuple[Condition, ...]:
    model, condition, drop = config.model, config.condition, config.train.cond_dropout
    found: list[Condition] = []
    embed = None
    if model.context == "text":
        encoder = make_text_encoder(config)
        width = 0 if encoder is None else encoder.embedding_width
        found.append(TextOrNull(encoder=encoder, drop=drop))
    else:
        embed = make_image_encoder(model.image_encoder)
        width = embed.width
    if width != network.settings.text_width:
        raise ValueError(
            f"model.unet.cross_attention_dim = {network.settings.text_width}: model.context = "
            f"{model.context!r} has {width} features"
        )
    if model.temporal:
        micro = Micro(
            fps=config.sample.fps,
            full_motion=condition.full_motion,
            augmentation=not model.still,
        )
        found.append(micro)
    if model.still:
        still = Still(
            shape=space.data_shape[1:],
            latent_shape=space.z_shape[1:],
            scale=space.autoencoder.scaling_factor,
            shift=space.autoencoder.shift_factor,
            encoder=embed,
            drop=drop,
            log_mean=condition.augmentation_mean,
            log_std=condition.augmentation_std,
        )
        found.append(still)
    return tuple(found)


def make_scheduler(config: ConfigDict) -> scheduler.Scheduler:
    """The sampler and the range of noise levels of a configuration. Raises ValueError."""
    found = scheduler.from_config(config.model.scheduler.to_dict(), HERE)
    if not found.continuous or None in (found.sigma_min, found.sigma_max):
        raise ValueError(
            "model.scheduler: must have timestep_type = 'continuous', sigma_min and sigma_max"
        )
    return found


def read_frozen(config: ConfigDict) -> dict[str, FrozenPart]:
    """The parameters that are not trained: the autoencoder's and the image encoder's. Raises
    ValueError, FileNotFoundError."""
    folder = part_folder(config.model.autoencoder, "autoencoder")
    network, params = autoencoder_weights.read_folder(folder)
    found = {AUTOENCODER: FrozenPart(params, network.abstract_params())}
    if config.model.context == "still":
        found[IMAGE_ENCODER] = read_image_encoder(config.model.image_encoder)
    return found


def frozen_networks(config: ConfigDict) -> dict[str, Any]:
    """Shapes of `read_frozen`. No weights are read."""
    found: dict[str, Any] = {AUTOENCODER: make_autoencoder(config)}
    if config.model.context == "still":
        found[IMAGE_ENCODER] = abstract_image_encoder(config.model.image_encoder)
    return found


def default_config() -> ConfigDict:
    """Every field of a configuration, with the values of the published image-to-video model of 14
    frames (section 4.3, appendix D)."""
    base = vdm.default_config().to_dict()
    config = ConfigDict(
        {
            **base,
            "system": NAME,
            "model": {
                "unet": weights.config(weights.from_config({"_class_name": weights.CLASS}, HERE)),
                "scheduler": dict(_SCHEDULER),
                # The folder of the autoencoder, and one that holds image_encoder/ and
                # feature_extractor/.
                "autoencoder": "",
                "image_encoder": "",
                # Whether there are layers over frames and numbers.
                "temporal": True,
                # Whether a clip's first frame is an input, and what pixels attend to: text, or the
                # embedding of that frame.
                "still": True,
                "context": "still",
                # Frames of a clip, data.num_frames if 0, and the steps in time of which one is
                # drawn for each clip in training: so many frame rates does the model learn.
                "frames": 0,
                "frame_strides": (),
                # Frames that are decoded at once, and those that neighbouring parts share.
                "decode_frames": 8,
                "decode_overlap": 4,
                "dtype": "bfloat16",
                "remat": "none",
            },
            "process": {"P_mean": 1.0, "P_std": 1.6},
            # See `Still` and `Micro`.
            "condition": {
                "augmentation_mean": -3.0,
                "augmentation_std": 0.5,
                "full_motion": 0.5,
            },
        }
    )
    config.data.update({"num_frames": 14, "image_size": 576, "image_width": 1024})
    config.train.cond_dropout = 0.15
    config.sample.update({"sampler": "euler", "steps": 25, "guidance": 3.0, "threshold": "none"})
    config.sample.update({"augmentation": 0.02, "batch_size": 1})
    config.sample.update({"first_guidance": 1.0, "fps": 7.0, "motion_bucket": 127.0})
    return config.lock()


_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def make_autoencoder(config: ConfigDict) -> Autoencoder:
    """That of the folder; without one the published model's, so that shapes are known. Raises
    ValueError, FileNotFoundError."""
    folder = config.model.autoencoder
    if not folder:
        return AutoencoderKLTemporalDecoder()
    return autoencoder_weights.read_config(part_folder(folder, "autoencoder"))
