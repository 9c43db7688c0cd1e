"""Arms: how what a trial trains differs from its study's recipe, beyond its densities."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Init = Literal["library", "compensated"]
Split = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What a job's training takes besides densities, seed and budget."""

    lr: float | None = None
    """Peak learning rate; None takes the recipe's."""
    init: Init = "library"
    gain: Mapping[int, float] = field(default_factory=dict)
    """By kernel size: what the initial weights of the convolutions of that size are multiplied
    by. A scale control is identity with the gain RMS(phi) of the density that it stands for."""
    trainable: bool = False
    """Whether the densities are learned along with the weights, starting where they are."""
    split: Split = "validation"
    """On which images it is measured."""

    def stored(self) -> dict[str, Any]:
        """Return the JSON form, which has text for keys."""
        gain = {str(size): float(factor) for size, factor in self.gain.items()}
        return {
            "lr": self.lr,
            "init": self.init,
            "gain": gain,
            "trainable": self.trainable,
            "split": self.split,
        }


def arm_of(stored: Mapping[str, Any]) -> Arm:
    """Return an arm from its JSON form."""
    lr = stored["lr"]
    return Arm(
        lr=None if lr is None else float(lr),
        init=stored["init"],
        gain={int(size): float(factor) for size, factor in stored["gain"].items()},
        trainable=stored["trainable"],
        split=stored["split"],
    )
