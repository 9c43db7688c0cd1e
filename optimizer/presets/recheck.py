"""What a preset says, held against the numbers that it records.

Its differences by seed are the evidence; means, errors, intervals and the verdict follow from them
by optimizer.evidence and the plan in the config. Hashes tell alterations that nobody hid: the file
is not signed, so whoever alters it on purpose can compute them anew, as well as the differences.
Only a rerun (optimizer.presets.reruns) asks the data themselves.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from optimizer.evidence import baseline, cautions, race, sequential_test
from optimizer.evidence.sequential_test import Plan
from optimizer.evidence.verdicts import Comparison, Control, Holdout, PairedDifference, asked
from optimizer.presets import arithmetic, document, exports, notes, recheck_audit, recheck_rates
from optimizer.presets.document import Confirmation, Preset

UNDECIDED = "undecided"
ARMS = ("identity", "finalist", "control", "uniform", "compensated")
"""Arms that a confirmation trains for a finalist."""
MOST_SAID = 4
"""Disagreements that are named; the others are counted."""


def check(preset: Preset, content: Mapping[str, Any]) -> None:
    """Check that a preset agrees with itself, `content` being its file's; UsageError if not."""
    found = list(_malformed(preset)) or list(_disagreements(preset, content))
    if found:
        said = found[:MOST_SAID]
        if len(found) > MOST_SAID:
            said.append(f"and {len(found) - MOST_SAID} more")
        raise UsageError(
            f"preset {preset.name} does not agree with itself: {'; '.join(said)}; it was altered, "
            "or another version wrote it: export it again with this one, and if that does not "
            "help, confirm it in a new study"
        )


def hashes(preset: Preset) -> str:
    """Return which hashes a preset has, in words."""
    if preset.provenance.content_sha256 is None:
        return "hash of the config (an older preset, without one of the whole content)"
    return "hashes"


def _disagreements(preset: Preset, content: Mapping[str, Any]) -> Iterator[str]:
    provenance = preset.provenance
    stated = provenance.content_sha256
    if stated is not None and document.content_sha256(content) != stated:
        yield f"its content does not have the hash {stated[:12]} that was exported with it"
    if document.sha256(provenance.config) != provenance.config_sha256:
        yield f"provenance.config does not have the hash {provenance.config_sha256[:12]}"
    config = _config(preset)
    yield from _of_the_density(preset, config)
    yield from _of_the_search(preset, config)
    if preset.evidence.confirmation is not None:
        yield from _of_the_confirmation(preset.evidence.confirmation, config)
    yield from _of_the_verdict(preset, config)
    yield from recheck_rates.disagreements(preset, config)
    yield from recheck_audit.disagreements(preset, config)
    yield from _of_the_test_split(preset)


def _config(preset: Preset) -> StudyConfig:
    """Return the config; where the data lie is not told, and nothing here depends on it."""
    config = preset.provenance.config
    data = config.get("data")
    if isinstance(data, dict) and data.get("task") == "folder":
        config = {**config, "data": {**data, "folder": "not told"}}
    return study_file.parse(config, origin=f"in preset {preset.name}")


def _of_the_density(preset: Preset, config: StudyConfig) -> Iterator[str]:
    sizes = sorted(preset.by_kernel_size())
    if sizes != sorted(config.kernel_size):
        yield f"densities are of sizes {sizes}, and provenance.config has {config.kernel_size}"
    for size, den in preset.densities.items():
        if f"den={list(den)}" not in preset.use:
            yield f"density {den} of size {size} is not the one in `use`"


def _of_the_search(preset: Preset, config: StudyConfig) -> Iterator[str]:
    evidence = preset.evidence
    yield from arithmetic.of_a_difference("difference_to_identity", evidence.difference_to_identity)
    seeds = {str(seed) for seed in evidence.seeds}
    if evidence.difference_to_identity.by_seed.keys() != seeds:
        yield "difference_to_identity is of other seeds than evidence.seeds"
    learned = preset.provenance.optuna_trial is None
    if not learned and not seeds <= {str(seed) for seed in config.seeds}:
        yield f"evidence.seeds are not among those of the config, {list(config.seeds)}"
    difference = evidence.value - evidence.identity
    if not learned and not arithmetic.alike(difference, evidence.difference_to_identity.mean):
        yield f"value minus identity is {difference:.6g}, and the mean difference another"
    if evidence.floors and not arithmetic.alike(evidence.floor, max(evidence.floors.values())):
        yield "floor is not the highest of floors"


def _of_the_confirmation(confirmation: Confirmation, config: StudyConfig) -> Iterator[str]:
    most = config.confirm.finalists + config.confirm.trainable
    if not 1 <= confirmation.finalists <= most:
        yield f"{confirmation.finalists} finalists, of at most {most}"
    if confirmation.budget != config.confirm_budget:
        yield f"confirmed for {confirmation.budget} epochs, by the config {config.confirm_budget}"
    if confirmation.compensated is not None:
        yield from arithmetic.of_a_difference("compensated", confirmation.compensated)
    for arm, seeds in confirmation.failures.items():
        if arm not in ARMS or not 1 <= seeds <= config.confirm.seeds:
            yield f"failures has {seeds} seeds of {arm}, not 1 to {config.confirm.seeds} of an arm"
    told = {arm: len(seeds) for arm, seeds in confirmation.diverged.items()}
    if told and told != confirmation.failures:
        yield "diverged names other seeds than failures counts"
    before = confirmation.extended_from
    if before is not None and not config.confirm.batch <= before < config.confirm.seeds:
        yield f"extended from {before} seeds to {config.confirm.seeds}, which is no extension"
    trained = confirmation.to_identity
    count = 0 if trained is None else len(trained.by_seed)
    if confirmation.seeds != count:
        yield f"{confirmation.seeds} seeds are stated, and {count} recorded"
    fresh = {str(seed) for seed in config.fresh_seeds[:count]}
    if trained is not None and trained.by_seed.keys() != fresh:
        yield f"the seeds of the confirmation are not the config's first {count} fresh ones"
    if any(not {str(seed) for seed in seeds} <= fresh for seeds in confirmation.diverged.values()):
        yield "diverged names seeds that are not those of the confirmation"


def _of_the_verdict(preset: Preset, config: StudyConfig) -> Iterator[str]:
    evidence, confirmation = preset.evidence, preset.evidence.confirmation
    if confirmation is None:
        expected = {"unconfirmed"}
    elif confirmation.to_identity is None:
        expected = {"no_evidence"}
    else:
        yield from arithmetic.of_an_interval("to_identity", confirmation.to_identity)
        yield from arithmetic.of_an_interval("to_control", confirmation.to_control)
        yield from arithmetic.of_an_interval("to_uniform", confirmation.to_uniform)
        yield from _of_the_rules(preset, confirmation, config)
        wanted = _controls(preset, confirmation, config)
        judged = {
            plan: _judged(confirmation, wanted, plan) for plan in _plans(confirmation, config)
        }
        expected = set(judged.values())
        open_looks = [plan.looks for plan, said in judged.items() if said == UNDECIDED]
        if evidence.verdict == "dropped" and open_looks:
            yield from _of_a_dropped_one(confirmation, config, open_looks[0])
            expected = {"dropped"}
    if evidence.verdict not in expected:
        said = "; or ".join(sorted(expected))
        yield f"verdict {evidence.verdict}, but the differences say: {said}"
    confirmed = None if confirmation is None else confirmation.identity
    complaint = baseline.complaint(config, evidence.floors, evidence.identity, confirmed)
    if complaint is not None and not evidence.note.startswith(notes.NOT_SOUND):
        yield "note does not say that identity was no healthy baseline"
    told = exports.advised(
        evidence.verdict,
        preset.by_kernel_size(),
        config,
        confirmation,
        () if confirmation is None else asked(config.init, confirmation.uniform_is_identity),
        evidence.own_rates,
        evidence.audit,
        healthy=complaint is None,
    )
    if evidence.advice not in ("", told):  # older presets have none
        yield f"advice is not what follows from the verdict {evidence.verdict}"


def _of_the_rules(preset: Preset, confirmation: Confirmation, config: StudyConfig) -> Iterator[str]:
    """Yield what does not fit today's rules; other networks may be normalised or not (steps)."""
    if confirmation.uniform_is_identity and config.kind in ("dncnn", "nafnet", None):
        yield f"uniform_is_identity, which no {config.kind or 'training script'} has"
    wanted = asked(config.init, confirmation.uniform_is_identity)
    left_open = cautions.left_open(preset.evidence.verdict, confirmation, wanted)
    if left_open is not None and left_open not in preset.evidence.cautions:
        yield f"cautions do not say what is so: {left_open}"


def _controls(preset: Preset, confirmation: Confirmation, config: StudyConfig) -> list[Control]:
    """Return the controls by which it was judged; an earlier version had no uniform mask."""
    wanted = asked(config.init, confirmation.uniform_is_identity)
    early = confirmation.to_uniform is None and cautions.UNMASKED in preset.evidence.cautions
    return [name for name in wanted if not (early and name == "uniform")]


def _judged(confirmation: Confirmation, wanted: Sequence[Control], plan: Plan) -> str:
    """Return the verdict on what was confirmed, or why there is none."""
    assert confirmation.to_identity is not None  # our caller's case
    recorded: dict[Control, Comparison | None] = {
        "control": confirmation.to_control,
        "uniform": confirmation.to_uniform,
    }
    to_controls: dict[Control, dict[int, float] | None] = {}
    for name in wanted:
        found = recorded[name]
        to_controls[name] = None if found is None else arithmetic.by_number(found.by_seed)
    try:
        to_identity = arithmetic.by_number(confirmation.to_identity.by_seed)
        finding = sequential_test.judge(to_identity, to_controls, plan, confirmation.diverged)
    except ValueError as error:
        return str(error)
    return finding.verdict or UNDECIDED


def _of_a_dropped_one(
    confirmation: Confirmation, config: StudyConfig, looks: Sequence[int]
) -> Iterator[str]:
    """Yield what speaks against `dropped`, of a finalist that is undecided itself.

    That others were ahead is in their presets, not in this one. What is checked is that the race
    (optimizer.evidence.race) leaves somebody behind at this look, and that the reason names it.
    """
    assert confirmation.to_identity is not None  # our caller's case
    keep, count = config.confirm.keep, len(confirmation.to_identity.by_seed)
    all_alike = dict.fromkeys(range(confirmation.finalists), 0.0)
    first = looks.index(count) + 1  # or later if extended: the race goes by the most seeds of all
    last = first if confirmation.extended_from is None else len(looks)
    kept = [len(race.going_on(all_alike, look, keep)) for look in range(first, last + 1)]
    if min(kept) == len(all_alike):
        yield f"dropped, but with confirm.keep {list(keep)} all finalists go on after {count} seeds"
    if confirmation.reason != f"dropped after {count} seeds":
        yield f"the reason does not say that it was dropped after {count} seeds"


def _plans(confirmation: Confirmation, config: StudyConfig) -> Iterator[Plan]:
    """Yield the plans by which a finalist may have been judged: two if the study was extended."""
    most = config.confirm.seeds
    for seeds in {most, min(most, confirmation.extended_from or most)}:
        yield Plan(seeds, config.confirm.batch, max(1, confirmation.finalists))


def _tests(preset: Preset) -> Iterator[tuple[str, Holdout]]:
    """Yield what the test split said by name: on the proxy, and on an audit's network."""
    test = preset.evidence.test
    if test is not None:
        yield "test", test
    if test is not None and test.larger is not None:
        yield "test.larger", test.larger


def _of_the_test_split(preset: Preset) -> Iterator[str]:
    for name, test in _tests(preset):
        if test.difference is None:
            continue
        if test.trial != preset.provenance.trial:
            yield f"{name} is of trial {test.trial}, the preset of trial {preset.provenance.trial}"
        if test.difference.by_seed.keys() != {str(seed) for seed in test.seeds}:
            yield f"{name}.difference is of other seeds than {name}.seeds"
        yield from arithmetic.of_an_interval(f"{name}.difference", test.difference)
        if test.value is not None and test.identity is not None:
            difference = test.value - test.identity
            if not arithmetic.alike(difference, test.difference.mean):
                yield f"{name}.value minus {name}.identity is {difference:.6g}, the mean another"


def _malformed(preset: Preset) -> Iterator[str]:
    """Yield which differences are not of whole numbers of seeds, or of none."""
    evidence, confirmed = preset.evidence, preset.evidence.confirmation
    told = {"difference_to_identity": evidence.difference_to_identity}
    compared: dict[str, Comparison | PairedDifference | None] = dict(told)
    if confirmed is not None:
        compared |= {"to_identity": confirmed.to_identity, "to_control": confirmed.to_control}
        compared |= {"to_uniform": confirmed.to_uniform, "compensated": confirmed.compensated}
    if evidence.own_rates is not None:
        compared |= {"own_rates.to_identity": evidence.own_rates.to_identity}
        compared |= {
            f"own_rates, to {name}": one for name, one in evidence.own_rates.beside.items()
        }
    if evidence.audit is not None:
        compared |= recheck_audit.recorded(evidence.audit)
    for name, test in _tests(preset):
        compared[f"{name}.difference"] = test.difference
    for name, difference in compared.items():
        seeds = [] if difference is None else list(difference.by_seed)
        if difference is not None and (
            not seeds or not all(re.fullmatch("[0-9]{1,10}", seed) for seed in seeds)
        ):
            yield f"the seeds of {name} are no whole numbers of at most 10 digits"
