"""Imagen Video (Ho, Chan, Saharia, Whang, Gao, Gritsenko, Kingma, Poole, Norouzi, Fleet & Salimans
2022): a cascade of seven text-conditional diffusion models.

A base model makes few coarse frames; three models add frames between (TSR), three add pixels (SSR),
in the order of `PAPER` (section 2.2, figure 6). All are v-parametrised in continuous time with the
cosine schedule (2.4), all see the text of a frozen encoder in every block, all are trained on clips
and images together (2.5).

- The base mixes frames by attention, SSR and TSR models by convolution; attention over space is in
  the base and where a stage can afford it; the last SSR is fully convolutional (2.3): trained on
  crops, sampled whole.
- SSR and TSR models have the coarser video concatenated to z: bilinear in space, frames repeated,
  or blank, in time; it is noised, by a random amount in training, which they are told (2.5.1).
- Guidance is large, with dynamic thresholding, and oscillates in the first stages (2.6); every
  stage can be distilled (2.7, `systems/distillation.py`).

Where the paper gives no number (channels, blocks, heads) `configs/imagen_video` chooses, so that
parameters agree with its figure 6.
"""

import dataclasses

from ml_collections import ConfigDict

from vdm_jax.stage.stage import Stage
from vdm_jax.systems import vdm
from vdm_jax.systems.composition import cascade_parts, prompt_conditions, stage_section
from vdm_jax.systems.network import make_network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """One model of the cascade: its name, what it makes, and its size in the paper.

    kind: base, tsr or ssr. fps: frames a second. parameters: 0 = not of the paper.
    """

    name: str
    kind: str
    frames: int
    height: int
    width: int
    fps: float
    parameters: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width


def _specs(*rows: tuple) -> tuple[Spec, ...]:
    names = [field.name for field in dataclasses.fields(Spec)]
    return tuple(Spec(**dict(zip(names, row, strict=False))) for row in rows)


PAPER = _specs(
    ("base_40x24", "base", 16, 24, 40, 3.0, 5.6e9),
    ("tsr_6fps", "tsr", 32, 24, 40, 6.0, 1.7e9),
    ("ssr_80x48", "ssr", 32, 48, 80, 6.0, 1.4e9),
    ("ssr_320x192", "ssr", 32, 192, 320, 6.0, 1.2e9),
    ("tsr_12fps", "tsr", 64, 192, 320, 12.0, 780e6),
    ("tsr_24fps", "tsr", 128, 192, 320, 24.0, 630e6),
    ("ssr_1280x768", "ssr", 128, 768, 1280, 24.0, 340e6),
)
# The same cascade for moving shapes, whose clips of 32 frames count as 24 frames a second.
TINY = _specs(
    ("base_8", "base", 4, 8, 8, 3.0),
    ("tsr_6fps", "tsr", 8, 8, 8, 6.0),
    ("ssr_16", "ssr", 8, 16, 16, 6.0),
    ("ssr_32", "ssr", 8, 32, 32, 6.0),
    ("tsr_12fps", "tsr", 16, 32, 32, 12.0),
    ("tsr_24fps", "tsr", 32, 32, 32, 24.0),
    ("ssr_64", "ssr", 32, 64, 64, 24.0),
)
CASCADES = {"paper": PAPER, "tiny": TINY}


def build(config: ConfigDict) -> Stage:
    """A stage of the cascade. Raises ValueError where a value is not allowed."""
    network, text_encoder = make_network(config, low_res=bool(config.stage.low_res), fps=True)
    parts = cascade_parts(config, frame_rate=True)
    parts["conditions"] = prompt_conditions(config, text_encoder) + parts["conditions"]
    return Stage(network=network, **parts)


def stage_config(cascade: str, name: str) -> ConfigDict:
    """The configuration of a stage of `CASCADES[cascade]`, all but the size of its network.

    Clips of the data are read in the stage's own shape, at its own frame rate; `data` may be set to
    finer ones, of which the stage makes its own.
    """
    specs = CASCADES[cascade]
    number = [spec.name for spec in specs].index(name)
    this = specs[number]
    config = vdm.default_config().unlock()
    config.system = "imagen_video"
    config.stage = stage_section(
        name=this.name,
        shape=this.shape,
        low_res=specs[number - 1].shape if number else (),
        data_fps=float(this.fps),
    )
    config.model = ConfigDict(
        {
            **config.model.to_dict(),
            "num_res_blocks": (2, 2, 2, 2),
            "temporal": "attention" if this.kind == "base" else "convolution",
            "temporal_levels": (0, 1, 2, 3),
        }
    )
    config.data.num_frames, config.data.image_size = this.frames, this.height
    config.data.image_width = this.width
    config.data.name = "video_folder"
    config.data.fps = float(this.fps)
    # Section 2.6 and the appendix; the augmentation's noise is swept at sampling time.
    config.sample.steps = 256 if this.kind == "base" else 128
    config.sample.threshold = "dynamic"
    config.sample.augmentation = 0.0 if this.kind == "base" else 3.0
    config.sample.guidance = 15.0 if number < 4 else 5.0
    return config.lock()


def tiny_config(name: str) -> ConfigDict:
    """What the stages of the cascade for moving shapes have in common, all but the network's size.

    All are trained on clips of 32 frames with two shapes, of which each makes its own: a
    combination of colour, shape and direction that only `held_out` shows is unseen by every stage.
    Text is MiniLM's, computed beforehand: see `vdm data embed`.
    """
    config = vdm.two_cores(stage_config("tiny", name)).unlock()
    upsamples = bool(config.stage.low_res)
    config.stage.data_fps = 24.0
    # Beyond half of the times the condition is all but noise, and sampling uses a tenth of them.
    config.stage.max_augmentation = 0.5
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = (1,)
    config.model.attention_levels = (0,)
    config.model.temporal_levels = (0,)
    config.text.encoder = "minilm"
    config.text.max_length = 16
    config.model.text_kernel = 0
    # The smallest rendering that has all of the stage's pixels: reading is most of a small step.
    size = max(config.stage.shape[1], 16)
    config.data.name = "moving_shapes"
    config.data.config = f"{size}x{size}x32_two"
    config.data.num_frames = 32
    config.data.image_size = config.data.image_width = size
    config.data.fps = 0.0
    # Measured: 32 are worse by FVD and by pixels, see benchmarks/RESULTS.md.
    config.sample.steps = 8 if upsamples else 64
    # Each stage makes clips so like the data's that noise on them only takes away.
    config.sample.augmentation = 0.0
    config.sample.guidance = 1.0 if upsamples else 2.0
    return config.lock()


def about_blends(config: ConfigDict) -> None:
    """Has a tiny TSR stage of 32 x 32 pixels start from blended frames, and learn 8 frames in a
    row. Between two frames of moving shapes little happens that is not a blend of both, at 6 and at
    12 frames a second (the deviation that is likeliest, measured)."""
    config.stage.fill = "blend"
    config.stage.residual, config.stage.residual_of_acceleration = 0.002, 0.2
    config.stage.crop = (8, 32, 32)


def about_bilinear(config: ConfigDict) -> None:
    """Has an SSR stage of moving shapes start from bilinear frames, which are all but exact away
    from edges (about the likeliest deviation at 16 to 64 pixels, measured)."""
    config.stage.residual, config.stage.residual_of_contrast = 0.002, 0.45


def paper_config(name: str) -> ConfigDict:
    """What the stages of the paper's size have in common, all but the network's size.

    The paper gives resolutions, frame rates, parameters and steps; batch, learning rate and mesh
    are ours, as are channels and blocks. Clips are read from a folder of captioned videos, whose
    captions T5-XXL has embedded beforehand (`vdm data embed`).
    """
    config = stage_config("paper", name)
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.head_dim = 64
    config.model.remat = "full"
    config.model.embedding_dim = 1024
    config.text.encoder = "t5_xxl"
    config.text.max_length = 128
    config.data.image_frames = 8
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 10_000
    config.train.steps = 500_000
    return config


def film_config(name: str) -> ConfigDict:
    """A super-resolution stage without text for a folder of video files: `ssr_64`, 8 frames of 32 x
    32 to 64 x 64 pixels, or `tsr`, 8 frames of 32 x 32 to 16, of a film's every second frame."""
    shapes = {"ssr_64": ((8, 64, 64), (8, 32, 32)), "tsr": ((16, 32, 32), (8, 32, 32))}
    config = tiny_config("ssr_32")
    config.stage.name = name
    config.stage.shape, config.stage.low_res = shapes[name]
    config.stage.data_fps = 12.0
    config.stage.fill = "blend"
    # The likeliest deviations, measured: of the film's pixels about bilinear ones, which are exact
    # where it is flat, and its frames about blended ones, which are exact where nothing moves.
    # What is refined are real frames, so there is little noise on them in training or none: up to a
    # tenth of the times its deviation is up to 0.16 in [-1, 1], many times that of most frames from
    # a blend. Steps are as measured: more are worse by pixels.
    if name == "ssr_64":
        config.stage.residual, config.stage.residual_of_contrast = 0.005, 0.9
        config.stage.max_augmentation = 0.1
        config.sample.steps = 2
    else:
        config.stage.residual, config.stage.residual_of_acceleration = 0.005, 0.35
        config.stage.max_augmentation = 0.0
        config.sample.steps = 1
        # One step asks at nothing but noise: that is what most of training is about.
        config.process.logsnr_shift = -2.0
    config.model.channels = 48
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = (1, 1)
    config.model.attention_levels = ()
    config.model.temporal_levels = (0, 1)
    # Patches of 4 x 4 of z and the condition are 96 values: of frames of 32 x 32, smaller ones fit.
    config.model.patch_size = {"ssr_64": 4, "tsr": 2}[name]
    config.text.encoder = "none"
    config.data.name, config.data.config = "video_folder", ""
    frames, size, _ = config.stage.shape
    config.data.num_frames, config.data.image_size = frames, size
    config.data.image_width = size
    config.data.frame_stride = 2
    # Few clips, of which there is no text that says where left is: every way to see them counts.
    config.data.augment = ("start", "mirror", "reverse")
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.steps = 4000
    return config
