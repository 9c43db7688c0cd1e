"""What a study left behind, in the form in which two runs of one configuration must be equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, text

Rows = list[tuple[Any, ...]]

LEDGER = """
    SELECT phase, trial, seed, budget, rung, value, extra
    FROM densitune.measurements JOIN densitune.jobs ON jobs.id = job_id
    WHERE study_id = (SELECT id FROM densitune.studies WHERE name = :name)
    ORDER BY phase, trial, seed, budget, rung
"""
TRIALS = """
    SELECT phase, number, origin, role, label, densities, arm, state, reason
    FROM densitune.trials
    WHERE study_id = (SELECT id FROM densitune.studies WHERE name = :name)
    ORDER BY phase, number
"""
JOBS = """
    SELECT phase, trial, seed, budget, bars, state, error, lease_until
    FROM densitune.jobs
    WHERE study_id = (SELECT id FROM densitune.studies WHERE name = :name)
    ORDER BY phase, trial, seed, budget
"""
STUDY = "SELECT state, phase, lr, verdicts, failure FROM densitune.studies WHERE name = :name"
# Optuna's own tables, read without Optuna. A trial of ours comes with its number; others have none.
OPTUNA = """
    SELECT ours.number, theirs.state::text, value,
           (SELECT jsonb_object_agg(param_name, param_value) FROM public.trial_params
            WHERE trial_id = theirs.trial_id),
           (SELECT jsonb_object_agg(step, intermediate_value)
            FROM public.trial_intermediate_values WHERE trial_id = theirs.trial_id)
    FROM public.trials AS theirs
    JOIN public.studies AS optuna_studies ON optuna_studies.study_id = theirs.study_id
    LEFT JOIN public.trial_values AS given ON given.trial_id = theirs.trial_id
    JOIN densitune.studies AS studies ON studies.name = study_name
    LEFT JOIN densitune.trials AS ours
        ON ours.study_id = studies.id AND ours.optuna_number = theirs.number
    WHERE study_name = :name
    ORDER BY ours.number NULLS LAST
"""
CLAIMS = """
    SELECT DISTINCT epoch, losses FROM densitune.jobs
    WHERE study_id = (SELECT id FROM densitune.studies WHERE name = :name)
"""
HOLDERS = """
    SELECT DISTINCT pid FROM densitune.jobs JOIN densitune.workers AS workers
        ON workers.id = worker_id
    WHERE jobs.study_id = (SELECT id FROM densitune.studies WHERE name = :name)
      AND state = 'running'
"""
AUTHORS = """
    SELECT DISTINCT pid FROM densitune.measurements AS measurements
    JOIN densitune.workers AS workers ON workers.id = worker_id
    WHERE study_id = (SELECT id FROM densitune.studies WHERE name = :name)
"""
DISTURBANCE = """
    SELECT sum(losses) AS lost, sum(greatest(0, epoch - 1 - losses)) AS handed_back,
           count(*) AS jobs,
           (SELECT count(*) FROM densitune.workers WHERE study_id = studies.id) AS workers
    FROM densitune.jobs JOIN densitune.studies AS studies ON studies.id = study_id
    WHERE name = :name GROUP BY studies.id
"""


@dataclass(frozen=True)
class Outcome:
    """What may depend on a study's configuration alone, but for `strangers`."""

    ledger: Rows
    trials: Rows
    jobs: Rows
    optuna: Rows
    study: Rows
    strangers: list[str]
    """States of Optuna's trials that are none of ours."""

    @property
    def calibrated(self) -> Rows:
        """Return the first phase's part of the ledger, in which every job is trained to its end."""
        return [row for row in self.ledger if row[0] == "calibrate"]


def outcome(engine: Engine, name: str) -> Outcome:
    """Return what a study of this name left."""
    optuna = read(engine, OPTUNA, name)
    return Outcome(
        ledger=read(engine, LEDGER, name),
        trials=read(engine, TRIALS, name),
        jobs=read(engine, JOBS, name),
        optuna=[row for row in optuna if row[0] is not None],
        strangers=[row[1] for row in optuna if row[0] is None],
        study=read(engine, STUDY, name),
    )


def read(engine: Engine, query: str, name: str) -> Rows:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), {"name": name})]


def claims(engine: Engine, name: str) -> set[tuple[int, int]]:
    """Return how often jobs were claimed and how often lost: (1, 0) for those trained once."""
    return {(epoch, losses) for epoch, losses in read(engine, CLAIMS, name)}


def holders(engine: Engine, name: str) -> set[int]:
    """Return the process ids of the workers that hold a job."""
    return {pid for (pid,) in read(engine, HOLDERS, name)}


def authors(engine: Engine, name: str) -> set[int]:
    """Return the process ids of the workers that measured something."""
    return {pid for (pid,) in read(engine, AUTHORS, name)}


def disturbance(engine: Engine, name: str) -> str:
    """Return what a storm did to a study, in words."""
    [(lost, handed_back, jobs, workers)] = read(engine, DISTURBANCE, name)
    return f"{jobs} jobs, {lost} times lost, {handed_back} times handed back; {workers} workers"


def check_equal(found: Outcome, expected: Outcome) -> None:
    """Compare part by part, so that a failure names the first row that differs."""
    for part in ("study", "optuna", "trials", "jobs", "ledger"):
        check_rows(part, getattr(found, part), getattr(expected, part))


def check_rows(what: str, found: Sequence[Any], expected: Sequence[Any]) -> None:
    differing = [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
    assert not differing, f"{what}: {len(differing)} differ, the first: {differing[0]}"
    assert len(found) == len(expected), f"{what}: {len(found)} instead of {len(expected)}"


def check_clean(found: Outcome, trials: int) -> None:
    """Check that an outcome is that of a study which has all its trials and nothing open."""
    searched = [row for row in found.trials if row[0] == "search"]
    assert [row[1] for row in searched] == list(range(trials))
    assert {row[7] for row in found.trials} <= {"complete", "pruned"}
    assert {row[1] for row in found.optuna} <= {"COMPLETE", "PRUNED"}
    assert len(found.optuna) == trials
    assert found.strangers == []
    assert {row[5] for row in found.jobs} <= {"done", "cut"}
    assert found.study[0][:2] == ("finished", "decided")
