"""What was proposed: trials, each with densities and the jobs that measure them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, insert, select, text, update

from storage import jobs, tables
from storage.failures import POLICIES, Kind
from storage.states import Phase, Role, TrialState


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial with its jobs counted by state."""

    number: int
    optuna_number: int | None  # only the search's trials have one
    origin: int | None  # number of the search's trial that a trial of a confirmation belongs to
    role: Role
    label: str
    densities: dict[int, tuple[float, ...]]  # by kernel size
    arm: Mapping[str, Any]  # JSON: how its training differs from the study's
    state: TrialState
    reason: str | None  # why it ended as it did, told to its own users only
    jobs: int
    waiting: int
    running: int
    done: int
    cut: int
    failed: int
    error_text: str | None  # of the first of its jobs that failed; it depends on the machine
    kind: Kind | None = None  # of that failure

    @property
    def is_open(self) -> bool:
        """Whether results are still to come."""
        return bool(self.waiting or self.running)

    @property
    def failure(self) -> str | None:
        """Return what the first failure was, the same on whichever workers it happened.

        This and not `error_text` is for all that is handed on. None if no job failed.
        """
        return None if self.kind is None else POLICIES[self.kind].said


def add(
    connection: Connection,
    study_id: int,
    phase: Phase,
    *,
    number: int,
    role: Role,
    label: str,
    densities: Mapping[int, Sequence[float]],
    seeds: Sequence[int],
    budget: int,
    bars: Mapping[int, float] = MappingProxyType({}),
    arm: Mapping[str, Any] = MappingProxyType({}),
    optuna_number: int | None = None,
    origin: int | None = None,
) -> None:
    """Add a running trial, and a waiting job of `budget` epochs with these bars for each seed.

    Part of a proposer's step, which is all or nothing and begins anew with what is stored.
    """
    connection.execute(
        insert(tables.trials).values(
            study_id=study_id,
            phase=phase,
            number=number,
            optuna_number=optuna_number,
            origin=origin,
            role=role,
            label=label,
            densities={str(size): [float(x) for x in den] for size, den in densities.items()},
            arm=dict(arm),
        )
    )
    jobs.enqueue(connection, study_id, phase, number, seeds, budget, bars)


def finish(
    connection: Connection,
    study_id: int,
    phase: Phase,
    number: int,
    state: TrialState,
    reason: str | None = None,
) -> None:
    """Set what became of a trial, and why; part of a proposer's step."""
    columns = tables.trials.c
    connection.execute(
        update(tables.trials)
        .where(columns.study_id == study_id, columns.phase == phase, columns.number == number)
        .values(state=state, reason=reason)
    )


def all_of(connection: Connection, study_id: int, phase: Phase) -> list[TrialRow]:
    """Return the trials of a study's phase by number."""
    query = text("""
        SELECT number, optuna_number, origin, role, label, densities, arm, trials.state, reason,
               count(jobs.id) AS jobs,
               count(*) FILTER (WHERE jobs.state = 'waiting') AS waiting,
               count(*) FILTER (WHERE jobs.state = 'running') AS running,
               count(*) FILTER (WHERE jobs.state = 'done') AS done,
               count(*) FILTER (WHERE jobs.state = 'cut') AS cut,
               count(*) FILTER (WHERE jobs.state = 'failed') AS failed,
               (array_agg(error ORDER BY jobs.id) FILTER (WHERE jobs.state = 'failed'))[1]
                   AS error_text,
               (array_agg(kind ORDER BY jobs.id) FILTER (WHERE jobs.state = 'failed'))[1] AS kind
        FROM densitune.trials AS trials
        LEFT JOIN densitune.jobs AS jobs
            ON jobs.study_id = trials.study_id AND jobs.phase = trials.phase
            AND jobs.trial = trials.number
        WHERE trials.study_id = :study AND trials.phase = :phase
        GROUP BY trials.study_id, trials.phase, trials.number
        ORDER BY trials.number
    """)
    rows = connection.execute(query, {"study": study_id, "phase": phase})
    return [_trial(row) for row in rows]


def optuna_numbers(connection: Connection, study_id: int) -> set[int]:
    """Return the numbers that Optuna's trials behind those of a study have."""
    columns = tables.trials.c
    query = select(columns.optuna_number).where(
        columns.study_id == study_id, columns.optuna_number.is_not(None)
    )
    return set(connection.scalars(query))


def _trial(row: Row[Any]) -> TrialRow:
    return TrialRow(**{**row._mapping, "densities": jobs.densities_of(row.densities)})
