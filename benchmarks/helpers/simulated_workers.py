"""Simulated workers: they do with PostgreSQL what real ones do, and sleep instead of training."""

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from storage import database, jobs, ledger, roster
from storage.jobs import ClaimedJob
from storage.ledger import Entry
from workers.service.heartbeat import BEAT, LEASE

RUNG, BUDGET = 1, 2
SETUP_SECONDS = 600.0
"""How long processes may take to start and to connect their workers."""

Result = TypeVar("Result")


@dataclass
class Times:
    """Seconds that calls took, and what went wrong."""

    claim: list[float] = field(default_factory=list)
    record: list[float] = field(default_factory=list)
    heartbeat: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, other: "Times") -> None:
        self.claim += other.claim
        self.record += other.record
        self.heartbeat += other.heartbeat
        self.errors += other.errors


@dataclass(frozen=True)
class Load:
    """What is asked of the server."""

    workers: int
    job_seconds: float
    seconds: float


class Worker:
    """One simulated worker."""

    def __init__(self, url: str, study_id: int, job_seconds: float, end: threading.Event) -> None:
        self._engine, self._study_id = database.connect(url), study_id
        self._job_seconds, self._end = job_seconds, end
        self._id = roster.register(self._engine, study_id, "simulated", os.getpid(), "none", {})
        self.times = Times()

    def work(self) -> None:
        """Do jobs until the end, with a heartbeat beside."""
        beating = threading.Thread(target=self._guarded, args=(self._beat,))
        beating.start()
        self._guarded(self._train)
        beating.join()
        self._engine.dispose()

    def _train(self) -> None:
        while not self._end.is_set():
            claimed = _timed(
                self.times.claim,
                lambda: jobs.claim(self._engine, self._study_id, self._id, 1, LEASE),
            )
            for job in claimed:
                for rung in (RUNG, BUDGET):
                    time.sleep(self._job_seconds * RUNG / BUDGET)
                    _timed(self.times.record, lambda: self._record(job, rung))  # noqa: B023

    def _record(self, job: ClaimedJob, rung: int) -> None:
        new = Entry(job_id=job.id, rung=rung, value=0.1 * job.seed, extra={}, seconds=1.0)
        ended = [job.id] if rung == BUDGET else []
        ledger.record(self._engine, self._id, [new], finished=ended)

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            _timed(self.times.heartbeat, lambda: jobs.heartbeat(self._engine, self._id, LEASE))

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # whatever it is, it is counted
            self.times.errors.append(f"{type(error).__name__}: {error}")


def simulate(
    url: str, study_id: int, workers: int, load: Load, ready: threading.Barrier
) -> tuple[Times, float]:
    """Run some workers as threads of this process; return their times and the CPU time used.

    After all processes are `ready`, with every worker connected, each worker starts at a random
    moment within the length of a job.
    """
    end = threading.Event()
    hired = [Worker(url, study_id, load.job_seconds, end) for _ in range(workers)]
    ready.wait(SETUP_SECONDS)
    begin, used = time.monotonic(), time.process_time()
    delays = sorted(random.uniform(0, load.job_seconds) for _ in hired)
    threads = [threading.Thread(target=worker.work) for worker in hired]
    for delay, thread in zip(delays, threads, strict=True):
        sleep_until(begin + delay)
        thread.start()
    sleep_until(begin + load.seconds)
    end.set()
    times = Times()
    for thread, worker in zip(threads, hired, strict=True):
        thread.join()
        times.add(worker.times)
    return times, time.process_time() - used


def sleep_until(moment: float) -> None:
    """Sleep until a moment of the monotonic clock."""
    time.sleep(max(0.0, moment - time.monotonic()))


def _timed(times: list[float], call: Callable[[], Result]) -> Result:
    started = time.perf_counter()
    result = call()
    times.append(time.perf_counter() - started)
    return result
