"""The heartbeat: a thread that keeps a worker's leases and learns which were lost."""

import logging
import threading
from collections.abc import Callable, Iterable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from storage import jobs
from storage.jobs import Claim
from storage.retry import first_line

LEASE = 60.0
"""Seconds after its last heartbeat until a job may go to another worker."""
BEAT = 10.0
"""Seconds between heartbeats: several may be lost before a lease is."""

log = logging.getLogger("densitune.worker")


class Heart:
    """A thread that renews the worker's leases, and learns what becomes of them and of the study.

    `after_beat` is called in that thread after every beat that reached the database. A job that
    the database takes for this worker's while the worker knows nothing of it (the answer to a claim
    was lost) is handed back.
    """

    def __init__(self, engine: Engine, worker_id: int, after_beat: Callable[[], object]) -> None:
        self._engine, self._worker_id, self._after_beat = engine, worker_id, after_beat
        self._lock = threading.Lock()  # of what is held
        self._held: frozenset[Claim] = frozenset()
        self._lost: frozenset[Claim] = frozenset()
        self._unknown: frozenset[Claim] = frozenset()
        self.study_state: str | None = "running"
        """The study's state at the last beat; None if it has been deleted."""
        self.away = False
        """Whether the last beat did not reach the database."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat, now and from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; returns when a beat that is under way has ended."""
        self._end.set()
        self._thread.join()

    @property
    def held(self) -> frozenset[Claim]:
        """The claims that are looked after."""
        return self._held

    def hold(self, claims: Iterable[Claim]) -> None:
        """Look after these from now on."""
        with self._lock:
            self._held |= frozenset(claims)

    def drop(self, claims: Iterable[Claim]) -> None:
        """Look after these no more."""
        with self._lock:
            self._held -= frozenset(claims)

    def lost(self, claim: Claim) -> bool:
        """Tell whether a claim that was held is this worker's no more."""
        return claim in self._lost

    def _run(self) -> None:
        while True:
            self._beat()
            if self._end.wait(BEAT):
                return

    def _beat(self) -> None:
        held = self._held  # before the query: what is claimed after it is not lost
        try:
            beat = jobs.heartbeat(self._engine, self._worker_id, LEASE)
        except SQLAlchemyError as error:
            if not self.away:
                log.warning("the database is away, training goes on: %s", first_line(error))
            self.away = True
            return
        if self.away:
            log.info("the database is back")
        self.away = False
        self._lost, self.study_state = held - beat.held, beat.study_state
        try:
            self._hand_back(beat.held - self._held)
            self._after_beat()
        except Exception as error:  # without the heart all leases would be lost
            log.warning("trying again at the next heartbeat: %s", first_line(error))

    def _hand_back(self, unknown: frozenset[Claim]) -> None:
        """Release claims that were unknown a beat ago too: not those that just come in."""
        jobs.release(self._engine, unknown & self._unknown)
        self._unknown = unknown
