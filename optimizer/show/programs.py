"""A study for programs: what `status --json` prints."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from optimizer.evidence import differences
from optimizer.snapshot import Snapshot, precision

OF_A_WORKER = ("host", "pid", "device", "live", "jobs_done", "jobs_per_hour")
"""What programs are told of a worker."""


def document(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as plain JSON values."""
    audited = snapshot.carried_over
    return {
        "study": snapshot.study.name,
        "state": snapshot.study.state,
        "phase": snapshot.study.phase,
        "phases": {name: phase.jobs for name, phase in snapshot.phases.items()},
        "failure": snapshot.study.failure,
        "created_at": _iso(snapshot.study.created_at),
        "finished_at": _iso(snapshot.study.finished_at),
        "metric": snapshot.config.metric,
        "unit": snapshot.config.unit,
        "searched_by": snapshot.searched_by,
        "precision": precision(snapshot.study),
        "lr": snapshot.lr,
        "calibration": [{"lr": lr, "value": value} for lr, value in snapshot.calibration.items()],
        "advice": snapshot.advice,
        "verdict": snapshot.verdict,
        "verdicts": [verdict.model_dump() for verdict in snapshot.verdicts],
        "learned": None if snapshot.learned is None else snapshot.learned.document(),
        "own_rates": None if snapshot.own_rates is None else snapshot.own_rates.model_dump(),
        "apart": None if snapshot.apart is None else snapshot.apart.model_dump(),
        "audit": None if audited is None else audited.model_dump(),
        "test": None if snapshot.holdout is None else snapshot.holdout.model_dump(),
        "floors": snapshot.floors,
        "cautions": snapshot.cautions,
        "trials": snapshot.counts,
        "jobs_per_hour": snapshot.jobs_per_hour,
        "seconds_left": snapshot.seconds_left,
        "best": None if snapshot.best is None else snapshot.best.document(),
        "results": [result.document() for result in differences.ranked(snapshot.results)],
        "failed": [
            {"trial": trial.number, "label": trial.label, "reason": trial.reason}
            for trial in snapshot.trials
            if trial.state == "failed"
        ],
        "failures": [
            {**asdict(failure), "failed_at": _iso(failure.failed_at)}
            for failure in snapshot.failures
        ],
        "workers": [
            {name: getattr(worker, name) for name in OF_A_WORKER} for worker in snapshot.workers
        ],
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
