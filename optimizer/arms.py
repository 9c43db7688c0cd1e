"""Arms: what is trained beside what, each defined here and nowhere else.

An arm is densities, and how their training differs from the study's recipe. What a verdict compares
is built by the functions below, whether a study trains it or `verify --rerun` trains it again.
Plain numbers only, for training knows this module too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from densitune import choices, density
from densitune.density import Densities

Part = Literal["init_only", "steps_only"]
"""Which one of a density's two effects an arm has: its start alone, or its steps alone."""
Init = choices.Init
Mask = choices.Mask
Start = choices.Start
Split = Literal["validation", "test", "both"]
"""`both` measures the test split beside the other, at the end and where the data have one. Of
`test` alone, only at the end, are arms of earlier versions."""
SearchedBy = Literal["metric", "cross_entropy"]
"""What trials are compared by in a search: the metric, or of classifiers their cross-entropy."""
Precision = Literal["full", "bfloat16"]
"""Of the network in training; weights, loss and every measurement are float32 in any case."""


@dataclass(frozen=True)
class Arm:
    """What a job trains, but for seed and budget."""

    densities: Densities
    lr: float | None = None
    """Peak learning rate; None takes the recipe's."""
    init: Init | None = None
    """None takes the recipe's."""
    gain: Mapping[int, float] = field(default_factory=dict)
    """By kernel size: what the initial weights of the convolutions of that size are multiplied by
    in two dimensions; in d dimensions by its power d / 2, as RMS(phi) goes."""
    trainable: bool = False
    """Whether every layer learns its density along with its weights, starting at `densities`."""
    split: Split = "validation"
    """On which images it is measured."""
    mask: Mask = "density"
    start: Start = "drawn"
    per_image: bool = False
    """Whether the last measurement tells the score of every image."""
    floored: bool = False
    """Whether a training that diverges scores the floor; otherwise the job fails."""
    searched_by: SearchedBy = "metric"
    """What a job's bars are about: least values of the metric, or of the negated cross-entropy."""

    @classmethod
    def of(cls, densities: Densities, stored: Mapping[str, Any]) -> "Arm":
        """Return an arm from its densities and what `stored` made of the rest."""
        lr = stored.get("lr")
        gain = {int(size): float(factor) for size, factor in stored.get("gain", {}).items()}
        return cls(densities, **{**stored, "lr": lr and float(lr), "gain": gain})

    def stored(self) -> dict[str, Any]:
        """Return all but the densities as JSON, which has text for keys."""
        return {
            "lr": self.lr,
            "init": self.init,
            "gain": {str(size): float(factor) for size, factor in self.gain.items()},
            "trainable": self.trainable,
            "split": self.split,
            "mask": self.mask,
            "start": self.start,
            "per_image": self.per_image,
            "floored": self.floored,
            "searched_by": self.searched_by,
        }


def undivided(init: Init) -> Init:
    """Return how weights are drawn before any are divided by RMS(phi)."""
    return "library" if init == "compensated" else init


def identity(kernel_sizes: Iterable[int], lr: float | None, init: Init = "library") -> Arm:
    """Return the standard convolution, which everything in a study of this `init` is compared with.

    Identity's RMS(phi) is one, so that there is nothing to be divided by.
    """
    return Arm({k: density.identity(k) for k in kernel_sizes}, lr, undivided(init))


def scale_control(densities: Densities, lr: float | None, init: Init = "library") -> Arm:
    """Return identity with initial weights multiplied by RMS(phi) of densities: the same start."""
    gain = {k: density.rms(den) for k, den in densities.items()}
    return replace(identity(densities, lr, init), gain=gain)


def uniform(densities: Densities, lr: float | None, init: Init = "library") -> Arm:
    """Return densities with RMS(phi) at every tap: the same start, no spatial structure.

    The steps are the same on average over the taps under SGD, which multiplies them by phi squared.
    Under Adam those of a density average mean(phi), so the mask's are larger by RMS(phi) /
    mean(phi): no one number matches both.
    """
    return Arm(densities, lr, init, mask="uniform")


def init_only(densities: Densities, lr: float | None, init: Init = "library") -> Arm:
    """Return the standard convolution that starts where these densities do: phi times its weights.

    With a compensated start those are divided by RMS(phi), as the densities' own are.
    """
    return Arm(densities, lr, init, mask="ones", start="times_phi")


def steps_only(densities: Densities, lr: float | None, init: Init = "library") -> Arm:
    """Return densities that start where identity does: weights divided by phi, tap by tap.

    A tap whose phi is 0, or too small to be divided by in float32 (below some 3e-39), keeps its
    weight: it has no effect either way, and does not start as identity's.
    """
    return Arm(densities, lr, undivided(init), start="over_phi")


def compensated(densities: Densities, lr: float | None, init: Init = "library") -> Arm:
    """Return densities at identity's initial scale: the same steps."""
    if init == "model":
        return Arm(densities, lr, init, {k: 1 / density.rms(den) for k, den in densities.items()})
    return Arm(densities, lr, "compensated")


def trainable(kernel_sizes: Iterable[int], lr: float | None, init: Init) -> Arm:
    """Return identity whose densities are learned along with the weights."""
    return Arm(identity(kernel_sizes, lr).densities, lr, init, trainable=True)
