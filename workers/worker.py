"""The worker loop: claim a pack, train it, record, repeat.

A heartbeat thread keeps the worker's leases. A signal, a stopped study or a lost lease ends
training before its next step, and what was not finished goes back to the queue; a job that fails
is recorded as failed and the worker goes on.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from storage import jobs, ledger, roster, studies
from storage.jobs import Claim, ClaimedJob
from workers import devices, training
from workers.tasks import Task
from workers.training import DivergedError, Job, Measurement, Recipe, StoppedError

LEASE = 60.0
"""Seconds after its last heartbeat until a job may go to another worker."""
BEAT = 10.0
"""Seconds between heartbeats: several may be lost before a lease is."""
FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two looks at an empty queue; the wait doubles from the first to the longest."""

log = logging.getLogger("densitune.worker")


@dataclass(frozen=True)
class Bench:
    """What a worker trains with: a study's task and recipe on a device."""

    study_id: int
    task: Task
    recipe: Recipe
    device: torch.device


def work(
    engine: Engine,
    bench: Bench,
    *,
    pack: int,
    stop: threading.Event,
    when_idle: Callable[[], None],
) -> int:
    """Train jobs of a study until it is finished or stopped, or `stop` is set; return how many.

    `when_idle` is called whenever the queue is empty: a chance to take the proposer's role.
    """
    worker_id = roster.register(
        engine,
        bench.study_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=devices.describe(bench.device),
        versions={"torch": torch.__version__},
    )
    done, wait = 0, FIRST_WAIT
    try:
        with _Heart(engine, worker_id) as heart:
            while not stop.is_set():
                claimed = jobs.claim(engine, bench.study_id, worker_id, pack, LEASE)
                if claimed:
                    done += _Pack(engine, bench, worker_id, heart, stop).train(claimed)
                    wait = FIRST_WAIT
                    continue
                when_idle()
                if studies.state(engine, bench.study_id) != "running":
                    break
                stop.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
    finally:
        roster.retire(engine, worker_id)
    return done


class _Pack:
    """Jobs that are trained together, and what becomes of them."""

    def __init__(
        self, engine: Engine, bench: Bench, worker_id: int, heart: "_Heart", stop: threading.Event
    ) -> None:
        self._engine, self._bench, self._worker_id = engine, bench, worker_id
        self._heart, self._stop = heart, stop

    def train(self, claimed: Sequence[ClaimedJob]) -> int:
        """Train claimed jobs, record or hand back each of them, and return how many were done."""
        open_jobs = dict(enumerate(claimed))
        self._heart.watch(claimed)

        def on_rung(index: int, measurement: Measurement) -> None:
            last = measurement.rung == claimed[index].budget
            self._record(claimed[index], measurement, last)
            if last:
                del open_jobs[index]

        def on_failure(index: int, error: DivergedError) -> None:
            self._fail(open_jobs.pop(index), str(error))

        try:
            training.train(
                self._bench.task,
                self._bench.recipe,
                [Job(job.densities, job.seed, job.budget) for job in claimed],
                self._bench.device,
                on_rung=on_rung,
                on_failure=on_failure,
                stopping=lambda: self._stop.is_set() or self._heart.lost(claimed),
            )
        except StoppedError:
            jobs.release(self._engine, [job.claim for job in open_jobs.values()])
        except SQLAlchemyError:
            raise
        except Exception as error:  # whatever a device or a network throws must not end the worker
            log.exception("a pack of %d failed", len(claimed))
            self._after_failure(claimed, list(open_jobs.values()), error)
        return len(claimed) - len(open_jobs)

    def _after_failure(
        self, claimed: Sequence[ClaimedJob], left: Sequence[ClaimedJob], error: Exception
    ) -> None:
        """Train each job that is left on its own, to find the one that fails; then fail it."""
        if len(claimed) > 1:
            for job in left:
                self.train([job])
        else:
            self._fail(claimed[0], f"{type(error).__name__}: {error}")

    def _record(self, job: ClaimedJob, measurement: Measurement, last: bool) -> None:
        row = ledger.Measurement(
            job_id=job.id,
            rung=measurement.rung,
            value=measurement.score.value,
            extra=measurement.score.extra,
            seconds=measurement.seconds,
        )
        ledger.record(self._engine, self._worker_id, [row], finished=[job.id] if last else [])
        log.info(
            "trial %d seed %d: %.4f after %d of %d epochs, %.1f s",
            job.trial, job.seed, measurement.score.value, measurement.rung, job.budget,
            measurement.seconds,
        )  # fmt: skip

    def _fail(self, job: ClaimedJob, error: str) -> None:
        log.warning("trial %d seed %d failed: %s", job.trial, job.seed, error)
        jobs.fail(self._engine, job.claim, error)


class _Heart:
    """A thread that renews the worker's leases and learns which were lost."""

    def __init__(self, engine: Engine, worker_id: int) -> None:
        self._engine, self._worker_id = engine, worker_id
        self._watched: frozenset[Claim] = frozenset()
        self._lost: frozenset[Claim] = frozenset()
        self._stopped = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def watch(self, claimed: Sequence[ClaimedJob]) -> None:
        """Look after the leases of these jobs from now on."""
        self._watched = frozenset(job.claim for job in claimed)

    def lost(self, claimed: Sequence[ClaimedJob]) -> bool:
        """Tell whether the study was stopped, or none of the jobs is this worker's any more."""
        return self._stopped or all(job.claim in self._lost for job in claimed)

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            watched = self._watched  # before the query: what is claimed after it is not lost
            try:
                beat = jobs.heartbeat(self._engine, self._worker_id, LEASE)
            except SQLAlchemyError as error:
                log.warning("heartbeat failed, trying again in %.0f s: %s", BEAT, error)
                continue
            self._lost = watched - beat.held
            self._stopped = beat.study_state != "running"
