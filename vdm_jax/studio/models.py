"""The description of a model on the page before it is loaded, from its configuration alone."""

import dataclasses
from pathlib import Path
from typing import Any

from vdm_jax.studio.requests import RequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A model, in words.

    Attributes:
      name: as --model takes it.
      cascade: whether it is one.
      shape: frames, height and width of a clip.
      fps: frames a second of a clip.
      steps, guidance, rule: of its sampler; 0, 0.0 and "" of a cascade: its stages have their own.
      example: a prompt that the model was trained for, "" = none is known.
      words: all words that the model knows, where it has a list; else ().
    """

    name: str
    cascade: bool
    shape: tuple[int, int, int]
    fps: float
    steps: int
    guidance: float
    rule: str
    example: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """A line or two for the page."""
        frames, height, width = self.shape
        kind = "Cascade" if self.cascade else "Model"
        if frames == 1:
            lines = [f"{kind} of pictures of {height} × {width}."]
        else:
            lines = [f"{kind} of {frames} frames of {height} × {width} at {self.fps:g} fps."]
        if self.cascade:
            lines.append("Its stages have samplers of their own.")
        if self.words:
            lines.append(f"It knows the words {', '.join(self.words)}.")
        return " ".join(lines)


def names() -> list[str]:
    """The models and cascades that ship and sample videos, those that answer soonest first."""
    from vdm_jax.pipelines import model as pretrained

    shipped = [*pretrained.shipped_cascades(), *pretrained.shipped_names()]
    cards = []
    for name in shipped:
        try:
            cards.append(read(name))
        except RequestError:  # an autoencoder, or a stage that only refines
            continue
    cards.sort(key=lambda card: (card.cascade, "/" in card.name, card.steps))
    return [card.name for card in cards]


def read(name: str) -> Card:
    """The card of a shipped name, a file or a folder. Raises RequestError: there is no such model,
    or it makes no videos of prompts."""
    from vdm_jax.cli import common
    from vdm_jax.pipelines import model as pretrained

    name = name.strip()
    try:
        folder = pretrained.find_cascade(name)
        if folder is not None:
            return _cascade(name, folder)
        config = pretrained.read_config(name)
    except (*common.expected_errors(), OSError) as error:
        raise RequestError(str(error)) from error
    if config.get("stage", {}).get("low_res"):
        raise RequestError(
            f"{name} refines videos of another model, and makes none of a prompt: choose its "
            "cascade, or use vdm edit refine"
        )
    return _card(name, config)


def _cascade(name: str, folder: Path) -> Card:
    from vdm_jax.pipelines import cascade_file
    from vdm_jax.pipelines import model as pretrained

    stages = cascade_file.read(folder).stages
    first, last = (pretrained.read_config(folder / stages[at]) for at in (0, -1))
    card = _card(name, last)
    return dataclasses.replace(
        card,
        cascade=True,
        steps=0,
        guidance=0.0,
        rule="",
        example=_example(first),
        words=_words(first),
    )


def _card(name: str, config: Any) -> Card:
    from vdm_jax import systems
    from vdm_jax.data import frame_rate
    from vdm_jax.stage.reconstruction import Reconstruction

    try:
        stage = systems.build(config)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from error
    if isinstance(stage, Reconstruction):
        raise RequestError(f"{name} is an autoencoder, which makes no videos")
    frames, height, width, _ = stage.video_shape
    return Card(
        name=name,
        cascade=False,
        shape=(frames, height, width),
        fps=frame_rate.playback(config),
        steps=config.sample.steps,
        guidance=config.sample.guidance,
        rule=config.sample.sampler,
        example=_example(config),
        words=_words(config),
    )


def _example(config: Any) -> str:
    """A prompt of those that a run sampled while it trained, or a caption of its data."""
    from vdm_jax.data import shapes

    if prompts := list(config.get("train", {}).get("sample_prompts", ())):
        return prompts[0]
    if config.data.name == "moving_shapes":
        return shapes.captions("held_out", 2 if config.data.config.endswith("_two") else 1)[0]
    return ""


def _words(config: Any) -> tuple[str, ...]:
    section = config.get("text", {})
    words = tuple(section.get("vocabulary", ()))
    return words if section.get("encoder", "words") == "words" and len(words) <= 40 else ()
