"""What a search compares trials by, and what that is called.

Of classifiers it is the cross-entropy on the validation images: on a VGG its effects were 0.7 to
1.0 paired standard deviations where those of top-1 accuracy were 0.2 to 0.3, with the same signs
(three densities: that the two agree elsewhere is not known).
Verdicts go by the metric. Values are negated here, so that larger is better as everywhere.
"""

from collections.abc import Iterable
from dataclasses import replace

from optimizer.arms import SearchedBy
from optimizer.config.study_file import StudyConfig
from storage.errors import UnreadableError
from storage.ledger import LedgerRow
from storage.studies import Study

KEPT = "searched_by"
"""Under what a study's provenance has it."""
CROSS_ENTROPY = "cross_entropy"
"""What is beside the metric in a classifier's measurement, in nats."""


def of_new(config: StudyConfig) -> SearchedBy:
    """Return what a new study is searched by."""
    return "cross_entropy" if config.data.goal == "classification" else "metric"


def of(study: Study) -> SearchedBy:
    """Return what a study is searched by; earlier versions knew nothing but the metric."""
    kept: SearchedBy = study.provenance.get(KEPT, "metric")
    return kept


def searched(rows: Iterable[LedgerRow], by: SearchedBy) -> list[LedgerRow]:
    """Return measurements with what the search goes by as their value, larger is better.

    UnreadableError if one has none: nothing of ours writes that, but a worker's role may.
    """
    if by == "metric":
        return [*rows]
    return [replace(row, value=-_entropy(row)) for row in rows]


def name(config: StudyConfig, by: SearchedBy) -> str:
    """Return what is compared, with its unit."""
    if by == "metric":
        return f"{config.metric} ({config.unit})"
    return "negated cross-entropy (nats)"


def _entropy(row: LedgerRow) -> float:
    told = row.extra.get(CROSS_ENTROPY)
    if not isinstance(told, int | float):
        raise UnreadableError(
            f"a stored value cannot be read: what trial {row.trial} reached with seed {row.seed} "
            f"after {row.rung} epochs has no cross-entropy"
        )
    return float(told)
