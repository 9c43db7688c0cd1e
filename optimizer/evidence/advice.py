"""What to do about a verdict, in one line: shown first, for that is what was asked."""

from collections.abc import Mapping, Sequence

from densitune import density
from optimizer.arms import Init
from optimizer.evidence.verdicts import FinalistVerdict, PresetVerdict
from optimizer.learning_rates import Family

PLAIN = "Use the plain convolution: no density is shown to help."
CALL = "densitune.scale_initial_weights(model, preset)"
"""What does for a model what the advice on `scale_only` says."""
UNHEALTHY = (
    "Rely on nothing here: identity has not learnt its task; train longer or at another rate."
)
UNTESTED = "Use the plain convolution until fresh seeds confirm a density."


def line(
    verdict: PresetVerdict, densities: Mapping[int, Sequence[float]], family: Family, init: Init
) -> str:
    """Return what to do where a density has this verdict.

    family: of the proxy, whose optimiser says how a uniform mask acts as a learning rate. init: the
    study's; a density that starts at identity's scale leaves no initial weights to multiply.
    """
    sizes = {k: density.rms(den, 2) for k, den in densities.items()}
    scaled = f"multiply {_factors(sizes, 'initial weights')} ({CALL} does)"
    match verdict:
        case "better":
            given = "; ".join(
                f"den={[float(f'{x:.4g}') for x in den]}" for den in densities.values()
            )
            return f"Use it, with the learning rate of the standard convolution: {given}."
        case "scale_only":
            return f"Use the plain convolution and {scaled}."
        case "step_only":
            power = 2 if family in ("vgg", "resnet") else 1  # SGD, or Adam
            steps = {k: scale**power for k, scale in sizes.items()}
            rates = f"multiply {_factors(steps, 'learning rate')}"
            also = "" if init == "compensated" else f"{scaled}; "
            return (
                f"Use the plain convolution, {also}{rates}: a mask without structure does as well."
            )
        case "worse":
            return "Use the plain convolution: this density does harm."
        case "no_evidence" | "dropped":
            return PLAIN
        case "unconfirmed":
            return UNTESTED


def of_study(winner: FinalistVerdict | None, family: Family, init: Init, *, decided: bool) -> str:
    """Return what to do after a study, by the verdict on its winner."""
    if winner is None:
        return PLAIN if decided else UNTESTED
    return line(winner.verdict, winner.by_kernel_size(), family, init)


def _factors(by_size: Mapping[int, float], what: str) -> str:
    """Return "its 3 x 3 initial weights by 0.57" for all sizes."""
    return " and ".join(f"its {k} x {k} {what} by {factor:.3g}" for k, factor in by_size.items())
