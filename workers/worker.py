"""The worker loop: claim a pack, train it, record, repeat.

Jobs join and leave a pack as they come and end. A signal, a stopped study or lost leases end
training before its next step, and what was not finished goes back to the queue; a job that fails
is recorded as failed and the worker goes on; a pack that does not fit into memory is halved.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from optimizer.errors import UsageError
from storage import jobs, ledger, roster, studies
from storage.jobs import ClaimedJob
from workers import devices, packing, training
from workers.heartbeat import LEASE, Heart
from workers.member import DivergedError
from workers.recipe import Job, Measurement, Recipe
from workers.tasks import Task
from workers.training import StoppedError

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


@dataclass(frozen=True)
class _Shift:
    """A worker at its bench."""

    engine: Engine
    bench: Bench
    worker_id: int
    heart: Heart
    stop: threading.Event

    def claim(self, count: int) -> list[ClaimedJob]:
        return jobs.claim(self.engine, self.bench.study_id, self.worker_id, count, LEASE)


def work(
    engine: Engine,
    bench: Bench,
    *,
    pack: int | None,
    stop: threading.Event,
    when_idle: Callable[[], None],
) -> int:
    """Train jobs of a study until it is finished or stopped, or `stop` is set; return how many.

    `pack` jobs are trained together, None for as many as are fastest (workers.packing). `when_idle`
    is called whenever the queue is empty: a chance to take the proposer's role. UsageError if not
    even one job fits into the device's memory.
    """
    worker_id = roster.register(
        engine,
        bench.study_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=devices.describe(bench.device),
        versions={"torch": torch.__version__},
    )
    ended, wait = 0, FIRST_WAIT
    try:
        with Heart(engine, worker_id) as heart:
            shift = _Shift(engine, bench, worker_id, heart, stop)
            size = pack or _calibrated(bench)
            while not stop.is_set():
                claimed = shift.claim(size)
                if claimed:
                    more, fitted = _train(shift, claimed, places=size)
                    ended += more
                    size = size if fitted else _halved(size, bench)
                    wait = FIRST_WAIT
                    continue
                when_idle()
                if studies.state(engine, bench.study_id) != "running":
                    break
                stop.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
    finally:
        roster.retire(engine, worker_id)
    return ended


def _calibrated(bench: Bench) -> int:
    try:
        return packing.best_size(bench.task, bench.recipe, bench.device)
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
    return _halved(1, bench)


def _halved(size: int, bench: Bench) -> int:
    """Return the size to go on with after a pack did not fit; no job is to blame for that."""
    packing.release_memory(bench.device)
    if size == 1:
        raise UsageError(
            f"a single job does not fit into the memory of {devices.describe(bench.device)} "
            f"(training.batch_size {bench.recipe.batch_size}); its jobs are back in the queue, use "
            f"a device with more memory or a study with smaller batches"
        )
    log.warning("a pack of %d does not fit into memory; going on with %d", size, size // 2)
    return size // 2


def _train(shift: _Shift, claimed: Sequence[ClaimedJob], *, places: int) -> tuple[int, bool]:
    """Train claimed jobs, others joining while there are places (0: none join).

    Every job is recorded, failed or handed back. Returns how many ended, and whether the pack
    fitted into memory.
    """
    pack = _Pack(shift, claimed, places)
    apart: list[ClaimedJob] = []
    try:
        pack.train()
    except StoppedError:
        pack.release()
    except SQLAlchemyError:
        raise
    except Exception as error:  # whatever a device or a network throws must not end the worker
        if devices.is_out_of_memory(error):
            pack.release()
            return pack.ended, False
        log.exception("a pack of %d failed", len(pack.open))
        if len(pack.open) == 1:
            pack.fail(next(iter(pack.open)), error)
        else:  # to find the one that fails
            apart = list(pack.open.values())
    outcomes = [_train(shift, [job], places=0) for job in apart]
    return pack.ended + sum(ended for ended, _ in outcomes), all(fitted for _, fitted in outcomes)


class _Pack:
    """Jobs that are trained together, by number in the order of arrival, and what becomes of them.

    `open` are those that have not ended.
    """

    def __init__(self, shift: _Shift, claimed: Sequence[ClaimedJob], places: int) -> None:
        self._shift, self._places = shift, places
        self.open: dict[int, ClaimedJob] = {}
        self._arrived = 0
        self.ended = 0
        self._looked = time.monotonic()
        self._first = self._join(claimed)

    def train(self) -> None:
        """Train until no job is left; whatever training raises comes through."""
        bench = self._shift.bench
        training.train(
            bench.task,
            bench.recipe,
            self._first,
            bench.device,
            on_rung=self._record,
            on_failure=self.fail,
            refill=self._refill,
            stopping=lambda: (
                self._shift.stop.is_set() or self._shift.heart.lost(self.open.values())
            ),
        )

    def release(self) -> None:
        """Hand the open jobs back."""
        jobs.release(self._shift.engine, [job.claim for job in self.open.values()])

    def fail(self, number: int, error: Exception) -> None:
        """Mark a job as failed for a reason of its own."""
        job = self.open[number]
        told = isinstance(error, DivergedError)  # the others' text may not even say what they are
        reason = str(error) if told else f"{type(error).__name__}: {error}"
        log.warning("%s: trial %d seed %d failed: %s", job.phase, job.trial, job.seed, reason)
        jobs.fail(self._shift.engine, job.claim, reason)
        self._end(number)

    def _record(self, number: int, measurement: Measurement) -> None:
        job = self.open[number]
        row = ledger.Measurement(
            job_id=job.id,
            rung=measurement.rung,
            value=measurement.score.value,
            extra=measurement.score.extra,
            seconds=measurement.seconds,
        )
        ledger.record(
            self._shift.engine,
            self._shift.worker_id,
            [row],
            finished=[job.id] if measurement.ending == "done" else [],
            cut=[job.id] if measurement.ending == "cut" else [],
        )
        log.info(
            "%s: trial %d seed %d: %.4f after %d of %d epochs, %.1f s%s",
            job.phase, job.trial, job.seed, measurement.score.value, measurement.rung, job.budget,
            measurement.seconds, ", cut" if measurement.ending == "cut" else "",
        )  # fmt: skip
        if measurement.ending:
            self._end(number)

    def _end(self, number: int) -> None:
        del self.open[number]
        self.ended += 1
        self._looked = -math.inf  # there is a place now

    def _refill(self) -> list[Job]:
        free = self._places - len(self.open)
        if free <= 0 or time.monotonic() - self._looked < LONGEST_WAIT or self._shift.stop.is_set():
            return []
        self._looked = time.monotonic()
        return self._join(self._shift.claim(free))

    def _join(self, claimed: Sequence[ClaimedJob]) -> list[Job]:
        for job in claimed:
            self.open[self._arrived] = job
            self._arrived += 1
        self._shift.heart.watch(self.open.values())
        return [
            Job(
                job.densities,
                job.seed,
                job.budget,
                job.bars,
                lr=job.arm.lr,
                init=job.arm.init,
                gain=job.arm.gain,
                trainable=job.arm.trainable,
                split=job.arm.split,
            )
            for job in claimed
        ]
