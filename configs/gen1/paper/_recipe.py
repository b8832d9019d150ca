"""Gen-1 at the paper's size: what its phases have in common (Esser et al. 2023, section 3.5)."""

from ml_collections import ConfigDict

from vdm_jax.systems import gen1


def paper_config(frames: int = 8, *, temporal: bool = True) -> ConfigDict:
    """Clips of 8 x 256 x 448 in the latents of Stable Diffusion 1.5, without structure.

    temporal: whether there are layers over frames. The mesh, the batch, the learning rate and the
    images beside each clip are ours.
    """
    config = gen1.default_config().unlock()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.remat = "full"
    config.model.temporal = temporal
    config.model.structure = False
    config.model.unet.in_channels = config.model.unet.out_channels
    config.data.name = "video_folder"
    config.data.num_frames = frames
    config.data.fps = 8.0
    config.data.image_frames = 2 if frames > 1 else 0
    config.train.batch_size = 128
    return config


def with_structure(config: ConfigDict, max_level: int) -> ConfigDict:
    """The phase with structure at t_s from 0 to `max_level`, the depth of an estimator."""
    config.model.structure = True
    config.model.max_level = max_level
    config.model.unet.in_channels = 2 * config.model.unet.out_channels + 4
    return config
