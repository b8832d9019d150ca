"""Tune-A-Video over any latent image model: tune it on a clip, then edit the clip.

config = tuning.configure("scenes_image", recipe, clip, "a cat on the left of a green meadow")
tuned, _ = tuning.Tuner.of(config).tune(clip, "runs/cat")
editor = tuning.Editor.of(tuned)
videos = editor.edit(tuned.params, clip, ["a dog on the left of a green meadow"])
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree, UInt8
from ml_collections import ConfigDict

from vdm_jax import systems
from vdm_jax.data.one_clip import OneClip
from vdm_jax.diffusion import inversion as inversions
from vdm_jax.diffusion.inversion import FirstOrder, Inversion
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial, inversion, model
from vdm_jax.pipelines.model import Model
from vdm_jax.stage.beside import Beside
from vdm_jax.stage.conditions.source import SourceVideo
from vdm_jax.stage.sampler import Sampler
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import latent_image, tune_a_video
from vdm_jax.training import loop, optimizer, step

Clip = UInt8[np.ndarray, "f h w 3"]


def configure(
    source: str | Path, recipe: ConfigDict, clip: Clip, prompt: str, *, fps: float = 0.0
) -> ConfigDict:
    """The configuration of a run that tunes an image model on a clip. Nothing is computed.

    Args:
      source: the image model, as `model.load` takes it.
      recipe: of this system; it sets everything except network, text encoder and size. Its
        `data.frame_stride` says which frames of a video the clip has.
      clip: in the size that is tuned on.
      prompt: what the clip shows.
      fps: of that video; 0 = not known.

    Raises FileNotFoundError; ValueError for a model of another kind, for a size that it cannot
    have, and for a prompt that its text encoder would cut.
    """
    image = model.read_config(source)
    if image.system != latent_image.NAME or systems.adaptation(image):
        what = systems.adaptation(image) or image.system
        raise ValueError(
            f"{str(source)!r} is no whole latent image model ({what}): give a folder of Stable "
            "Diffusion 1 or 2, or scenes_image; write what was adapted with its base first (vdm "
            "convert --to=diffusers --merged)"
        )
    config = tune_a_video.inflated_config(image, recipe)
    frames, height, width, _ = clip.shape
    with config.unlocked():
        config.train.tuning.update(base=str(source), prompt=prompt, clip=digest(clip))
        config.data.update(num_frames=frames, image_size=height, image_width=width)
        config.data.update(name="video_folder", fps=float(fps))
    config = model.with_base(config)
    stage = systems.build(config)  # refuses sizes that the autoencoder cannot have
    assert isinstance(stage, Stage)
    if stage.find(SourceVideo) is not None:
        raise ValueError(f"{str(source)!r} edits by instruction: give a model that makes images")
    multiple = stage.space.multiple * stage.network.multiple
    if height % multiple or width % multiple:
        raise ValueError(
            f"clips of {height} x {width} pixels: must be multiples of {multiple}, by which the "
            "network and its autoencoder make them smaller"
        )
    stage.check_prompts([prompt])
    return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuner:
    """Tunes a model on a clip, or on several clips of one size, one after the other: compiled once.

    Attributes:
      config: of `configure`, for the first clip.
      stage, plan, frozen: what it describes, on one device.
    """

    config: ConfigDict
    stage: Beside
    plan: sharding.Plan
    frozen: dict[str, sharding.Frozen]

    @classmethod
    def of(cls, config: ConfigDict) -> "Tuner":
        """The tuner of a configuration. Raises as `model.load`; ValueError for a configuration
        whose image model is not frozen beside what is tuned."""
        stage = systems.build(config)
        if not isinstance(stage, Beside):
            raise ValueError("train.tuning.separate = False: must be True to tune a model")
        plan = sharding.make_plan(stage, {"data": 1}, jax.local_devices()[:1])
        return cls(config=config, stage=stage, plan=plan, frozen=model.read_frozen(config))

    @functools.cached_property
    def start(self) -> PyTree:
        """The parameters before tuning."""
        return initial.adapted(self.stage, self.config, self.plan, self._frozen_params)

    @functools.cached_property
    def train_step(self) -> step.TrainStep:
        """One update; compiled at the first."""
        tx = optimizer.make_optimizer(self.config.train, self.stage.abstract_params())
        return step.make_train_step(self.stage, tx, self.config, self.plan, self.frozen)

    def tune(
        self, clip: Clip, workdir: str | Path, *, config: ConfigDict | None = None
    ) -> tuple[Model, str]:
        """The tuned model, and why its training ended (`loop.Result.reason`); a run in `workdir` is
        resumed.

        Args:
          clip: the one that the configuration was made for.
          workdir: see `loop.train`.
          config: for another clip; it differs from the tuner's in prompt and clip alone.

        Raises as `loop.train`.
        """
        config, encoder = config or self.config, self.stage.text_encoder
        assert encoder is not None  # as in every latent image model
        result = loop.train(
            self.stage,
            config,
            workdir,
            OneClip(clip, config.train.tuning.prompt, encoder),
            plan=self.plan,
            initial=lambda: self.start,
            frozen=self.frozen,
            train_step=self.train_step,
        )
        return self.model(result.state.ema, config), result.reason

    def model(self, params: PyTree, config: ConfigDict | None = None) -> Model:
        """The model with these parameters."""
        config = config or self.config
        return Model(stage=self.stage, params=params, config=config, frozen=self._frozen_params)

    @property
    def _frozen_params(self) -> dict[str, PyTree]:
        return {name: part.params for name, part in self.frozen.items()}


def load(file: str | Path) -> Model:
    """A tuned model of a file or a working directory. Raises as `model.load`; ValueError for a
    model that is not tuned."""
    found = model.load(file)
    if not isinstance(found.stage, Beside):
        raise ValueError(f"{file}: is no tuned model; give tuned.safetensors of vdm tune")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Editor:
    """Inverts clips and samples edits with a tuned model's parameters, which may change: compiled
    once.

    Attributes:
      inverter: of the unguided sampler, with the null text (section 3.3).
      guided: samples the edits, on the same grid.
      null_text: the text that stands for no text.
    """

    inverter: inversion.Inverter
    guided: Sampler
    null_text: str

    @classmethod
    def of(cls, tuned: Model, how: Inversion | None = None, **changes: Any) -> "Editor":
        """The editor of a tuned model, a video at a time.

        how: None = by DDIM, as the paper does. changes: of `sampler_fields.FIELDS`. Raises
        ValueError for a rule that has no inverse.
        """
        changes = {"batch_size": 1, **changes}
        unguided = {"guidance": 1.0, "negative": None, "oscillate_after": 0}
        guided, plain = tuned.sampler(**changes), tuned.sampler(**{**changes, **unguided})
        chosen = changes.get("sampler") is not None or changes.get("eta")
        if not chosen and not inversions.is_invertible(plain.rule):
            plain, guided = (dataclasses.replace(part, rule=DDIM()) for part in (plain, guided))
        inversions.check_rule(plain.rule)
        text = tuned.stage.text_encoder.null_text or ""
        inverter = inversion.Inverter(sampler=plain, inversion=how or FirstOrder())
        return cls(inverter=inverter, guided=guided, null_text=text)

    def invert(
        self, params: PyTree, clip: Clip, seed: int = 0
    ) -> Float[np.ndarray, "1 f2 h2 w2 c2"]:
        """z of the clip. Raises as `inversion.invert`."""
        key, texts = jax.random.key(seed), [self.null_text]
        (z,) = self.inverter.stream(params, key, np.asarray(clip)[None], texts)
        return z

    def edit(
        self, params: PyTree, clip: Clip, prompts: Sequence[str], seed: int = 0
    ) -> UInt8[np.ndarray, "n f h w 3"]:
        """The clip with each of the prompts. Raises as `inversion.invert`."""
        start = np.repeat(self.invert(params, clip, seed), len(prompts), axis=0)
        stream = self.guided.stream(params, jax.random.key(seed), list(prompts), start=start)
        return np.concatenate(list(stream))


def digest(clip: Clip) -> str:
    """What names the content of a clip."""
    return hashlib.sha256(f"{clip.shape}".encode() + clip.tobytes()).hexdigest()
