"""Video Diffusion Models (Ho, Salimans, Gritsenko, Chan, Norouzi & Fleet 2022).

One 3D U-Net, factorised over space and time, trained on clips with independent images appended to
them (sections 3 and 4.3.1), in continuous time with the cosine schedule (section 2). Sampled with
classifier-free guidance by the ancestral sampler or DDIM. The defaults here are what appendix A
has in common for all its models of 16 x 64 x 64.
"""

from typing import Any

from ml_collections import ConfigDict

from vdm_jax.diffusion.process import make_process
from vdm_jax.stage import sampler_fields
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems.composition import prompt_conditions
from vdm_jax.systems.network import default_model, make_network


def build(config: ConfigDict) -> Stage:
    """The model: 3D U-Net and process. Raises ValueError where a value is not allowed."""
    network, text_encoder = make_network(config)
    size = config.data.image_size
    shape = (config.data.num_frames, size, size, config.model.out_channels)
    return Stage(
        network=network,
        process=make_process(config.process),
        space=PixelSpace(data_shape=shape),
        view=View(shape=shape),
        conditions=prompt_conditions(config, text_encoder),
    )


def default_config() -> ConfigDict:
    """Every field of a VDM configuration, with the defaults that all of them share."""
    return ConfigDict(
        {
            "system": "vdm",
            "device": "any",
            # Sizes of the mesh's axes within a slice and over slices; -1: what the others leave.
            "mesh": {
                "data": -1,
                "fsdp": 1,
                "tensor": 1,
                "context": 1,
                "dcn_data": -1,
                "dcn_fsdp": 1,
                "dcn_tensor": 1,
                "dcn_context": 1,
                "min_fsdp_size": 2**16,
                # Whether frozen parameters lie in the host's memory (`parallel.host_memory`).
                "offload": False,
            },
            "model": default_model(),
            "process": {
                "schedule": "cosine",
                "logsnr_min": -20.0,
                "logsnr_max": 20.0,
                "logsnr_shift": 0.0,
                "prediction": "v",
                "loss": "v_mse",
            },
            # Where the vocabulary is empty, training fills it with the data's most frequent words.
            # weights, dtype ("" = float32) and identity are for frozen encoders, see
            # `frozen_text.make_frozen_text_encoder`; training fills an empty identity.
            "text": {
                "encoder": "none",
                "max_length": 32,
                "vocabulary_size": 8192,
                "vocabulary": (),
                "weights": "",
                "dtype": "",
                "identity": "",
            },
            "data": {
                "name": "moving_shapes",
                "config": "",
                "data_dir": "data",
                "split": "train",
                "num_frames": 16,
                "image_size": 64,
                "image_width": 0,  # 0 = image_size
                "frame_stride": 1,
                "fps": 0.0,
                "source_fps": 0.0,  # training fills it: the files' own rate, where fps = 0
                "image_frames": 0,
                "augment": (),
                "workers": 4,
            },
            "train": _train_section(),
            "checkpoint": {"every": 5000, "keep": 3, "fallback": False},
            "sample": sampler_fields.default_section(),
        }
    ).lock()


def _train_section() -> dict[str, Any]:
    return {
        "init_from": "",
        # LoRA: rank 0 = none, alpha 0 = rank, targets a regular expression over paths of
        # kernels ("" = all), base the model that is adapted. Training fills the digest.
        "lora": {"rank": 0, "alpha": 0.0, "targets": "", "base": "", "digest": ""},
        "steps": 100_000,
        "minutes": 0.0,
        "batch_size": 128,
        "seed": 0,
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "schedule": "constant",
        "warmup_steps": 1000,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 0.0,
        "moment_dtype": "float32",
        "clip_norm": 1.0,
        "skip_nonfinite": 0,
        "accumulate": 1,
        "ema_decay": 0.9999,
        "cond_dropout": 0.1,
        "log_every": 100,
        "sample_every": 10_000,
        "sample_prompts": (),
    }
