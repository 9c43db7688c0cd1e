"""The queue under any sequence of events, against a model of it in plain Python."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from storage import jobs, ledger, roster, studies, trials
from storage.jobs import Claim
from storage.ledger import Entry

BUDGET, CLIENTS, LOSSES = 4, 3, 5
FINAL = ("done", "cut", "failed")
OWN = ("diverged", "data", "code")
ELSEWHERE = ("out_of_memory", "data", "code")
KINDS = ("preempted", "out_of_memory", "diverged", "data", "code", "storage")

clients = st.integers(0, CLIENTS - 1)
picks = st.integers(0, 1000)
"""Chooses among whatever there is."""


@dataclass
class Job:
    """What the model knows of a job."""

    state: str = "waiting"
    worker: int | None = None
    epoch: int = 0
    lost_by: list[int] = field(default_factory=list)  # of whom nothing was heard since
    expired: bool = False
    failures: list[tuple[int, str]] = field(default_factory=list)  # worker, kind

    def give_back(self, kind: str) -> None:
        assert self.worker is not None
        own = [other for _, other in self.failures if other in OWN]
        self.failures.append((self.worker, kind))
        for_good = kind == "diverged" or (kind in ("data", "code") and bool(own))
        self.state, self.expired = ("failed" if for_good else "waiting"), False
        self.worker = self.worker if for_good else None


class Queue(RuleBasedStateMachine):
    """Clients claim, train, crash and come back late; leases run out at any moment."""

    engine: Engine

    @initialize(count=st.integers(1, 6))
    def begin(self, count: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM densitune.studies"))
        self.study = studies.create(self.engine, "queue", {}, "", {}, "search")[0].id
        with self.engine.begin() as connection:
            trials.add(
                connection,
                self.study,
                "search",
                number=0,
                role="candidate",
                label="",
                densities={3: [0.5]},
                seeds=range(count),
                budget=BUDGET,
                bars=dict.fromkeys(range(1, BUDGET + 1), 1e9),
            )
            ids = connection.scalars(text("SELECT id FROM densitune.jobs ORDER BY id"))
            self.model = {job_id: Job() for job_id in ids}
        self.ended: dict[int, str] = {}
        self.ledger: dict[tuple[int, int], tuple[float, bool]] = {}  # value, whether it was late
        self.claims: list[tuple[int, Claim]] = []  # all that ever were, by worker
        self.present: set[int] = set()  # the workers that count as alive, crashed ones too
        self.clients = [self._enter() for _ in range(CLIENTS)]
        self.measured = 0.0

    def _enter(self) -> int:
        worker = roster.register(self.engine, self.study, "host", 1, "CPU", {})
        self.present.add(worker)
        return worker

    def _hear_of(self, worker: int) -> None:
        """What it was taken to have lost does not count: it lives."""
        for job in self.model.values():
            job.lost_by = [by for by in job.lost_by if by != worker]

    def _free(self, worker: int) -> list[int]:
        others = bool(self.present - {worker})
        return [
            job_id
            for job_id, job in self.model.items()
            if (
                job.state == "waiting"
                or (job.state == "running" and job.expired and len(job.lost_by) < LOSSES)
            )
            and not (
                others and any(by == worker and kind in ELSEWHERE for by, kind in job.failures)
            )
        ]

    @rule(client=clients, count=st.integers(1, 4))
    def claim(self, client: int, count: int) -> None:
        worker = self.clients[client]
        expected = self._free(worker)[:count]
        claimed = jobs.claim(self.engine, self.study, worker, count, 60)
        for job_id in expected:
            job = self.model[job_id]
            if job.state == "running":
                assert job.worker is not None
                job.lost_by.append(job.worker)
                job.failures.append((job.worker, "lost"))
            job.state, job.worker, job.expired = "running", worker, False
            job.epoch += 1
        assert [job.claim for job in claimed] == [(id_, self.model[id_].epoch) for id_ in expected]
        self.claims += [(worker, job.claim) for job in claimed]

    @rule(client=clients)
    def heartbeat(self, client: int) -> None:
        worker = self.clients[client]
        self._hear_of(worker)
        held = set()
        for job_id, job in self.model.items():
            if job.state == "running" and job.worker == worker:
                job.expired = False
                held.add((job_id, job.epoch))
        assert jobs.heartbeat(self.engine, worker, 60).held == held

    @rule(pick=picks)
    def expire(self, pick: int) -> None:
        job_id = list(self.model)[pick % len(self.model)]
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE densitune.jobs SET lease_until = now() - interval '1 s' "
                    "WHERE id = :i AND state = 'running'"
                ),
                {"i": job_id},
            )
        self.model[job_id].expired = True

    @rule(client=clients, times=st.integers(2, LOSSES + 1))
    def vanish_again_and_again(self, client: int, times: int) -> None:
        for _ in range(times):
            for pick in range(len(self.model)):
                self.expire(pick)
            self.claim(client, 4)

    @rule()
    def give_up(self) -> None:
        lost = [
            job
            for job in self.model.values()
            if job.state == "running" and job.expired and len(job.lost_by) >= LOSSES
        ]
        with self.engine.begin() as connection:
            assert jobs.fail_lost(connection, self.study) == len(lost)
        for job in lost:
            assert job.worker is not None
            job.state = "failed"
            job.failures.append((job.worker, "lost"))

    @precondition(lambda self: self.claims)
    @rule(pick=picks, ending=st.sampled_from([None, "done", "cut"]), rung=st.integers(1, BUDGET))
    def deliver(self, pick: int, ending: str | None, rung: int) -> None:
        """By whoever had the job once, in time or late; another value each time, to tell apart."""
        rung = BUDGET if ending == "done" else rung
        worker, (job_id, _) = self.claims[pick % len(self.claims)]
        self.measured += 1
        new = Entry(job_id=job_id, rung=rung, value=self.measured, extra={}, seconds=1.0)
        ledger.record(
            self.engine,
            worker,
            [new],
            finished=[job_id] if ending == "done" else [],
            cut=[job_id] if ending == "cut" else [],
        )
        job = self.model[job_id]
        self.ledger.setdefault((job_id, rung), (self.measured, job.state in FINAL))
        if ending is not None and job.state not in FINAL:
            job.state, job.worker = ending, worker

    @precondition(lambda self: self.claims)
    @rule(pick=picks, kind=st.sampled_from(KINDS))
    def fail(self, pick: int, kind: Any) -> None:
        _, (job_id, epoch) = self.claims[pick % len(self.claims)]
        job = self.model[job_id]
        held = job.state == "running" and job.epoch == epoch
        assert jobs.fail(self.engine, (job_id, epoch), "", kind) == held
        if held:
            job.give_back(kind)

    @precondition(lambda self: self.claims)
    @rule(some=st.lists(picks, min_size=1, max_size=3))
    def release(self, some: list[int]) -> None:
        given = {self.claims[pick % len(self.claims)][1] for pick in some}
        jobs.release(self.engine, given)
        for job_id, epoch in given:
            job = self.model[job_id]
            if job.state == "running" and job.epoch == epoch:
                job.give_back("preempted")

    @rule(client=clients)
    def crash(self, client: int) -> None:
        """The process is gone, and another one starts that knows nothing of its jobs."""
        self.clients[client] = self._enter()

    @rule(client=clients)
    def leave(self, client: int) -> None:
        roster.retire(self.engine, self.clients[client])
        self._hear_of(self.clients[client])
        self.present.discard(self.clients[client])
        self.clients[client] = self._enter()

    @invariant()
    def storage_is_as_the_model_says(self) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT id, state, worker_id, epoch, losses FROM densitune.jobs ORDER BY id")
            )
            found = {row.id: (row.state, row.worker_id, row.epoch) for row in rows}
            failed = connection.execute(
                text("SELECT job_id, worker_id, kind FROM densitune.failures ORDER BY epoch")
            ).all()
            stored = {
                (row.job_id, row.rung): (row.value, row.late)
                for row in connection.execute(text("SELECT * FROM densitune.measurements"))
            }
        assert found == {id_: (j.state, j.worker, j.epoch) for id_, j in self.model.items()}
        assert stored == self.ledger
        for job_id, job in self.model.items():
            assert [(row.worker_id, row.kind) for row in failed if row.job_id == job_id] == (
                job.failures
            )
            state = found[job_id][0]
            assert self.ended.setdefault(job_id, state) == state if state in FINAL else True
            assert state in FINAL or job_id not in self.ended

    def teardown(self) -> None:
        """However it stands, a healthy worker brings every job to one end."""
        if not hasattr(self, "model"):
            return
        for pick in range(len(self.model)):
            self.expire(pick)
        self.give_up()
        self.clients[0] = self._enter()
        while self._free(self.clients[0]):
            self.claim(0, 3)
            for place in range(len(self.claims)):
                if self.model[self.claims[place][1][0]].state == "running":
                    self.deliver(place, "done", BUDGET)
        self.storage_is_as_the_model_says()
        assert self.ended.keys() == self.model.keys()


def test_every_job_ends_once_and_the_ledger_is_what_was_delivered_first(database: Engine) -> None:
    machine = type("Machine", (Queue,), {"engine": database})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=30, stateful_step_count=30, deadline=None)
    )
