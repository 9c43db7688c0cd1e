"""What a preset says of its rate check, held against what it records of that."""

from collections.abc import Iterator, Mapping

from optimizer import learning_rates
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import own_rates
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import asked
from optimizer.presets import arithmetic
from optimizer.presets.document import Preset


def disagreements(preset: Preset, config: StudyConfig) -> Iterator[str]:
    """Yield what does not follow: controls, rates, seeds, intervals and whether it holds."""
    checked, confirmation = preset.evidence.own_rates, preset.evidence.confirmation
    if checked is None:
        return
    if confirmation is None or confirmation.to_identity is None:
        yield "own_rates of a density that was not confirmed"
        return
    if checked.trial != preset.provenance.trial:
        yield f"own_rates is of trial {checked.trial}, the preset of {preset.provenance.trial}"
    arms = {*checked.tried} - {"identity", "finalist"}
    strongest = own_rates.strongest(confirmation)
    wanted = asked(config.init, confirmation.uniform_is_identity)
    if arms != {*wanted} and arms != ({strongest} - {None}):
        yield f"own_rates has the controls {sorted(arms)}, and `better` asks for {list(wanted)}"
    if checked.control not in (None, strongest):
        yield f"own_rates has the control {checked.control}, which is not the strongest"
    yield from _of_the_rates(checked, {"identity", "finalist", *arms})
    yield from arithmetic.of_an_interval("own_rates.to_identity", checked.to_identity)
    for name, compared in checked.beside.items():
        yield from arithmetic.of_an_interval(f"own_rates, to {name}", compared)
    if checked.to_identity is None:
        if checked.holds is not None or checked.reason is None:
            yield "own_rates has no differences, and no reason why"
        return
    count = len(checked.to_identity.by_seed)
    seeds = {str(seed) for seed in config.own_rate_seeds(count)}
    if any(one.by_seed.keys() != seeds for one in (checked.to_identity, *checked.beside.values())):
        yield f"the seeds of own_rates are not the config's first {count} of those"
    elif checked.beside.keys() != arms or (checked.to_control is None) != (checked.control is None):
        yield "own_rates has no difference to a control that it names, or one to none"
    elif checked.holds != _holds(checked):
        yield f"own_rates.holds is {checked.holds}, and its differences say {_holds(checked)}"


def _of_the_rates(checked: RateCheck, arms: set[str]) -> Iterator[str]:
    if set(checked.tried) != arms or not set(checked.rates) <= arms:
        yield f"own_rates is of the arms {sorted(checked.tried)}, not of {sorted(arms)}"
        return
    for arm, rate in checked.rates.items():
        scores = _by_rate(checked.tried[arm])
        if not scores or not arithmetic.alike(rate, learning_rates.best(scores)):
            yield f"own_rates.rates has {rate:g} for {arm}, which is not its best"


def _by_rate(tried: Mapping[str, float]) -> dict[float, float]:
    """Return scores with numbers for rates; none if one is not a rate or not a score."""
    try:
        found = {float(rate): score for rate, score in tried.items()}
    except ValueError:
        return {}
    sound = all(0 < rate < 1e9 and abs(score) <= 1e6 for rate, score in found.items())
    return found if sound else {}


def _holds(checked: RateCheck) -> bool:
    assert checked.to_identity is not None  # our caller's case
    beside = {name: arithmetic.by_number(one.by_seed) for name, one in checked.beside.items()}
    to_identity = arithmetic.by_number(checked.to_identity.by_seed)
    return own_rates.holds(to_identity, beside, checked.diverged)
