"""What to do about a verdict, in one line: shown first, for that is what was asked."""

from collections.abc import Collection, Mapping, Sequence

from densitune import density
from optimizer.config.networks import NamedNetwork
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import cautions, differences
from optimizer.evidence.audit import Audit
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import (
    Comparison,
    Control,
    FinalistVerdict,
    Found,
    PresetVerdict,
)
from optimizer.learning_rates import CLASSIFIERS

PLAIN = "Use the plain convolution: no density is shown to help."
CALL = 'densitune.scale_initial_weights(model, preset, init="library")'
"""What does for a model what a scale control does in a study."""
OWN_CALL = "densitune.scale_initial_weights(model, preset)"
"""The same where the study kept the weights that the network draws itself."""
COMPENSATED = 'densitune.apply_densities(model, preset["densities"], init="compensated")'
"""What starts a model as a study does that has `init: compensated`."""
UNHEALTHY = (
    "Rely on nothing here: identity has not learnt its task; train longer or at another rate."
)
UNTESTED = "Use the plain convolution until fresh seeds confirm a density."
EARLIER = "Use the plain convolution until a new study confirms this density: see the caution."
LARGER = (
    "Use the plain convolution on a larger network, or tune there: the audit's larger network does "
    "not bear this density out."
)
"""What to do with a `better` that an audit speaks against."""
NOT_SETTLED: dict[Control, str] = {
    "control": "whether another start does as well as this density was not settled",
    "uniform": "whether other steps do as well as this density was not settled",
}
"""What is so where a finalist was not shown to beat a control that was not shown to help."""


def line(
    verdict: PresetVerdict,
    densities: Mapping[int, Sequence[float]],
    config: StudyConfig,
    found: Found | None,
    wanted: Collection[Control],
    rates: RateCheck | None = None,
    audited: Audit | None = None,
) -> str:
    """Return what to do where a density has this verdict, from a confirmation that found this.

    wanted: the controls that `better` asks for. rates: what its rate check found, if there was one;
    audited: what its audit did.
    A control is recommended only if it is itself shown to help. What the study's `init` and the
    optimiser of its family make of a density decides how to say it.
    """
    match verdict:
        case "better":
            if found is not None and cautions.left_open(verdict, found, wanted) is not None:
                return EARLIER
            if audited is not None and audited.finding in ("does_not", "ranks_only"):
                return LARGER
            if rates is not None and rates.holds is False:
                return _at_its_rate(densities, config, rates)
            given = "; ".join(
                f"den={[float(f'{x:.4g}') for x in den]}" for den in densities.values()
            )
            start = f"; {COMPENSATED} starts as the study did" * (config.init == "compensated")
            at = "with the learning rate of the standard convolution"
            if rates is not None and rates.holds:
                own = rates.rates["finalist"]
                at = f"at the learning rate {own:g}, its own best in the study"
            return f"Use it, {at}: {given}{start}{_where(config)}."
        case "scale_only":
            if not _helps(found, "control"):
                return f"Use the plain convolution: {NOT_SETTLED['control']}."
            return f"Use the plain convolution and {_scaled(densities, config)}."
        case "step_only":
            if not _helps(found, "uniform"):
                return f"Use the plain convolution: {NOT_SETTLED['uniform']}."
            return f"Use the plain convolution, {_stepped(densities, config)}."
        case "worse":
            return "Use the plain convolution: this density does harm."
        case "no_evidence" | "dropped":
            return PLAIN
        case "unconfirmed":
            return UNTESTED


def of_study(
    winner: FinalistVerdict | None,
    config: StudyConfig,
    wanted: Collection[Control],
    rates: RateCheck | None = None,
    audited: Audit | None = None,
    *,
    decided: bool,
) -> str:
    """Return what to do after a study, by its winner's verdict, rate check and audit."""
    if winner is None:
        return PLAIN if decided else UNTESTED
    return line(winner.verdict, winner.by_kernel_size(), config, winner, wanted, rates, audited)


def _at_its_rate(
    densities: Mapping[int, Sequence[float]], config: StudyConfig, rates: RateCheck
) -> str:
    """Return what to do where a `better` is not shown to hold at each arm's own rate.

    Of the controls that are shown to help there, by the 95 % interval of their differences, the
    strongest; identity if there is none.
    """
    why = "what the density gains is not shown to hold at each arm's own rate"
    own = rates.to_identity
    helping = {
        name: beside.mean
        for name, beside in rates.beside.items()
        if own is not None and not rates.diverged.keys() & {"identity", name}
        if _above(own, beside)
    }
    if not helping:
        return f"Use the plain convolution at the rate {rates.rates['identity']:g}: {why}."
    strongest = min(helping, key=lambda name: helping[name])
    how = f"{_scaled(densities, config)}; {why}"
    if strongest == "uniform":
        how = _stepped(densities, config)
    return f"Use the plain convolution at the rate {rates.rates[strongest]:g}; {how}."


def _helps(found: Found | None, name: Control) -> bool:
    """Tell whether a control is itself shown to be above identity.

    That is, the 95 % interval of its difference on the finalist's seeds is, and neither has
    diverged on any of them.
    """
    if found is None or found.to_identity is None:
        return False
    beside: Comparison | None = found.to_control if name == "control" else found.to_uniform
    if beside is None or found.failures.keys() & {"identity", name}:
        return False
    return _above(found.to_identity, beside)


def _above(to_identity: Comparison, beside: Comparison) -> bool:
    """Tell whether the 95 % interval of a control minus identity is above zero.

    Both are differences of the same finalist: to identity, and to the control.
    """
    own = {int(seed): difference for seed, difference in to_identity.by_seed.items()}
    to_it = {int(seed): difference for seed, difference in beside.by_seed.items()}
    if not own.keys() & to_it.keys():
        return False
    low, _ = differences.interval(differences.paired(own, to_it))
    return low > 0


def _scaled(densities: Mapping[int, Sequence[float]], config: StudyConfig) -> str:
    """Return how a plain convolution gets the start of a scale control."""
    sizes = {k: density.rms(den, 2) for k, den in densities.items()}
    call = OWN_CALL if config.init == "model" else CALL
    return f"multiply {_factors(sizes, 'initial weights', config)} ({call} does)"


def _stepped(densities: Mapping[int, Sequence[float]], config: StudyConfig) -> str:
    """Return how a plain convolution gets start and steps of a uniform mask.

    Under SGD a mask s makes of a step at rate r and decay d one of v = s w at r s² with d / s².
    Adam's steps are s times as long, and its families train without decay. A script may have
    either.
    """
    sizes = {k: density.rms(den, 2) for k, den in densities.items()}
    told = [] if config.init == "compensated" else [_scaled(densities, config)]
    by_sgd = config.kind is None or config.kind in CLASSIFIERS
    by_adam = config.kind not in CLASSIFIERS
    if by_sgd:
        under = "" if config.kind else "under SGD "
        steps = {k: scale**2 for k, scale in sizes.items()}
        decay = {k: 1 / step for k, step in steps.items()}
        told += [f"{under}multiply {_factors(steps, 'learning rate', config)}"]
        told += [f"{under}multiply {_factors(decay, 'weight decay', config)}"]
    if by_adam:
        under = "" if config.kind else "under Adam "
        told += [f"{under}multiply {_factors(sizes, 'learning rate', config)}"]
    return f"{'; '.join(told)}: a mask without structure was not shown to do worse"


def _where(config: StudyConfig) -> str:
    """Return which layers were weighted, if not all of their size were."""
    if not isinstance(config.proxy, NamedNetwork) or not config.proxy.layers:
        return ""
    return f"; on the study's layers alone, layers={list(config.proxy.layers)}"


def _factors(by_size: Mapping[int, float], what: str, config: StudyConfig) -> str:
    """Return "its 3 x 3 initial weights by 0.57" for all sizes.

    A network on data of the user's may have another number of dimensions d: RMS(phi), of which each
    factor is a power, goes as its power d / 2.
    """
    if config.data.goal != "own":
        return " and ".join(
            f"its {k} x {k} {what} by {factor:.3g}" for k, factor in by_size.items()
        )
    told = (
        f"its {what} of kernel size {k} by {factor:.3g} in 2-D, {factor**0.5:.3g} in 1-D or "
        f"{factor**1.5:.3g} in 3-D"
        for k, factor in by_size.items()
    )
    return " and ".join(told)
