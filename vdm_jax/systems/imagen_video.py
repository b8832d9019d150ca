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
from collections.abc import Sequence

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


def specs(*rows: tuple) -> tuple[Spec, ...]:
    names = [field.name for field in dataclasses.fields(Spec)]
    return tuple(Spec(**dict(zip(names, row, strict=False))) for row in rows)


PAPER = specs(
    ("base_40x24", "base", 16, 24, 40, 3.0, 5.6e9),
    ("tsr_6fps", "tsr", 32, 24, 40, 6.0, 1.7e9),
    ("ssr_80x48", "ssr", 32, 48, 80, 6.0, 1.4e9),
    ("ssr_320x192", "ssr", 32, 192, 320, 6.0, 1.2e9),
    ("tsr_12fps", "tsr", 64, 192, 320, 12.0, 780e6),
    ("tsr_24fps", "tsr", 128, 192, 320, 24.0, 630e6),
    ("ssr_1280x768", "ssr", 128, 768, 1280, 24.0, 340e6),
)


def build(config: ConfigDict) -> Stage:
    """A stage of the cascade. Raises ValueError where a value is not allowed."""
    network, text_encoder = make_network(config, low_res=bool(config.stage.low_res), fps=True)
    parts = cascade_parts(config, frame_rate=True)
    parts["conditions"] = prompt_conditions(config, text_encoder) + parts["conditions"]
    return Stage(network=network, **parts)


def stage_config(cascade: Sequence[Spec], name: str) -> ConfigDict:
    """The configuration of the stage of this name in a cascade, without the size of its network.

    Clips of the data are read in the stage's own shape, at its own frame rate; `data` may be set to
    finer ones, of which the stage makes its own.
    """
    number = [spec.name for spec in cascade].index(name)
    this = cascade[number]
    config = vdm.default_config().unlock()
    config.system = "imagen_video"
    config.stage = stage_section(
        name=this.name,
        shape=this.shape,
        low_res=cascade[number - 1].shape if number else (),
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
