"""What a preset says of its audit, held against what it records of that."""

from collections.abc import Iterator, Mapping

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import audit
from optimizer.evidence.audit import Audit
from optimizer.evidence.verdicts import Comparison, PairedDifference
from optimizer.presets import arithmetic
from optimizer.presets.document import Preset


def recorded(told: Audit) -> dict[str, Comparison | PairedDifference | None]:
    """Return all differences by name."""
    named: dict[str, Comparison | PairedDifference | None] = dict(_compared(told))
    for arm in told.arms:
        named[f"audit of trial {arm.trial}"] = arm.full
        named[f"audit.proxy of trial {arm.trial}"] = arm.proxy
    return named


def disagreements(preset: Preset, config: StudyConfig) -> Iterator[str]:
    """Yield what does not follow: seeds, differences, correlation, loss and finding."""
    told, test = preset.evidence.audit, preset.evidence.test
    if test is not None and test.larger is not None:
        larger = {str(seed) for seed in test.larger.seeds}
        if told is None or not larger <= {str(seed) for seed in config.audit_seeds}:
            yield "test.larger is of no audit with the config's seeds"
    if told is None:
        return
    most = 0 if config.audit is None else config.audit.arms + 1  # of an extended study one more
    if len(told.arms) > most or len({arm.trial for arm in told.arms}) < len(told.arms):
        yield f"audit has {len(told.arms)} arms, and not each once or more than its config asks for"
        return
    if told.trial != preset.provenance.trial:
        yield f"audit is of trial {told.trial}, the preset of {preset.provenance.trial}"
    yield from _of_the_study(preset, told, config)
    strange = list(_of_the_seeds(told, config, preset.evidence.floor))
    yield from strange
    for arm in told.arms:
        yield from arithmetic.of_a_difference(f"audit of trial {arm.trial}", arm.full)
        if arm.proxy is not None:
            yield from arithmetic.of_a_difference(f"audit.proxy of trial {arm.trial}", arm.proxy)
    for name, stated in _compared(told).items():
        yield from arithmetic.of_an_interval(name, stated)
    if not strange:
        yield from _of_the_finding(told, preset.evidence.floor)


def _compared(told: Audit) -> Mapping[str, Comparison | None]:
    return {
        "audit.to_identity": told.to_identity,
        "audit.to_control": told.to_control,
        "audit.to_uniform": told.to_uniform,
    }


def _of_the_study(preset: Preset, told: Audit, config: StudyConfig) -> Iterator[str]:
    """Yield what of the audit contradicts the rest of the preset."""
    asked = None if config.audit is None else config.audit.lr
    if asked is None or asked not in ("auto", told.lr):
        yield f"audit has the rate {told.lr}, and its config asks for {asked}"
    seeds = set(config.audit_seeds)
    if any(not set(lost) <= seeds for lost in told.diverged.values()):
        yield "audit.diverged names seeds that are not the config's"
    if any(arm.trial < 1 or (arm.proxy is None and arm.trial != told.trial) for arm in told.arms):
        yield "audit has arms that are no trials of the search"
    own = next((arm for arm in told.arms if arm.trial == told.trial), None)
    if own is None:
        if told.reason is None or told.to_identity is not None:
            yield "audit has no arm of the winner, and does not say why or compares it"
        return
    if own.densities.keys() != preset.densities.keys() or any(
        list(own.densities[size]) != list(den) for size, den in preset.densities.items()
    ):
        yield f"audit has {own.densities} as the winner's density, and the preset another"
    searched = preset.evidence.difference_to_identity
    by_metric = preset.evidence.searched_by == "metric"
    if own.proxy is not None and by_metric and not arithmetic.alike(own.proxy.mean, searched.mean):
        yield f"audit.proxy of the winner is {own.proxy.mean}, and its difference {searched.mean}"


def _of_the_seeds(told: Audit, config: StudyConfig, floor: float) -> Iterator[str]:
    full, searched = ({str(seed) for seed in seeds} for seeds in (config.audit_seeds, config.seeds))
    compared = [one.by_seed for one in _compared(told).values() if one is not None]
    trained = [*(arm.full.by_seed for arm in told.arms), *compared]
    if any(by_seed.keys() != full for by_seed in trained):
        yield "the seeds of audit are not the config's"
    if any(arm.proxy is not None and arm.proxy.by_seed.keys() != searched for arm in told.arms):
        yield "audit has differences of the proxy with other seeds than the search's"
    own = next((arm.full for arm in told.arms if arm.trial == told.trial), None)
    if (
        own is not None
        and audit.unsound(told, floor) is None
        and (told.to_identity is None or told.to_identity.by_seed != own.by_seed)
    ):
        yield "audit.to_identity is not the difference of the winner among its arms"


def _of_the_finding(told: Audit, floor: float) -> Iterator[str]:
    """Yield what of correlation, loss and finding does not follow from the arms."""
    follows = audit.judged(told, floor)
    why = audit.unsound(told, floor)
    if why is not None and why not in (told.reason or ""):
        yield f"audit.reason does not say what is so: {why}"
    for name in ("correlation", "loss"):
        stated, found = getattr(told, name), getattr(follows, name)
        one, other = ({} if each is None else each.model_dump() for each in (stated, found))
        if one.keys() != other.keys() or not all(
            arithmetic.alike(one[key], other[key]) for key in one
        ):
            yield f"audit.{name} is {one or None}, and its arms say {other or None}"
    if told.finding != follows.finding:
        yield f"audit says {told.finding}, and its arms {follows.finding}"
