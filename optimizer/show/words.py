"""Numbers and findings in words, the same on the terminal and in the report."""

from collections.abc import Mapping

from densitune.density import Densities
from optimizer.evidence import own_rates
from optimizer.evidence.audit import SENTENCE
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.verdicts import MEANING, Comparison, FinalistVerdict, Holdout, asked
from optimizer.phases import holdout
from optimizer.presets import notes
from optimizer.presets.document import Preset
from optimizer.show import ranks
from optimizer.snapshot import Snapshot
from storage import printable

ARMS = {
    "identity": "identity",
    "finalist": "the density",
    "control": own_rates.NAMES["control"],
    "uniform": own_rates.NAMES["uniform"],
}
"""What arms are called in sentences, by role."""
BELOW_IDENTITY = "cross-entropy below identity's, nats"
"""What a search of classifiers goes by, as the head of a column; larger is better."""
BY_ENTROPY = (
    "The search went by the cross-entropy on validation data, which tells densities apart with "
    "fewer seeds; verdicts go by top-1 accuracy."
)
"""Which is which, where there are two."""
UNIFORM_IS_IDENTITY = (
    "Every weighted convolution feeds a normalisation: a uniform mask trains as identity does, so "
    "identity is the control, and a density says nothing about the scale of the start."
)
"""Why a confirmation has no controls beside identity."""


def densities(by_kernel_size: Densities, between: str = "  ") -> str:
    """Return densities with four digits, and with sizes if there are several."""
    texts = {
        k: "[" + ", ".join(f"{value:.4g}" for value in den) + "]"
        for k, den in by_kernel_size.items()
    }
    if len(texts) == 1:
        return next(iter(texts.values()))
    return between.join(f"k={k} {text}" for k, text in texts.items())


def duration(seconds: float) -> str:
    """Return a duration by its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def per_hour(rate: float) -> str:
    """Return how much is done in an hour: whole numbers, but for low rates."""
    return f"{rate:.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def signed(difference: float, standard_error: float | None = None) -> str:
    """Return a difference, with its standard error if that is known."""
    return f"{difference:+.3f}" + (f" ± {standard_error:.3f}" if standard_error is not None else "")


def interval(low: float, high: float) -> str:
    """Return the ends of an interval."""
    return f"{signed(low)} to {signed(high)}"


def brackets(low: float, high: float) -> str:
    """Return an interval where there is little room."""
    return f"[{signed(low)}, {signed(high)}]"


def to_identity(result: TrialResult) -> str:
    """Return a trial's difference to identity with its standard error."""
    if result.role == "identity":
        return "0 (the baseline)"
    return signed(result.difference.mean, result.difference.standard_error)


def below_identity(result: TrialResult) -> str:
    """Return by how much a trial's cross-entropy is below identity's, where a search goes by it."""
    if result.role == "identity" or result.entropy is None:
        return ""
    return signed(result.entropy.mean, result.entropy.standard_error)


def verdict(finalist: FinalistVerdict) -> str:
    """Return a verdict and what it means, for a line."""
    about = f"{densities(finalist.by_kernel_size())} is {finalist.verdict}"
    text = f"{about}: {finalist.reason or MEANING[finalist.verdict]}"
    more = [text, _more_seeds(finalist), _diverged(finalist)]
    return printable.line(f"{'; '.join(filter(None, more))}.")


def _diverged(finalist: FinalistVerdict) -> str | None:
    """Return on how many seeds training diverged, by arm; None if it never did."""
    if not finalist.failures:
        return None
    by_arm = ", ".join(f"{arm} on {seeds}" for arm, seeds in finalist.failures.items())
    return f"seeds that diverged and score the floor: {by_arm}"


def _more_seeds(finalist: FinalistVerdict) -> str | None:
    """Return what more seeds would show of what is open; None if that is not known."""
    open_against = {
        "no_evidence": ("identity", finalist.to_identity),
        "dropped": ("identity", finalist.to_identity),
        "scale_only": ("its scale control", finalist.to_control),
        "step_only": ("its uniform mask", finalist.to_uniform),
    }
    name, compared = open_against.get(finalist.verdict, ("", None))
    if compared is None:
        return None
    if compared.mean < 0:
        return f"more seeds would more likely show that it does harm against {name}"
    seeds = finalist.seeds_to_settle
    return (
        None if seeds is None else f"about {seeds} seeds might settle it, with another search.seed"
    )


def preset_verdict(preset: Preset) -> str:
    """Return a preset's verdict and what it means, for a line."""
    stated = preset.evidence.verdict
    text = f"{stated}: {MEANING[stated]}"
    if preset.evidence.note.startswith(notes.NOT_SOUND):
        return f"{text}; but identity was no healthy baseline"
    if preset.evidence.note.startswith(notes.EARLIER):
        return f"{text}; but by the rules of an earlier version (see its note)"
    checked, confirmed = preset.evidence.own_rates, preset.evidence.confirmation
    if stated != "better" or checked is None or checked.holds is None or confirmed is None:
        return text
    wanted = asked(preset.task.init, confirmed.uniform_is_identity)
    where = own_rates.scope(checked, wanted)
    return f"{text}; {where} it {'holds' if checked.holds else 'is not shown to hold'}"


def verdict_with_numbers(finalist: FinalistVerdict, unit: str) -> str:
    """Return what a verdict means, with its reason or its numbers, as a sentence."""
    meaning = MEANING[finalist.verdict]
    if finalist.reason is not None:
        return f"{meaning}; {finalist.reason}."
    compared = {
        "identity": finalist.to_identity,
        "its scale control": finalist.to_control,
        "its uniform mask": finalist.to_uniform,
    }
    told = filter(None, [_more_seeds(finalist), _diverged(finalist)])
    more = "".join(f" {line[0].upper()}{line[1:]}." for line in told)
    return f"{meaning} ({'; '.join(_comparisons(compared, unit))}).{more}"


def _comparisons(compared: Mapping[str, Comparison | None], unit: str) -> list[str]:
    return [
        f"{signed(difference.mean)} {unit} to {name}, 95 % interval "
        f"{interval(difference.low, difference.high)}{_over_images(difference)}, "
        f"{len(difference.by_seed)} fresh seeds"
        for name, difference in compared.items()
        if difference is not None
    ]


def _over_images(compared: Comparison) -> str:
    """Return the interval over seeds and images after the one over seeds, where there is one."""
    over = compared.images
    if over is None:
        return ""
    return f" over seeds, {interval(over.low, over.high)} over seeds and {over.count} images"


def about_own_rates(snapshot: Snapshot) -> str | None:
    """Return whether the winner holds at each arm's own rate; None unless that is asked."""
    winner, told = snapshot.winner, snapshot.own_rates
    begun = any(trial.role == "rate" for trial in snapshot.check.trials)
    if winner is None or not (begun or winner.verdict == "better"):
        return None
    where = "at each arm's own rate"
    if told is not None:
        where = own_rates.scope(told, snapshot.controls)
    asked = f"holds {where}"
    if winner.verdict != "better":
        asked = f"above the others {where}, which changes no verdict"
    if told is None and begun and snapshot.study.phase == "check":
        counted = snapshot.check.jobs
        return f"{asked}: being checked, {counted['done']}/{counted['queued']} jobs done"
    if told is None or told.holds is None:
        return f"{asked}: not checked{f': {told.reason}' if told is not None else ''}"
    rates = ", ".join(f"{ARMS[arm]} at {rate:g}" for arm, rate in told.rates.items())
    compared = {"identity": told.to_identity}
    compared |= {ARMS[name]: beside for name, beside in told.beside.items()}
    numbers = "; ".join(_comparisons(compared, snapshot.config.unit))
    return f"{asked}: {'yes' if told.holds else 'no'} ({rates}; {numbers})"


def about_apart(snapshot: Snapshot) -> str | None:
    """Return what the winner's start and its steps do alone; None unless that was asked."""
    told, unit = snapshot.apart, snapshot.config.unit
    if told is None:
        return None
    compared = {
        "its start alone": told.init_only,
        "its steps alone": told.steps_only,
        "main effect of its start": told.start,
        "of its steps": told.steps,
        "interaction": told.interaction,
    }
    numbers = [
        f"{name} {signed(one.mean)} {unit} {brackets(one.low, one.high)}"
        for name, one in compared.items()
        if one is not None
    ]
    gone = [
        f"{ARMS.get(arm, arm)} diverged on {len(seeds)} seeds"
        for arm, seeds in told.diverged.items()
    ]
    return f"start and steps apart: {'; '.join([*numbers, *gone, *filter(None, [told.reason])])}"


def about_audit(snapshot: Snapshot) -> str | None:
    """Return what an audit found, its sentence first; None unless one was asked for."""
    asked, told = snapshot.config.audit, snapshot.carried_over
    if asked is None or snapshot.winner is None:
        return None
    if told is None:
        counted = snapshot.audit.jobs
        begun = (
            f"{counted['done']}/{counted['queued']} jobs done" if counted["queued"] else "to come"
        )
        return f"audit on the larger network: {begun}"
    parts = [SENTENCE[told.finding]]
    if told.correlation is not None:
        parts.append(ranks.correlation(told.correlation, told.arms))
    if told.loss is not None:
        parts.append(ranks.loss(told.loss, told.trial, snapshot.config.unit))
    compared = {"identity": told.to_identity, "its scale control": told.to_control}
    numbers = _comparisons({**compared, "its uniform mask": told.to_uniform}, snapshot.config.unit)
    if numbers:
        parts.append(f"there the winner is {'; '.join(numbers)}")
    gone = [f"{label} diverged on {len(seeds)} seeds" for label, seeds in told.diverged.items()]
    return f"audit: {'; '.join([*parts, *gone, *filter(None, [told.reason])])}"


def about_test_split(snapshot: Snapshot) -> str | None:
    """Return a line about the test split; None before the verdict, or without a finalist."""
    config, tested = snapshot.config, snapshot.holdout
    if snapshot.study.phase != "decided" or snapshot.winner is None:
        return None
    if tested is None and not config.data.has_test:
        return "no test split"
    if tested is None and holdout.due(config, snapshot.verdicts) is None:
        return "test split: not read, for no finalist could be judged"
    if tested is None:
        return "test split: measured and not read yet"
    difference = tested.difference
    if difference is None:
        return f"test split: {printable.line(tested.reason)}"
    if tested.trial != snapshot.winner.trial:
        return f"test split: read before the study was extended, for trial {tested.trial}"
    return (
        f"test split: {signed(difference.mean)} {config.unit} "
        f"{brackets(difference.low, difference.high)}{_over_images(difference)} to identity "
        f"({tested.value:.3f} against {tested.identity:.3f}, {len(tested.seeds)} seeds)"
        f"{_of_larger(tested.larger, config.unit)}"
    )


def _of_larger(tested: Holdout | None, unit: str) -> str:
    """Return what the test split said on the larger network of an audit, after the proxy's."""
    if tested is None or tested.difference is None:
        return ""
    difference = tested.difference
    return (
        f"; on the larger network {signed(difference.mean)} {unit} "
        f"{brackets(difference.low, difference.high)} ({tested.value:.3f} against "
        f"{tested.identity:.3f}, {len(tested.seeds)} seeds)"
    )
