"""Video Diffusion Models (Ho, Salimans, Gritsenko, Chan, Norouzi & Fleet 2022).

One 3D U-Net, factorised over space and time, trained on clips with independent images appended to
them (sections 3 and 4.3.1), in continuous time with the cosine schedule (section 2). Sampled with
classifier-free guidance by the ancestral sampler or DDIM. The defaults here are what appendix A
has in common for all its models of 16 x 64 x 64.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from vdm_jax.diffusion.process import make_process
from vdm_jax.models.text.words import TextEncoder, WordEncoder
from vdm_jax.models.unet3d import UNet3D
from vdm_jax.stage import frozen_text
from vdm_jax.stage.stage import Stage

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: ConfigDict) -> Stage:
    """The model: 3D U-Net and process. Raises ValueError where a value is not allowed."""
    size = config.data.image_size
    network, text_encoder = make_network(config)
    return Stage(
        network=network,
        process=make_process(config.process),
        video_shape=(config.data.num_frames, size, size, network.out_channels),
        text_encoder=text_encoder,
        num_labels=network.num_labels,
        cond_dropout=config.train.cond_dropout,
        takes_guidance=network.guidance_embedding,
    )


def make_network(config: ConfigDict, **fields) -> tuple[UNet3D, TextEncoder | None]:
    """The network of `config.model` and `config.text`, and the text encoder that goes with it.

    fields: further ones of `UNet3D`. Raises ValueError where a value is not allowed.
    """
    model = config.model.to_dict()
    dtype = model.pop("dtype")
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype = {dtype!r}: allowed are {', '.join(DTYPES)}")
    text_encoder = _text_encoder(config.text)
    if text_encoder is not None:
        model |= {
            "vocab_size": text_encoder.vocab_size,
            "max_length": text_encoder.max_length,
            "text_width": text_encoder.embedding_width,
        }
    return UNet3D(**model, **fields, dtype=DTYPES[dtype]), text_encoder


def _text_encoder(text: ConfigDict) -> TextEncoder | None:
    if text.encoder == "none":
        return None
    if text.encoder in frozen_text.ENCODERS:
        return frozen_text.make_frozen_text_encoder(text.to_dict())
    if text.encoder != "words":
        allowed = ", ".join(("none", "words", *frozen_text.ENCODERS))
        raise ValueError(f"text.encoder = {text.encoder!r}: allowed are {allowed}")
    return WordEncoder(
        text.vocabulary, max_length=text.max_length, vocabulary_size=text.vocabulary_size
    )


def two_cores(config: ConfigDict) -> ConfigDict:
    """Sets what small stages that train on two cores within minutes have in common."""
    config.model.head_dim = 32
    config.model.norm_groups = 8
    config.model.skips = "level"
    config.model.output_skip = True
    config.model.embedding_dim = 256
    config.model.dtype = "float32"
    config.process.logsnr_min = -15.0
    config.process.logsnr_max = 10.0
    config.data.workers = 0
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 200
    config.train.ema_decay = 0.998
    config.train.log_every = 50
    config.train.sample_every = 0
    config.checkpoint.every = 1000
    config.sample.sampler = "ddim"
    config.sample.threshold = "static"
    config.sample.batch_size = 32
    return config


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
            },
            "model": {
                "channels": 128,
                "channel_mult": (1, 2, 4, 8),
                "num_res_blocks": 2,
                "attention_levels": (1, 2, 3),
                "head_dim": 64,
                "heads": 0,
                "patch_size": 1,
                "out_channels": 3,
                "norm_groups": 32,
                "dropout": 0.0,
                "spatial_attention": "softmax",
                "skips": "block",
                "coordinates": False,
                "output_skip": False,
                "output_gate": 0,
                "initial_kernel": 3,
                "initial_temporal": False,
                "embedding_dim": 1024,
                "num_labels": 0,
                "null_condition": "learned",
                "frame_positions": False,
                "dtype": "bfloat16",
                "remat": "none",
            },
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
                "image_frames": 0,
                "augment": (),
                "workers": 4,
            },
            "train": {
                "init_from": "",
                "steps": 100_000,
                "minutes": 0.0,
                "batch_size": 128,
                "seed": 0,
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
            },
            "checkpoint": {"every": 5000, "keep": 3, "fallback": False},
            "sample": {
                "sampler": "ancestral",
                "steps": 256,
                "guidance": 1.0,
                "grid": "time",
                "rho": 7.0,
                "sigma_min": 0.002,
                "sigma_max": 80.0,
                "eta": 0.0,
                "gamma": 0.3,
                "churn": 0.0,
                "churn_min": 0.05,
                "churn_max": 50.0,
                "churn_noise": 1.003,
                "corrector": 0.0,
                "threshold": "static",
                "batch_size": 16,
            },
        }
    ).lock()
