"""Studies by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Connection, Engine, Row, case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from storage import leases, tables
from storage.errors import UnreadableError
from storage.states import Phase, StudyState


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it is stored."""

    id: int
    name: str
    config: dict[str, Any]
    data_fingerprint: str
    provenance: dict[str, Any]
    state: StudyState
    failure: str | None
    created_at: datetime
    finished_at: datetime | None
    phase: Phase
    until: Phase | None  # the phase after which it stops
    forced: bool  # it goes on although identity is no healthy baseline
    lr: float | None  # the calibrated learning rate
    verdicts: list[dict[str, Any]] | None  # of the finalists, once decided
    holdout: dict[str, Any] | None = None  # what the test split said afterwards, if it was read


@dataclass(frozen=True, kw_only=True)
class StudyOverview:
    """A study in a list: its state, the search's trials by state, its workers that are alive."""

    name: str
    state: StudyState
    phase: Phase
    failure: str | None
    created_at: datetime
    verdicts: list[dict[str, Any]] | None
    asked_for: int | None  # trials, by the config
    trials: int
    running: int
    complete: int
    pruned: int
    failed: int
    workers: int


def create(
    engine: Engine,
    name: str,
    config: Mapping[str, Any],
    data_fingerprint: str,
    provenance: Mapping[str, Any],
    phase: Phase,
) -> tuple[Study, bool]:
    """Store a new study; return the one of this name, and whether it is the new one.

    Of several processes that create the same name at once, exactly one gets True.
    """
    new = insert(tables.studies).values(
        name=name,
        config=dict(config),
        data_fingerprint=data_fingerprint,
        provenance=dict(provenance),
        phase=phase,
    )
    with engine.begin() as connection:
        row = connection.execute(
            new.on_conflict_do_nothing().returning(tables.studies)
        ).one_or_none()
        if row is not None:
            return _study(row), True
        return _study(
            connection.execute(select(tables.studies).where(tables.studies.c.name == name)).one()
        ), False


def find(engine: Engine, name: str) -> Study | None:
    """Return the study of this name, or None."""
    with engine.connect() as connection:
        row = connection.execute(
            select(tables.studies).where(tables.studies.c.name == name)
        ).one_or_none()
    return None if row is None else _study(row)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Let an UnreadableError inside say which study the value belongs to."""
    try:
        yield
    except UnreadableError as error:
        raise UnreadableError(
            f"study {name}: {error}; the owner of the database may remove "
            f"it; to begin anew: densitune delete {name}"
        ) from error


def numbers(connection: Connection) -> dict[str, int]:
    """Return the numbers of all studies by name."""
    columns = tables.studies.c
    rows = connection.execute(select(columns.name, columns.id))
    return {row.name: row.id for row in rows}


def overview(engine: Engine) -> list[StudyOverview]:
    """Return all studies, oldest first."""
    query = text(f"""
        SELECT name, state, phase, failure, created_at, verdicts,
               (config -> 'search' ->> 'trials')::int AS asked_for, counted.*,
               (SELECT count(*) FROM densitune.workers
                WHERE study_id = studies.id AND {leases.ALIVE}) AS workers
        FROM densitune.studies AS studies, LATERAL (
            SELECT count(*) AS trials,
                   count(*) FILTER (WHERE trials.state = 'running') AS running,
                   count(*) FILTER (WHERE trials.state = 'complete') AS complete,
                   count(*) FILTER (WHERE trials.state = 'pruned') AS pruned,
                   count(*) FILTER (WHERE trials.state = 'failed') AS failed
            FROM densitune.trials AS trials
            WHERE study_id = studies.id AND trials.phase = 'search'
        ) AS counted
        ORDER BY studies.id
    """)
    with engine.connect() as connection:
        rows = connection.execute(query, leases.arguments())
        return [StudyOverview(**row._mapping) for row in rows]


def state(engine: Engine, study_id: int) -> StudyState | None:
    """Return the study's state, or None if it has been deleted."""
    with engine.connect() as connection:
        return connection.scalar(
            select(tables.studies.c.state).where(tables.studies.c.id == study_id)
        )


def stop(engine: Engine, study_id: int) -> bool:
    """Stop a study; False if it was not running (any more), and stays as it is."""
    columns = tables.studies.c
    with engine.begin() as connection:
        stopped = connection.execute(
            update(tables.studies)
            .where(columns.id == study_id, columns.state == "running")
            .values(state="stopped")
        )
        return stopped.rowcount == 1


def go_on(engine: Engine, study_id: int, until: Phase | None, *, force: bool) -> None:
    """Let a study run, to its end or to that of a phase; once forced, it stays so.

    A finished study stays finished.
    """
    columns = tables.studies.c
    with engine.begin() as connection:
        connection.execute(
            update(tables.studies)
            .where(columns.id == study_id, columns.state != "finished")
            .values(state="running", failure=None, until=until, forced=columns.forced | force)
        )


def is_over(study: Study, phase: Phase | None) -> bool:
    """Tell whether a study has left a phase behind."""
    order = get_args(Phase)
    return phase is not None and order.index(study.phase) > order.index(phase)


def read(connection: Connection, study_id: int) -> Study | None:
    """Return a study as the transaction sees it, or None if it has been deleted."""
    row = connection.execute(
        select(tables.studies).where(tables.studies.c.id == study_id)
    ).one_or_none()
    return None if row is None else _study(row)


def halt(connection: Connection, study_id: int, failure: str) -> None:
    """Stop a study that cannot go on, and say why."""
    _set(connection, study_id, state="stopped", failure=failure)


def enter(connection: Connection, study_id: int, phase: Phase) -> None:
    """Begin a phase; a study that was to run until the one before it stops here."""
    columns = tables.studies.c
    ends_here = (columns.until == columns.phase) & (columns.state == "running")
    _set(
        connection,
        study_id,
        phase=phase,
        state=case((ends_here, "stopped"), else_=columns.state),
    )


def calibrated(connection: Connection, study_id: int, lr: float) -> None:
    """Store the learning rate of the search and the confirmation."""
    _set(connection, study_id, lr=lr)


def decide(
    connection: Connection, study_id: int, verdicts: Sequence[Mapping[str, Any]], phase: Phase
) -> None:
    """Store the verdicts on a study's finalists, which do not change any more; enter a phase."""
    _set(connection, study_id, verdicts=[dict(verdict) for verdict in verdicts])
    enter(connection, study_id, phase)


def finish(connection: Connection, study_id: int, holdout: Mapping[str, Any] | None = None) -> None:
    """End a study, with what the test split said if it was read; `finished_at` is stamped."""
    told = {} if holdout is None else {"holdout": dict(holdout)}
    _set(connection, study_id, state="finished", finished_at=func.now(), **told)


def reopen(
    engine: Engine, study_id: int, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Study:
    """Take a finished study back to its confirmation; return it.

    It gets a config, and what is added to its provenance; its verdicts are open again. A study that
    is not finished (any more) stays as it is.
    """
    columns = tables.studies.c
    with engine.begin() as connection:
        connection.execute(
            update(tables.studies)
            .where(columns.id == study_id, columns.state == "finished")
            .values(
                state="stopped",
                phase="confirm",
                finished_at=None,
                verdicts=None,
                config=dict(config),
                provenance=columns.provenance.concat(dict(provenance)),
            )
        )
        again = connection.execute(select(tables.studies).where(columns.id == study_id)).one()
        return _study(again)


def look_again(
    engine: Engine,
    study_id: int,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    phase: Phase,
) -> Study:
    """Take a finished study back to a phase after its verdicts, which stand; return it.

    It gets a config, and what is added to its provenance. A study that is not finished (any more)
    stays as it is.
    """
    columns = tables.studies.c
    with engine.begin() as connection:
        connection.execute(
            update(tables.studies)
            .where(columns.id == study_id, columns.state == "finished")
            .values(
                state="stopped",
                phase=phase,
                finished_at=None,
                config=dict(config),
                provenance=columns.provenance.concat(dict(provenance)),
            )
        )
        again = connection.execute(select(tables.studies).where(columns.id == study_id)).one()
        return _study(again)


def _set(connection: Connection, study_id: int, **values: Any) -> None:
    connection.execute(
        update(tables.studies).where(tables.studies.c.id == study_id).values(**values)
    )


def delete(connection: Connection, study_id: int) -> None:
    """Delete the study with everything that belongs to it in these tables (not in Optuna's)."""
    # In the order in which everybody locks jobs: no deadlock with a worker that is recording.
    connection.execute(
        text("SELECT 1 FROM densitune.jobs WHERE study_id = :study ORDER BY id FOR UPDATE"),
        {"study": study_id},
    )
    connection.execute(tables.studies.delete().where(tables.studies.c.id == study_id))


def _study(row: Row[Any]) -> Study:
    return Study(**row._mapping)
