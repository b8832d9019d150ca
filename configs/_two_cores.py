"""What trains on two cores within minutes: small stages of any system."""

from ml_collections import ConfigDict


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


def few_updates(config: ConfigDict) -> ConfigDict:
    """Sets how a model that starts from an image model is trained for some hundred updates."""
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.99
    config.train.log_every = 25
    config.train.sample_every = 0
    config.checkpoint.every = 100
    return config
