"""The table of a confirmation: every arm against identity, every finalist against its control."""

import statistics
from collections.abc import Mapping

from rich.table import Table

from optimizer.evidence import differences
from optimizer.evidence.verdicts import MEANING, Comparison, FinalistVerdict
from optimizer.phases import confirmation
from optimizer.phases.confirmation import IDENTITY, Group
from optimizer.show import words
from optimizer.show.terminal import density_text
from optimizer.snapshot import Snapshot
from storage.trials import TrialRow


def confirmation_table(snapshot: Snapshot) -> Table:
    """Return the arms of a decided confirmation with intervals, and the verdicts in words."""
    config = snapshot.config
    sentences = [_in_words(one) for one in snapshot.verdicts] or [
        "No trial was fit to be confirmed."
    ]
    sentences += filter(None, [_not_confirmed(snapshot), words.about_test_split(snapshot)])
    table = Table(
        title=f"{snapshot.study.name}: {config.metric} on validation data, confirmed with fresh "
        f"seeds, {config.confirm_budget} epochs",
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
    table.add_column("minus its scale control", justify="right")
    values = differences.final_values(snapshot.confirm.rows)
    identity = values.get(IDENTITY, {})
    if identity:
        table.add_row("identity", *_metric(identity), "0 (the baseline)", "")
    groups = confirmation.groups(snapshot.confirm.trials)
    for one, group in zip(snapshot.verdicts, groups, strict=True):
        table.add_section()
        _add_finalist(table, one, group, values)
    return table


def _add_finalist(
    table: Table, one: FinalistVerdict, group: Group, values: Mapping[int, Mapping[int, float]]
) -> None:
    densities = density_text(group.finalist.densities, between="\n")
    table.add_row(
        f"{densities}\n{one.label}: {one.verdict}",
        *_metric(values.get(group.finalist.number, {})),
        _interval(one.to_identity),
        _interval(one.to_control),
    )
    for name, arm in (("scale control", group.control), ("compensated", group.compensated)):
        if arm is not None:
            own = values.get(arm.number, {})
            table.add_row(name, *_metric(own), _difference(arm, own, values[IDENTITY]), "")


def _difference(arm: TrialRow, own: Mapping[int, float], identity: Mapping[int, float]) -> str:
    if arm.failed:
        return "failed"
    found = differences.paired(own, identity)
    return f"{found.mean:+.3f} ± {found.standard_error:.3f}"


def _metric(by_seed: Mapping[int, float]) -> tuple[str, str]:
    return str(len(by_seed)), f"{statistics.fmean(by_seed.values()):.3f}" if by_seed else ""


def _interval(found: Comparison | None) -> str:
    return "" if found is None else f"{found.mean:+.3f}\n[{found.low:+.3f}, {found.high:+.3f}]"


def _not_confirmed(snapshot: Snapshot) -> str | None:
    """Return a line about what was learned by gradient, unless it is among the finalists."""
    learned = snapshot.learned
    if learned is None or any(one.trial == learned.number for one in snapshot.verdicts):
        return None
    return f"{density_text(learned.densities)} was learned: practically identity or a finalist."


def _in_words(one: FinalistVerdict) -> str:
    densities = density_text({int(k): tuple(den) for k, den in one.densities.items()})
    text = f"{densities} is {one.verdict}: {one.reason or MEANING[one.verdict]}"
    if one.seeds_to_settle is not None and one.verdict in ("no_evidence", "scale_only"):
        text += f"; about {one.seeds_to_settle} seeds might settle it"
    return f"{text}."
