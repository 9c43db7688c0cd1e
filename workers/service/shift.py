"""A worker's dealings with the storage, which may go away and come back.

While it is away, training goes on: measurements wait in the spool, which is emptied after the next
heartbeat that gets through. What else could not be said need not be said again: a job of which the
storage hears nothing more is trained again, with the same result.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from storage import image_scores, jobs, ledger, retry, roster, studies
from storage.failures import Kind
from storage.jobs import Claim, ClaimedJob
from storage.retry import first_line
from storage.states import Phase
from storage.studies import Study
from workers.service import spool
from workers.service.heartbeat import LEASE, Heart
from workers.service.spool import Delivery, Spool
from workers.training import devices
from workers.training.recipe import Measurement
from workers.training.scores import Score

Result = TypeVar("Result")

log = logging.getLogger("densitune.worker")


class Shift:
    """A worker as the storage knows it: entered, its heart beating, within a `with` block.

    What it still holds at the end is handed back. `folder` is the spool: a host's workers share it.
    """

    def __init__(self, engine: Engine, study: Study, device: torch.device, folder: Path) -> None:
        self._engine, self._study, self._device = engine, study, device
        self._folder, self._spool = folder, Spool(folder, study)

    def __enter__(self) -> Self:
        self._worker_id = retry.persist(self._register, LEASE)
        self._heart = Heart(self._engine, self._worker_id, self._deliver)
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heart.stop()
        self.hand_back()
        try:
            self._deliver()
            roster.retire(self._engine, self._worker_id)
        except SQLAlchemyError as away:
            log.warning("leaving while the database is away: %s", first_line(away))

    @property
    def first_phase(self) -> Phase:
        """The phase that the study was at when the worker began."""
        return self._study.phase

    @property
    def study_state(self) -> str | None:
        """The study's state at the last heartbeat; None if it has been deleted."""
        return self._heart.study_state

    def patiently(
        self, attempt: Callable[[], Result], limit: float, stop: threading.Event
    ) -> Result:
        """Return an attempt's result, trying again while the storage is away and `stop` is not set.

        StorageUnreachableError after `limit` seconds (--outage-limit), or when `stop` is set.
        """
        advice = (
            f"what was measured waits in {self._folder} for the next worker on this machine "
            f"(--outage-limit waits longer)"
        )
        return retry.patiently(attempt, limit, advice, pause=stop.wait)

    def claim(self, count: int, phase: Phase | None = None) -> list[ClaimedJob]:
        """Claim up to `count` jobs of one phase, whichever, or of this one.

        What the storage raises comes through.
        """
        claimed = jobs.claim(self._engine, self._study.id, self._worker_id, count, LEASE, phase)
        self._heart.hold(job.claim for job in claimed)
        return claimed

    def claim_more(self, count: int, phase: Phase) -> list[ClaimedJob]:
        """Claim up to `count` jobs of a phase; none while the storage is away."""
        if self._heart.away:
            return []
        try:
            return self.claim(count, phase)
        except SQLAlchemyError as error:
            log.warning("no further jobs for now: %s", first_line(error))
            return []

    def study_runs(self) -> bool:
        """Ask whether the study is running; what the storage raises comes through."""
        return studies.state(self._engine, self._study.id) == "running"

    def lost(self, job: ClaimedJob) -> bool:
        """Tell whether a job that was claimed is this worker's no more."""
        return self._heart.lost(job.claim)

    def record(self, job: ClaimedJob, made: Sequence[Measurement], told: int) -> None:
        """Store all that a job has measured, of which `told` were stored or spooled here before.

        All of it, so that nothing is overtaken by what comes later; the ledger keeps what it has.
        """
        deliveries = [self._delivery(job, measurement) for measurement in made]
        if self._heart.away or not self._recorded(deliveries):
            for delivery in deliveries[told:]:
                self._spool.put(delivery)
        if made[-1].ending:
            self._heart.drop([job.claim])

    def fail(self, job: ClaimedJob, reason: str, kind: Kind) -> None:
        """Mark a job as failed; if the storage does not hear of it, the job is tried again."""
        self._heart.drop([job.claim])
        try:
            jobs.fail(self._engine, job.claim, reason, kind)
        except SQLAlchemyError as error:
            log.warning("a failure could not be stored: %s", first_line(error))

    def release(self, held: Iterable[ClaimedJob]) -> None:
        """Hand jobs back; if the storage does not hear of it, their leases run out."""
        self._release({job.claim for job in held})

    def hand_back(self) -> None:
        """Hand back all that is held; any thread may do so."""
        self._release(self._heart.held)

    def _register(self) -> int:
        return roster.register(
            self._engine,
            self._study.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=devices.describe(self._device),
            versions={"torch": torch.__version__},
            token=os.environ.get(roster.TOKEN),
        )

    def _release(self, claims: Iterable[Claim]) -> None:
        self._heart.drop(claims)
        try:
            jobs.release(self._engine, claims)
        except SQLAlchemyError as error:
            log.warning("jobs wait for their leases to run out: %s", first_line(error))

    def _deliver(self) -> None:
        delivered = self._spool.deliver(self._engine)
        if delivered:
            log.info("%d measurements delivered from the spool", delivered)

    def _recorded(self, deliveries: Sequence[Delivery]) -> bool:
        """Store measurements of one job; False if the storage is away."""
        try:
            spool.record(self._engine, deliveries)
        except SQLAlchemyError as error:
            log.warning("a measurement goes to the spool: %s", first_line(error))
            return False
        self._spool.settle(deliveries)
        return True

    def _delivery(self, job: ClaimedJob, made: Measurement) -> Delivery:
        entry = ledger.Entry(
            job_id=job.id,
            rung=made.rung,
            value=made.score.value,
            extra=_extra(made),
            seconds=made.seconds,
        )
        return Delivery(worker_id=self._worker_id, fence=job.fence, entry=entry, ending=made.ending)


def _extra(made: Measurement) -> dict[str, Any]:
    """Return what is stored beside a measurement's value, as JSON.

    `sealed` is what the test split said; nobody reads it before the verdict.
    """
    if made.sealed is None:
        return _beside(made.score)
    return {**_beside(made.score), "sealed": {"value": made.sealed.value, **_beside(made.sealed)}}


def _beside(score: Score) -> dict[str, Any]:
    if not score.images:
        return score.extra
    return {**score.extra, "images": image_scores.packed(score.images)}
