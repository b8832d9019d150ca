"""The vocabularies that the judge knows, chosen by the captions that are judged."""

from collections.abc import Sequence

from vdm_jax.evaluation.judge import MOVING_SHAPES, Vocabulary
from vdm_jax.evaluation.scene_judge import SCENES

VOCABULARIES: tuple[Vocabulary, ...] = (MOVING_SHAPES, SCENES)


def choose(captions: Sequence[str]) -> Vocabulary:
    """The first vocabulary that reads all captions. Raises ValueError with what each expects."""
    problems = []
    for vocabulary in VOCABULARIES:
        try:
            for caption in captions:
                vocabulary.parse(caption)
        except ValueError as error:
            problems.append(str(error))
        else:
            return vocabulary
    raise ValueError("\n".join(problems))
