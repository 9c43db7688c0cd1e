"""The tables, all in the schema `densitune` (Optuna's own are in `public` of the same database).

What a database really has is made by `storage/migrations`; a test holds the two together. Rules for
what a row may become (triggers) stand there only.
"""

from typing import Any, get_args

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from storage.failures import Kind
from storage.states import JobState, Phase, Role, StudyState, TrialState

SCHEMA = "densitune"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)


def _one_of(column: str, words: Any) -> CheckConstraint:
    """A column's closed set: the words of a Literal."""
    listed = ", ".join(f"'{word}'" for word in get_args(words))
    return CheckConstraint(f"{column} IN ({listed})", name=column)


CONTROL = r"'[\u0001-\u001f\u007f-\u009f]'"
"""Characters that command a terminal, as a regular expression of PostgreSQL."""


def _checks(**conditions: str) -> list[CheckConstraint]:
    """What must be true of every row that is written, by name."""
    return [CheckConstraint(condition, name=name) for name, condition in conditions.items()]


def _json(column: str, most_bytes: int) -> str:
    """A JSON object that no reader chokes on: its size, its 50 levels and its numbers, as doubles.

    Python refuses whole numbers of very many digits, and nesting beyond its stack.
    """
    return f"""
        jsonb_typeof({column}) = 'object' AND octet_length({column}::text) <= {most_bytes}
        AND NOT jsonb_path_exists({column}, 'strict $.**{{51}}')
        AND NOT jsonb_path_exists({column}, 'strict $.** ? (@ > 1.8e308 || @ < -1.8e308)')
    """


def _within(*columns: str) -> str:
    """Times that Python has, and no others; PostgreSQL knows -4712 and infinity as well."""
    return " AND ".join(f"{c} BETWEEN '2000-01-01 UTC' AND '9999-01-01 UTC'" for c in columns)


def _name(column: str) -> str:
    return f"length({column}) <= 255 AND {column} !~ {CONTROL}"


def _id() -> Column[int]:
    return Column("id", BigInteger, Identity(always=True), primary_key=True)


def _study_id() -> Column[int]:
    return Column(
        "study_id",
        BigInteger,
        ForeignKey("densitune.studies.id", ondelete="CASCADE"),
        nullable=False,
    )


def _phase() -> Column[str]:
    return Column("phase", Text, nullable=False, server_default=text("'search'"))


def _moment(name: str) -> Column[Any]:
    """A time, by the database's clock, of something that may not have happened yet."""
    return Column(name, DateTime(timezone=True))


def _now(name: str) -> Column[Any]:
    """A time, by the database's clock, at first that of insertion."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


studies = Table(
    "studies",
    metadata,
    _id(),
    Column("name", Text, nullable=False),
    Column("config", JSONB, nullable=False),
    Column("data_fingerprint", Text, nullable=False),
    Column("provenance", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("state", Text, nullable=False, server_default=text("'running'")),
    Column("failure", Text),  # why the study cannot go on
    _phase(),
    Column("until", Text),  # the phase after which the study stops
    # Whether it goes on although identity is no healthy baseline.
    Column("forced", Boolean, nullable=False, server_default=text("false")),
    Column("lr", Double),  # the calibrated learning rate
    Column("verdicts", JSONB),  # of the finalists, once decided
    Column("holdout", JSONB),  # what the test split said afterwards
    _now("created_at"),
    _moment("finished_at"),
    UniqueConstraint("name"),
    _one_of("state", StudyState),
    _one_of("phase", Phase),
    *_checks(finished="(state = 'finished') = (finished_at IS NOT NULL)"),
)

trials = Table(
    "trials",
    metadata,
    _study_id(),
    _phase(),
    Column("number", Integer, nullable=False, autoincrement=False),
    Column("optuna_number", Integer),  # of the search's trials
    Column("origin", Integer),  # of a confirmation: number of the search's trial
    Column("role", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("densities", JSONB, nullable=False),  # by kernel size: {"5": [0.2, 0.8]}
    Column("arm", JSONB, nullable=False),  # how its training differs: {"lr": 0.1, ...}
    Column("state", Text, nullable=False, server_default=text("'running'")),
    Column("reason", Text),  # why the trial ended as it did
    PrimaryKeyConstraint("study_id", "phase", "number"),
    UniqueConstraint("study_id", "optuna_number"),
    _one_of("phase", Phase),
    _one_of("role", Role),
    _one_of("state", TrialState),
)

workers = Table(
    "workers",
    metadata,
    _id(),
    _study_id(),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("versions", JSONB, nullable=False),
    _now("started_at"),
    _now("seen_at"),
    _moment("stopped_at"),
    Index("ix_workers_study", "study_id"),
    *_checks(
        host=_name("host"),
        device=_name("device"),
        versions=_json("versions", 65536),
        times=_within("started_at", "seen_at", "stopped_at"),
    ),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    Column("study_id", BigInteger, nullable=False),
    _phase(),
    Column("trial", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("budget", Integer, nullable=False),  # epochs
    # By rung, the least value with which the job goes on: {"2": 31.5}.
    Column("bars", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("state", Text, nullable=False, server_default=text("'waiting'")),
    Column("worker_id", BigInteger, ForeignKey("densitune.workers.id", ondelete="SET NULL")),
    Column("epoch", Integer, nullable=False, server_default=text("0")),  # fencing: +1 per claim
    Column("losses", Integer, nullable=False, server_default=text("0")),  # leases that ran out
    _moment("lease_until"),
    Column("kind", Text),  # of what last kept it from its end: storage.failures
    Column("error", Text),  # what that said
    _now("created_at"),
    _moment("started_at"),
    _moment("finished_at"),
    ForeignKeyConstraint(
        ["study_id", "phase", "trial"],
        ["densitune.trials.study_id", "densitune.trials.phase", "densitune.trials.number"],
        ondelete="CASCADE",
    ),
    UniqueConstraint("study_id", "phase", "trial", "seed", "budget"),
    _one_of("state", JobState),
    _one_of("kind", Kind),
    *_checks(
        lease="(state = 'running') = (lease_until IS NOT NULL)",
        ended="(state IN ('done', 'cut', 'failed')) = (finished_at IS NOT NULL)",
        holder="state <> 'waiting' OR worker_id IS NULL",
        reason="state <> 'failed' OR kind IS NOT NULL",
        counts="epoch >= losses AND losses >= 0",
        times=_within("lease_until", "started_at", "finished_at"),
        error="length(error) <= 4000",
    ),
    # What a claim reads; stays as small as the open part of the queue.
    Index(
        "ix_jobs_open",
        "study_id",
        "id",
        postgresql_where=text("state IN ('waiting', 'running')"),
    ),
    Index("ix_jobs_worker", "worker_id"),
)

measurements = Table(
    "measurements",
    metadata,
    Column("job_id", BigInteger, ForeignKey("densitune.jobs.id", ondelete="CASCADE")),
    Column("rung", Integer, nullable=False, autoincrement=False),  # epochs trained so far
    Column("value", Double, nullable=False),
    Column("extra", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("seconds", Double, nullable=False),  # of training so far
    # Who measured; no foreign key, for a measurement never changes.
    Column("worker_id", BigInteger),
    # It arrived after its job had ended: it is kept, and nothing goes by it. A trigger says so.
    Column("late", Boolean, nullable=False, server_default=text("false")),
    _now("recorded_at"),
    PrimaryKeyConstraint("job_id", "rung"),
    *_checks(
        rung="rung >= 1",
        value="value >= -1e6 AND value <= 1e6",  # NaN is above all numbers
        seconds="seconds >= 0 AND seconds <= 1e9",
        extra=_json("extra", 262144),
    ),
)

failures = Table(
    "failures",
    metadata,
    Column("job_id", BigInteger, ForeignKey("densitune.jobs.id", ondelete="CASCADE")),
    Column("epoch", Integer, nullable=False, autoincrement=False),  # which holding of the job ended
    Column("worker_id", BigInteger),  # whose; no foreign key, for a failure never changes
    Column("kind", Text, nullable=False),
    Column("error", Text),
    _now("failed_at"),
    PrimaryKeyConstraint("job_id", "epoch"),
    _one_of("kind", Kind),
    Index("ix_failures_worker", "worker_id"),  # a claim looks for the worker's own
)
