"""Sentences that terminal and report share."""

from optimizer.phases import holdout
from optimizer.snapshot import Snapshot


def about_test_split(snapshot: Snapshot) -> str | None:
    """Return a line about the test split; None before the verdict, or without a finalist."""
    config, found = snapshot.config, snapshot.holdout
    if snapshot.study.phase != "decided" or snapshot.winner is None:
        return None
    if found is None and not config.data.has_test:
        return "no test split"
    if found is None and not holdout.is_due(config, snapshot.verdicts):
        return "test split: not read, for no finalist could be judged"
    if found is None:
        counted = snapshot.decided.jobs
        return f"test split: {counted['done']}/{counted['queued']} jobs done"
    if found.difference is None:
        return f"test split: {found.reason}"
    if found.trial != snapshot.winner.trial:
        return f"test split: read before the study was extended, for trial {found.trial}"
    difference = found.difference
    return (
        f"test split: {difference.mean:+.3f} {config.unit} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}] to identity "
        f"({found.value:.3f} against {found.identity:.3f}, {len(found.seeds)} seeds)"
    )
