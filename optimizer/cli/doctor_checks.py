"""What can be wrong in the database, and how each thing is mended.

A check only reads; a diagnosis's `fix` may be run at any time and any number of times, also while
workers and a proposer are at work.
"""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError, UsageError
from optimizer.evidence import differences, ranking
from optimizer.phases import optuna_study, optuna_tables, upkeep
from optimizer.phases.proposer import Proposer
from optimizer.show import words
from storage import database, inspection, jobs, leases, ledger, steps, studies, trials
from storage.errors import UnreadableError
from storage.failures import Kind
from storage.ledger import LedgerRow
from storage.studies import Study
from storage.trials import TrialRow

ERROR_CHARACTERS = 300

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
class Diagnosis:
    """Something that is not as it should be, in plain words."""

    where: str
    what: str
    remedy: str  # what --fix does, or what is left to the user
    fix: Callable[[], object] | None = None
    note: bool = False  # worth knowing, but nothing is wrong

    @property
    def line(self) -> str:
        """Return the diagnosis as one line."""
        return f"{self.where}: {self.what}; {self.remedy}"


def schema(engine: Engine) -> Iterator[Diagnosis]:
    """Compare the database's schema with this program's."""
    stored = database.schema(engine)
    if stored.revision is None:
        yield Diagnosis(
            where="database",
            what="it holds nothing of densitune's yet",
            remedy="densitune launch begins a study",
            note=True,
        )
        return
    if stored.revision == stored.newest:
        return
    behind = stored.revision in stored.known
    yield Diagnosis(
        where="database",
        what=f"its schema is of revision {stored.revision}, this densitune's is {stored.newest}",
        remedy="--fix brings it up to date; end processes of an older densitune first"
        if behind
        else "update densitune here",
        fix=partial(database.prepare, engine) if behind else None,
    )


def connections(engine: Engine) -> Iterator[Diagnosis]:
    """Count whether all live workers, of all studies, find the connections that they may need."""
    now = inspection.connections(engine)
    wanted = database.CONNECTIONS * now.live_workers
    missing = max(0, wanted - now.ours) - (now.admitted - now.used)
    if missing > 0:
        yield Diagnosis(
            where="database",
            what=f"it admits {now.admitted} connections, {now.used} are in use, and "
            f"{now.live_workers} live workers need up to {wanted}: {missing} too few",
            remedy=f"raise max_connections by {missing} or more, or put PgBouncer in front",
        )


def leftovers(engine: Engine) -> Iterator[Diagnosis]:
    """Find Optuna studies that have outlived densitune's; nobody else may use their names."""
    for name, owner in upkeep.leftovers(engine).items():
        yield Diagnosis(
            where=f"study {name}",
            what="it was deleted, and its Optuna study is still there",
            remedy="--fix removes it",
            fix=partial(upkeep.clear, engine, name, owner),
        )


def of_study(engine: Engine, study: Study) -> Iterator[Diagnosis]:
    """Look at everything that belongs to one study."""
    where = f"study {study.name}"
    if study.failure is not None:
        yield Diagnosis(
            where=where,
            what=f"it cannot go on: {study.failure}",
            remedy=f"what it found so far: densitune status {study.name}",
            note=True,  # its launch has said so; what failed is found below
        )
    elif study.state == "stopped" and not studies.is_over(study, study.until):
        yield Diagnosis(
            where=where,
            what=f"it is stopped, phase {study.phase} is next or has begun",
            remedy=f"to go on: densitune resume {study.name}",
            note=True,
        )
    yield from _held_by_the_gone(engine, study)
    yield from _failed(engine, study)
    yield from _late(engine, study)
    try:
        config = study_file.parse(study.config, origin=f"of study {study.name}")
        yield from _at_a_standstill(engine, study, config)
        yield from _projection(engine, study, config)
    except (
        UsageError,
        StudyFailedError,
        UnreadableError,
    ) as error:  # of a study that another version began
        yield Diagnosis(where=where, what=str(error), remedy="the other checks were made")


def _held_by_the_gone(engine: Engine, study: Study) -> Iterator[Diagnosis]:
    """Find jobs of workers that have ended, or vanished so long ago that others may claim them."""
    for worker in inspection.abandoned_claims(engine, study.id):
        kind: Kind = "preempted" if worker.ended else "lost"
        silence = words.duration(worker.silence)
        fate = "has ended" if worker.ended else f"has not been heard of for {silence}"
        held = _jobs(len(worker.claims))
        yield Diagnosis(
            where=f"study {study.name}",
            what=f"worker {worker.host}:{worker.pid} {fate} and still holds {held}",
            remedy="--fix hands them back to the queue",
            fix=partial(jobs.release, engine, worker.claims, kind),
        )


def _failed(engine: Engine, study: Study) -> Iterator[Diagnosis]:
    """Report jobs that failed and have not succeeded since, by kind and error.

    A density that diverges is a result. Nothing is trained any more in a finished study, nor in one
    that somebody has stopped.
    """
    at_rest = study.state == "finished" or (study.state == "stopped" and study.failure is None)
    for failed in inspection.failed_jobs(engine, study.id):
        numbers = ", ".join(str(number) for number in failed.trials)
        outcome = "failed for good" if failed.for_good else "failed and will be tried again"
        error = textwrap.shorten(failed.error or "no reason was given", ERROR_CHARACTERS)
        yield Diagnosis(
            where=f"study {study.name}",
            what=f"{_jobs(failed.jobs)} {outcome} ({failed.kind}; {failed.phase}, trial {numbers}; "
            f"worker {failed.workers or 'unknown'}): {error}",
            remedy=REMEDIES[failed.kind],
            note=failed.kind == "diverged" or not failed.for_good or at_rest,
        )


def _late(engine: Engine, study: Study) -> Iterator[Diagnosis]:
    """Count what arrived when nobody waited for it any more."""
    if count := inspection.late(engine, study.id):
        yield Diagnosis(
            where=f"study {study.name}",
            what=f"{count} measurements came after their jobs had ended",
            remedy="they are kept, and nothing goes by them",
            note=True,
        )


def _at_a_standstill(engine: Engine, study: Study, config: StudyConfig) -> Iterator[Diagnosis]:
    """Find a running study for which nobody trains, or nobody takes the proposer's next step."""
    if study.state != "running":
        return
    activity = inspection.activity(engine, study.id)
    if activity is None or activity.idle < leases.SILENCE_SECONDS:
        return
    if not activity.open_jobs:
        yield Diagnosis(
            where=f"study {study.name}",
            what=f"all its jobs ended {words.duration(activity.idle)} ago, and no process has told "
            "Optuna and proposed more",
            remedy="--fix does so",
            fix=lambda: Proposer(engine, study.id, config).advance(),
        )
    if not activity.live_workers:
        yield Diagnosis(
            where=f"study {study.name}",
            what="it is running, but no worker is alive",
            remedy=f"start some: densitune resume {study.name}",
        )


def _projection(engine: Engine, study: Study, config: StudyConfig) -> Iterator[Diagnosis]:
    """Compare what Optuna was told with the ledger, both as they are at one moment."""
    where = f"study {study.name}"
    tables = optuna_tables.joined(engine)
    with steps.one_moment(engine) as connection:
        rows = trials.all_of(connection, study.id, "search")
        by = ranking.of(study)
        measured = ranking.searched(ledger.read(connection, study.id, "search"), by)
        told = None
        if tables is not None:
            tables.join(connection)
            behind = optuna_study.find(tables, config, study.id, by)
            told = None if behind is None else behind.told()
    if not rows:
        return
    if told is None:
        yield Diagnosis(
            where=where,
            what="Optuna's study of this name has been deleted with another tool",
            remedy="export and report work without it; to search on, begin anew: "
            f"densitune delete {study.name}",
        )
        return
    for row in rows:
        if row.state == "running" or row.optuna_number is None:
            continue
        try:
            differences = _differences(measured, row)
        except KeyError:
            yield Diagnosis(
                where=where,
                what=f"measurements that trial {row.number} was told with have been deleted",
                remedy="restore the database from a backup (pg_restore --data-only takes "
                "--disable-triggers)",
            )
            continue
        value = differences[max(differences)] if differences else None
        outcome, told_value = told.get(row.optuna_number, (None, None))
        if outcome is None:
            yield Diagnosis(
                where=where,
                what=f"trial {row.number} is {row.state}, but Optuna was not told",
                remedy="--fix tells it",
                fix=partial(
                    upkeep.tell, engine, study.id, config, row.optuna_number, row.state, differences
                ),
            )
        elif (outcome, told_value) != (row.state, value):
            yield Diagnosis(
                where=where,
                what=f"trial {row.number} is {row.state} with value {value}, but Optuna holds "
                f"{outcome} with {told_value}: another tool has written to its study",
                remedy="what is proposed next may suffer from it; export and report go by the "
                "ledger and are right",
            )
    begun = {number for number, (outcome, _) in told.items() if outcome is None}
    yield from _strays(engine, study, config, begun - {row.optuna_number for row in rows})


def _strays(
    engine: Engine, study: Study, config: StudyConfig, strays: set[int]
) -> Iterator[Diagnosis]:
    """Report trials that are open in Optuna's study and none of ours."""
    if strays:
        yield Diagnosis(
            where=f"study {study.name}",
            what=f"Optuna's trials {sorted(strays)} are not densitune's: another tool began them",
            remedy="--fix marks them as failed, as the next proposal does",
            fix=partial(upkeep.fail_strays, engine, study.id, config),
        )


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _differences(measured: list[LedgerRow], trial: TrialRow) -> dict[int, float]:
    """Return what Optuna is told of a trial by rung; KeyError if that is lost."""
    if trial.state == "failed":
        return {}
    by_rung = differences.by_rung(measured, trial.number)
    reached = any(row.trial == trial.number for row in measured)
    if not reached or (trial.state == "complete" and not by_rung):
        raise KeyError(trial.number)
    return by_rung
