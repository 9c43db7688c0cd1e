"""A queue filled by hand."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from sqlalchemy import Connection, Engine, text

from storage import roster, studies, trials
from storage.states import StudyState

EXPIRE = """
    UPDATE densitune.jobs SET lease_until = now() - interval '1 s' WHERE state = 'running'
"""


def add_trial(
    database: Engine,
    study: studies.Study,
    number: int,
    seeds: Iterable[int],
    budget: int = 4,
    bars: Mapping[int, float] = MappingProxyType({}),
) -> None:
    with database.begin() as connection:
        trials.add(
            connection,
            study.id,
            "search",
            number=number,
            optuna_number=number,
            role="candidate",
            label=f"#{number}",
            densities={3: [0.7], 5: [0.2, 0.8]},
            seeds=list(seeds),
            budget=budget,
            bars=bars,
        )


def enter(database: Engine, study: studies.Study, pid: int = 1, token: str | None = None) -> int:
    return roster.register(database, study.id, "host", pid, "cpu", {}, token)


@contextmanager
def unruled(database: Engine) -> Iterator[Connection]:
    """A transaction of a superuser in which the triggers sleep: for what time or faults bring."""
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        yield connection


def set_state(
    database: Engine, study_id: int, state: StudyState, failure: str | None = None
) -> None:
    """Let a study be in a state, however it came to that."""
    with unruled(database) as connection:
        connection.execute(
            text("""
                UPDATE densitune.studies SET state = :state, failure = :failure,
                    finished_at = CASE WHEN :state = 'finished' THEN now() END
                WHERE id = :id
            """),
            {"state": state, "failure": failure, "id": study_id},
        )


def expire_leases(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text(EXPIRE))


def lose_often(database: Engine, times: int, seed: int | None = None) -> None:
    """Let jobs (those of a seed) have been lost so often, by holders of which nothing was heard."""
    with unruled(database) as connection:
        connection.execute(
            text("""
                WITH lost AS (
                    INSERT INTO densitune.failures (job_id, epoch, kind)
                    SELECT id, epoch + n - 1, 'lost'
                    FROM densitune.jobs, generate_series(1, :times) AS n
                    WHERE seed = coalesce(:seed, seed)
                )
                UPDATE densitune.jobs SET epoch = epoch + :times, losses = losses + :times
                WHERE seed = coalesce(:seed, seed)
            """),
            {"times": times, "seed": seed},
        )


def states(database: Engine) -> list[str]:
    with database.connect() as connection:
        return list(connection.scalars(text("SELECT state FROM densitune.jobs ORDER BY id")))
