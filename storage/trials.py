"""What was proposed: trials, each with densities and the jobs that measure them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, text, update

from storage import jobs, tables

Role = Literal["identity", "published", "candidate"]
State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial with its jobs counted by state."""

    number: int
    optuna_number: int
    role: Role
    label: str
    densities: dict[int, tuple[float, ...]]  # by kernel size
    state: State
    reason: str | None
    jobs: int
    waiting: int
    running: int
    done: int
    cut: int
    failed: int
    error: str | None  # of the first of its jobs that failed


def add(
    connection: Connection,
    study_id: int,
    *,
    number: int,
    optuna_number: int,
    role: Role,
    label: str,
    densities: Mapping[int, Sequence[float]],
    seeds: Sequence[int],
    budget: int,
    bars: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """Add a running trial, and a waiting job of `budget` epochs with these bars for each seed."""
    connection.execute(
        insert(tables.trials).values(
            study_id=study_id,
            number=number,
            optuna_number=optuna_number,
            role=role,
            label=label,
            densities={str(size): [float(x) for x in den] for size, den in densities.items()},
        )
    )
    jobs.enqueue(connection, study_id, number, seeds, budget, bars)


def finish(
    connection: Connection, study_id: int, number: int, state: State, reason: str | None = None
) -> None:
    """Set what became of a trial, and why."""
    connection.execute(
        update(tables.trials)
        .where(tables.trials.c.study_id == study_id, tables.trials.c.number == number)
        .values(state=state, reason=reason)
    )


def all_of(connection: Connection, study_id: int) -> list[TrialRow]:
    """Return the study's trials by number."""
    query = text("""
        SELECT number, optuna_number, role, label, densities, trials.state, reason,
               count(jobs.id) AS jobs,
               count(*) FILTER (WHERE jobs.state = 'waiting') AS waiting,
               count(*) FILTER (WHERE jobs.state = 'running') AS running,
               count(*) FILTER (WHERE jobs.state = 'done') AS done,
               count(*) FILTER (WHERE jobs.state = 'cut') AS cut,
               count(*) FILTER (WHERE jobs.state = 'failed') AS failed,
               (array_agg(error ORDER BY jobs.id) FILTER (WHERE jobs.state = 'failed'))[1] AS error
        FROM densitune.trials AS trials
        LEFT JOIN densitune.jobs AS jobs
            ON jobs.study_id = trials.study_id AND jobs.trial = trials.number
        WHERE trials.study_id = :study
        GROUP BY trials.study_id, trials.number
        ORDER BY trials.number
    """)
    return [_trial(row) for row in connection.execute(query, {"study": study_id})]


def _trial(row: Row[Any]) -> TrialRow:
    return TrialRow(**{**row._mapping, "densities": jobs.densities_of(row.densities)})
