"""What can be wrong in the database, and how each thing is mended.

A check only reads; a finding's `fix` may be run at any time and any number of times, also while
workers and a proposer are at work.
"""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError, UsageError
from optimizer.evidence import differences
from optimizer.phases import optuna_study
from optimizer.phases.optuna_study import DensityStudy
from optimizer.phases.proposer import Proposer
from optimizer.show import terminal
from storage import database, jobs, leases, ledger, studies, trials
from storage.failures import Kind
from storage.ledger import LedgerRow
from storage.roster import GRACE_SECONDS
from storage.studies import Study
from storage.trials import TrialRow

ERROR_CHARACTERS = 300
CONNECTIONS_PER_WORKER = 2  # storage.database

REMEDIES: dict[Kind, str] = {
    "preempted": "nothing to do",
    "lost": "see whether their machines run out of memory, or stop workers without notice",
    "out_of_memory": "attach a worker on a device with more memory",
    "diverged": "nothing to do: the study goes on without this density",
    "data": "see whether the data are whole on the machines of these workers",
    "code": "the logs of these workers have the traceback",
    "storage": "see whether PostgreSQL has space and the workers have their rights",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, in plain words."""

    where: str
    what: str
    remedy: str  # what --fix does, or what is left to the user
    fix: Callable[[], object] | None = None
    note: bool = False  # worth knowing, but nothing is wrong

    @property
    def line(self) -> str:
        """Return the finding as one line."""
        return f"{self.where}: {self.what}; {self.remedy}"


def schema(engine: Engine) -> Iterator[Finding]:
    """Compare the database's schema with this program's."""
    alembic = Config()
    alembic.set_main_option("script_location", "storage:migrations")
    script = ScriptDirectory.from_config(alembic)
    known, newest = {found.revision for found in script.walk_revisions()}, script.get_current_head()
    with engine.connect() as connection:
        if connection.scalar(text("SELECT to_regclass('densitune.alembic_version')")) is None:
            yield Finding(
                where="database",
                what="it holds nothing of densitune's yet",
                remedy="densitune launch begins a study",
                note=True,
            )
            return
        revision = connection.scalar(text("SELECT version_num FROM densitune.alembic_version"))
    if revision == newest:
        return
    behind = revision in known
    yield Finding(
        where="database",
        what=f"its schema is of revision {revision}, this densitune's is {newest}",
        remedy="--fix brings it up to date; end processes of an older densitune first"
        if behind
        else "update densitune here",
        fix=partial(database.prepare, engine) if behind else None,
    )


def connections(engine: Engine) -> Iterator[Finding]:
    """Count whether all live workers, of all studies, find the connections that they may need."""
    query = text("""
        SELECT current_setting('max_connections')::int
                   - current_setting('superuser_reserved_connections')::int AS admitted,
               (SELECT sum(numbackends)::int FROM pg_stat_database) AS used,
               (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'densitune') AS ours,
               (SELECT count(*) FROM densitune.workers
                WHERE stopped_at IS NULL AND seen_at > now() - make_interval(secs => :grace))
                   AS workers
    """)
    with engine.connect() as connection:
        found = connection.execute(query, {"grace": GRACE_SECONDS}).one()
    wanted = CONNECTIONS_PER_WORKER * found.workers
    missing = max(0, wanted - found.ours) - (found.admitted - found.used)
    if missing > 0:
        yield Finding(
            where="database",
            what=f"it admits {found.admitted} connections, {found.used} are in use, and "
            f"{found.workers} live workers need up to {wanted}: {missing} too few",
            remedy=f"raise max_connections by {missing} or more, or put PgBouncer in front",
        )


def of_study(engine: Engine, study: Study) -> Iterator[Finding]:
    """Look at everything that belongs to one study."""
    where = f"study {study.name}"
    if study.failure is not None:
        yield Finding(
            where=where,
            what=f"it cannot go on: {study.failure}",
            remedy=f"what it found so far: densitune status {study.name}",
        )
    yield from _held_by_the_gone(engine, study)
    yield from _failed(engine, study)
    try:
        given = study_file.parse(study.config, origin=f"of study {study.name}")
        yield from _at_a_standstill(engine, study, given)
        yield from _projection(engine, study, given)
    except (UsageError, StudyFailedError) as error:  # of a study that another version began
        yield Finding(where=where, what=str(error), remedy="the other checks were made")


def _held_by_the_gone(engine: Engine, study: Study) -> Iterator[Finding]:
    """Find jobs of workers that have ended, or vanished so long ago that others may claim them."""
    query = text(f"""
        SELECT host, pid, stopped_at IS NOT NULL AS ended,
               extract(epoch FROM now() - seen_at)::float AS silence,
               array_agg(jobs.id ORDER BY jobs.id) AS jobs,
               array_agg(epoch ORDER BY jobs.id) AS epochs
        FROM densitune.jobs AS jobs JOIN densitune.workers AS workers ON workers.id = worker_id
        WHERE jobs.study_id = :study
          AND (state = 'running' AND stopped_at IS NOT NULL OR {leases.EXPIRED})
        GROUP BY workers.id ORDER BY workers.id
    """)
    with engine.connect() as connection:
        rows = connection.execute(query, {**leases.arguments(), "study": study.id}).all()
    for row in rows:
        claims = list(zip(row.jobs, row.epochs, strict=True))
        kind: Kind = "preempted" if row.ended else "lost"
        silence = terminal.duration(row.silence)
        fate = "has ended" if row.ended else f"has not been heard of for {silence}"
        yield Finding(
            where=f"study {study.name}",
            what=f"worker {row.host}:{row.pid} {fate} and still holds {_jobs(len(claims))}",
            remedy="--fix hands them back to the queue",
            fix=partial(jobs.release, engine, claims, kind),
        )


def _failed(engine: Engine, study: Study) -> Iterator[Finding]:
    """Report jobs that failed and have not succeeded since, by kind and error.

    A density that diverges is a result, and in a finished study nothing is trained any more.
    """
    query = text("""
        SELECT jobs.kind, jobs.error, state = 'failed' AS for_good, phase,
               count(DISTINCT jobs.id) AS jobs, array_agg(DISTINCT trial) AS trials,
               string_agg(DISTINCT format('%s:%s', host, pid), ', ') AS workers
        FROM densitune.jobs AS jobs
        LEFT JOIN densitune.failures AS failures
            ON failures.job_id = jobs.id AND failures.kind = jobs.kind
        LEFT JOIN densitune.workers AS workers ON workers.id = failures.worker_id
        WHERE jobs.study_id = :study
          AND (state = 'failed'
               OR state IN ('waiting', 'running') AND jobs.kind NOT IN ('preempted', 'lost'))
        GROUP BY jobs.kind, jobs.error, for_good, phase ORDER BY min(jobs.id)
    """)
    with engine.connect() as connection:
        rows = connection.execute(query, {"study": study.id}).all()
    for row in rows:
        numbers = ", ".join(str(number) for number in row.trials)
        outcome = "failed for good" if row.for_good else "failed and will be tried again"
        error = textwrap.shorten(row.error or "no reason was given", ERROR_CHARACTERS)
        yield Finding(
            where=f"study {study.name}",
            what=f"{_jobs(row.jobs)} {outcome} ({row.kind}; {row.phase}, trial {numbers}; worker "
            f"{row.workers or 'unknown'}): {error}",
            remedy=REMEDIES[row.kind],
            note=row.kind == "diverged" or not row.for_good or study.state == "finished",
        )


def _at_a_standstill(engine: Engine, study: Study, given: StudyConfig) -> Iterator[Finding]:
    """Find a running study for which nobody trains, or nobody takes the proposer's next step."""
    if study.state != "running":
        return
    query = text("""
        SELECT (SELECT count(*) FROM densitune.workers AS workers
                WHERE workers.study_id = studies.id AND stopped_at IS NULL
                  AND seen_at > now() - make_interval(secs => :grace)) AS workers,
               count(*) FILTER (WHERE jobs.state IN ('waiting', 'running')) AS open,
               extract(epoch FROM now() - greatest(studies.created_at, max(jobs.finished_at)))
                   ::float AS idle
        FROM densitune.studies AS studies
        LEFT JOIN densitune.jobs AS jobs ON jobs.study_id = studies.id
        WHERE studies.id = :study GROUP BY studies.id
    """)
    with engine.connect() as connection:
        found = connection.execute(query, {"study": study.id, "grace": GRACE_SECONDS}).one()
    if found.idle < GRACE_SECONDS:
        return
    if not found.open:
        yield Finding(
            where=f"study {study.name}",
            what=f"all its jobs ended {terminal.duration(found.idle)} ago, and no process has told "
            "Optuna and proposed more",
            remedy="--fix does so",
            fix=lambda: Proposer(engine, study.id, given).advance(),
        )
    if not found.workers:
        yield Finding(
            where=f"study {study.name}",
            what="it is running, but no worker is alive",
            remedy=f"start some: densitune resume {study.name}",
        )


def _projection(engine: Engine, study: Study, given: StudyConfig) -> Iterator[Finding]:
    """Compare what Optuna was told with the ledger. Ours is read first: Optuna is told before."""
    where = f"study {study.name}"
    with engine.connect() as connection:
        rows = trials.all_of(connection, study.id, "search")
        measured = ledger.read(connection, study.id, "search")
    if not rows:
        return
    if not optuna_study.exists(engine, study.name):
        yield Finding(
            where=where,
            what="Optuna's study of this name has been deleted with another tool",
            remedy="export and report work without it; to search on, begin anew: "
            f"densitune delete {study.name}",
        )
        return
    projected = DensityStudy(engine, given)
    told = projected.told()
    for row in rows:
        if row.state == "running" or row.optuna_number is None:
            continue
        try:
            differences = _differences(measured, row)
        except (KeyError, ValueError):
            yield Finding(
                where=where,
                what=f"measurements that trial {row.number} was told with have been deleted",
                remedy="restore the database from a backup",
            )
            continue
        value = differences[max(differences)] if differences else None
        outcome, found = told.get(row.optuna_number, (None, None))
        if outcome is None:
            yield Finding(
                where=where,
                what=f"trial {row.number} is {row.state}, but Optuna was not told",
                remedy="--fix tells it",
                fix=partial(projected.tell, row.optuna_number, row.state, differences),
            )
        elif (outcome, found) != (row.state, value):
            yield Finding(
                where=where,
                what=f"trial {row.number} is {row.state} with value {value}, but Optuna holds "
                f"{outcome} with {found}: another tool has written to its study",
                remedy="what is proposed next may suffer from it; export and report go by the "
                "ledger and are right",
            )
    known = {row.optuna_number for row in rows if row.optuna_number is not None}
    orphans = [n for n, (outcome, _) in told.items() if outcome is None and n not in known]
    if orphans and studies.is_over(study, "search"):  # before that, the proposer goes on with them
        yield Finding(
            where=where,
            what=f"Optuna's trials {orphans} are running for ever: proposers that died began them",
            remedy="--fix marks them as failed",
            fix=partial(projected.close, known),
        )


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _differences(measured: list[LedgerRow], trial: TrialRow) -> dict[int, float]:
    """Return what Optuna is told of a trial by rung; KeyError or ValueError if that is lost."""
    if trial.state == "failed":
        return {}
    by_rung = differences.by_rung(measured, trial.number)
    if not by_rung:
        raise KeyError(trial.number)
    return by_rung
