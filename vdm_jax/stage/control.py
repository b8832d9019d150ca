"""Training a ControlNet (Zhang et al. 2023, section 3): a frozen latent U-Net, and a network that
adds to its features."""

import dataclasses
from typing import Any

from jaxtyping import Array, Key, PyTree

from vdm_jax.models.controlnet import Control, ControlNet, copy_encoder
from vdm_jax.stage.conditions.hint import Hint
from vdm_jax.stage.low_rank import BASE
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlStage(Stage):
    """A stage whose parameters are those of its network's ControlNets; the others are
    `frozen["base"]`."""

    @classmethod
    def add(cls, stage: Stage, controlnet: ControlNet, hint: Hint) -> "ControlStage":
        """The stage with a ControlNet in its network, and with its hint as a condition."""
        control = Control(network=controlnet, hint=hint.name)
        fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(Stage)}
        fields |= {
            "network": stage.network.clone(controls=(*stage.network.controls, control)),
            "conditions": (*stage.conditions, hint),
            "train_only": "",  # of the base's parameters
            "new": "",
        }
        return cls(**fields)

    def start(self, key: Key[Array, ""], base: PyTree) -> PyTree:
        """The parameters that training starts from: the base's way down and middle are copied
        (section 3.1), all else is drawn."""
        return {name: copy_encoder(drawn, base) for name, drawn in self.init(key).items()}

    def network_params(self, params: PyTree, frozen: Frozen) -> PyTree:
        """The base's parameters and the ControlNets'. Raises ValueError where the base is
        missing."""
        if BASE not in frozen:
            raise ValueError(
                f"frozen: lacks {BASE!r}, the parameters of the model that a ControlNet is added "
                f"to; it has: {', '.join(sorted(frozen)) or 'none'}"
            )
        return {**frozen[BASE], **params}

    def _boxed_init(self, key: Key[Array, ""]) -> PyTree:
        names = {control.name for control in self.network.controls}
        drawn: dict[str, Any] = super()._boxed_init(key)
        return {name: drawn[name] for name in names}
