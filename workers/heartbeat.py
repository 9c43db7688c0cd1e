"""The heartbeat: a thread that keeps a worker's leases and learns which were lost."""

import logging
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from storage import jobs
from storage.jobs import Claim, ClaimedJob

LEASE = 60.0
"""Seconds after its last heartbeat until a job may go to another worker."""
BEAT = 10.0
"""Seconds between heartbeats: several may be lost before a lease is."""

log = logging.getLogger("densitune.worker")


class Heart:
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

    def watch(self, claimed: Iterable[ClaimedJob]) -> None:
        """Look after the leases of these jobs from now on."""
        self._watched = frozenset(job.claim for job in claimed)

    def lost(self, claimed: Iterable[ClaimedJob]) -> bool:
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
