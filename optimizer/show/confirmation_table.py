"""The table of a confirmation: every arm against identity, every finalist against its controls."""

import statistics
from collections.abc import Mapping

from rich.table import Table

from optimizer.evidence import differences
from optimizer.evidence.verdicts import Comparison, FinalistVerdict
from optimizer.phases import comparisons
from optimizer.phases.comparisons import IDENTITY, Group
from optimizer.show import words
from optimizer.snapshot import Snapshot
from storage import printable
from storage.states import Role
from storage.trials import TrialRow

ARMS: dict[Role, str] = {
    "control": "scale control",
    "uniform": "uniform mask",
    "compensated": "compensated",
}
"""What arms beside a finalist are called."""


def arms_table(snapshot: Snapshot) -> Table:
    """Return the arms of a decided confirmation with intervals, and the verdicts in words."""
    config = snapshot.config
    sentences = [words.verdict(finalist) for finalist in snapshot.verdicts] or [
        "No trial was fit to be confirmed."
    ]
    about = _not_confirmed(snapshot), words.about_own_rates(snapshot), words.about_apart(snapshot)
    later = words.about_audit(snapshot), words.about_test_split(snapshot)
    sentences += filter(None, [*about, *later])
    if snapshot.searched_by == "cross_entropy":
        sentences.append(words.BY_ENTROPY)
    if snapshot.uniform_is_identity and config.init != "compensated":
        sentences.append(words.UNIFORM_IS_IDENTITY)
    table = Table(
        title=f"{printable.line(snapshot.study.name)}: {config.metric} on validation data, "
        f"confirmed with fresh seeds, {config.confirm_budget} epochs",
        caption="\n".join(
            [
                "Brackets are 95 % intervals of paired differences, ± is a standard error. The "
                "verdict is a stricter test's, corrected for its looks and for all finalists.",
                *sentences,
            ]
        ),
        caption_justify="left",
    )
    table.add_column("arm", overflow="fold")
    table.add_column("seeds", justify="right")
    table.add_column(f"{config.metric}, {config.unit}", justify="right")
    table.add_column("minus identity", justify="right")
    table.add_column("density minus it", justify="right")
    values = differences.final_values(snapshot.confirm.rows)
    identity = values.get(IDENTITY, {})
    if identity:
        table.add_row("identity", *_metric(identity), "0 (the baseline)", "")
    groups = comparisons.groups(snapshot.confirm.trials)
    for finalist, group in zip(snapshot.verdicts, groups, strict=True):
        table.add_section()
        _add_finalist(table, finalist, group, values)
    return table


def _add_finalist(
    table: Table, finalist: FinalistVerdict, group: Group, values: Mapping[int, Mapping[int, float]]
) -> None:
    densities = words.densities(group.finalist.densities, between="\n")
    table.add_row(
        f"{densities}\n{printable.line(finalist.label)}: {finalist.verdict}",
        *_metric(values.get(group.finalist.number, {})),
        _interval(finalist.to_identity),
        "",
    )
    compared = {"control": finalist.to_control, "uniform": finalist.to_uniform}
    for arm in group.arms[1:]:
        own = values.get(arm.number, {})
        difference = _difference(arm, own, values[IDENTITY])
        beside = _interval(compared.get(arm.role))
        table.add_row(ARMS[arm.role], *_metric(own), difference, beside)


def _difference(arm: TrialRow, own: Mapping[int, float], identity: Mapping[int, float]) -> str:
    if arm.failed:
        return "failed"
    difference = differences.paired(own, identity)
    return words.signed(difference.mean, difference.standard_error)


def _metric(by_seed: Mapping[int, float]) -> tuple[str, str]:
    return str(len(by_seed)), f"{statistics.fmean(by_seed.values()):.3f}" if by_seed else ""


def _interval(compared: Comparison | None) -> str:
    if compared is None:
        return ""
    return f"{words.signed(compared.mean)}\n{words.brackets(compared.low, compared.high)}"


def _not_confirmed(snapshot: Snapshot) -> str | None:
    """Return a line about what was learned by gradient, unless it is among the finalists."""
    learned = snapshot.learned
    if learned is None or any(finalist.trial == learned.number for finalist in snapshot.verdicts):
        return None
    return f"{words.densities(learned.densities)} was learned: practically identity or a finalist."
