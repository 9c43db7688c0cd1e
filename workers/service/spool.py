"""Measurements that the database could not take, on disk until it can.

All workers of a host share one folder, with one file for each measurement, of whatever study. A
file appears by one rename after its bytes are on the disk, and goes after the database has
committed what it holds. Delivering twice is harmless (storage.ledger keeps what it has), so whoever
finds a file delivers it, also a worker that was started later.
"""

import hashlib
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from optimizer.config import documents
from storage import durable, ledger, retry, studies
from storage.ledger import Entry
from storage.studies import Study
from workers.service.spooled import (
    SpoolError,
    aside_of,
    check_bounds,
    left_aside,
    set_aside,
    taken,
)
from workers.training.recipe import Ending

log = logging.getLogger("densitune.worker")


class DamagedError(Exception):
    """A file of the spool is not what was once written."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A measurement on its way to the ledger."""

    worker_id: int
    fence: int  # of the job's claim under which it was made
    entry: Entry
    ending: Ending | None  # whether the job ends with it, and how


def record(engine: Engine, deliveries: Sequence[Delivery]) -> None:
    """Store measurements of one job, in order, and end it if the last one does.

    Again is harmless. What the database raises comes through.
    """
    last = deliveries[-1]
    ended = [last.entry.job_id]
    ledger.record(
        engine,
        last.worker_id,
        [delivery.entry for delivery in deliveries],
        finished=ended if last.ending == "done" else [],
        cut=ended if last.ending == "cut" else [],
    )


@dataclass(frozen=True)
class StudyKey:
    """Which study a measurement belongs to, never mistaken for one of that name made later."""

    name: str
    id: int
    created_at: str

    @property
    def short(self) -> str:
        """Return what the names of the study's files begin with."""
        return _digest(asdict(self))[:12]


def key_of(study: Study) -> StudyKey:
    """Return the key of a study."""
    return StudyKey(study.name, study.id, study.created_at.astimezone(UTC).isoformat())


_KEY, _DELIVERY = TypeAdapter(StudyKey), TypeAdapter(Delivery)


class Spool:
    """The measurements of one study that wait in a folder; any thread may call any method.

    What cannot be written to the folder waits in memory instead, and is tried again with the next.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self._folder, self._key = folder, key_of(study)
        self._held: list[Delivery] = []
        self._dropped = frozenset[Path]()  # of what was held and refused, as if it were aside
        self._lock = threading.RLock()  # of what is held and dropped

    def put(self, delivery: Delivery) -> None:
        """Keep a measurement until it is delivered; logs one line if that is in memory only."""
        with self._lock:
            self._held.append(delivery)
            try:
                while self._held:
                    _write(self._folder, self._key, self._held[0])
                    del self._held[0]
            except SpoolError as error:
                log.error("%s; kept in memory: %d", error, len(self._held))

    @property
    def held(self) -> int:
        """Return how many measurements are in memory only, and gone if this process ends now."""
        return len(self._held)

    def pending(self) -> list[Path]:
        """Return the study's files in the order of delivery: by job, and by rung within a job."""
        return sorted(self._folder.glob(f"{self._key.short}-*.json"))

    def deliver(self, engine: Engine) -> int:
        """Record what waits, in order; return how many measurements that were.

        What the database raises comes through, and what is not recorded stays. Nothing is recorded
        if the study has been deleted, even if there is one of its name again. What is damaged, or
        what the database will never take, is set aside as *.damaged or *.refused, and logged.
        """
        files = self.pending()
        if not (files or self._held):
            return 0
        found = studies.find(engine, self._key.name)
        if found is None or key_of(found) != self._key:
            return 0
        delivered = sum(self._deliver_file(path, engine) for path in files)
        with self._lock:
            return delivered + sum(self._deliver_held(one, engine) for one in [*self._held])

    def settle(self, deliveries: Iterable[Delivery]) -> None:
        """Forget what is aside of these measurements, which have been recorded since."""
        for aside in (name for one in deliveries for name in aside_of(self._path(one))):
            with suppress(OSError), self._lock:
                self._dropped -= {aside}
                aside.unlink(missing_ok=True)

    def _deliver_held(self, delivery: Delivery, engine: Engine) -> bool:
        """Record a measurement that is in memory only, as `_deliver_file` does."""
        path = self._path(delivery)
        earlier = self._earlier(path)
        if any(other.suffix == ".json" for other in earlier):
            return False
        refusal = _refusal(engine, replace(delivery, ending=None) if earlier else delivery)
        self._held.remove(delivery)
        if refusal:
            log.error("a measurement is refused and dropped: %s", refusal)
            self._dropped |= {path.with_suffix(".json.refused")}
        else:
            self.settle([delivery])
        return not refusal

    def _deliver_file(self, path: Path, engine: Engine) -> bool:
        """Record one file's measurement, unless another process has taken it or it is of no use.

        A job of which an earlier measurement is aside does not end: it has to be trained again.
        """
        earlier = self._earlier(path)
        if any(other.suffix == ".json" for other in earlier):
            return False  # another process is at it
        try:
            with taken(path) as content:
                if content is None:
                    return False
                try:
                    delivery = self._own(content)
                except DamagedError as error:
                    set_aside(path, "damaged", error)
                    return False
                if refusal := _refusal(
                    engine, replace(delivery, ending=None) if earlier else delivery
                ):
                    set_aside(path, "refused", refusal)
                    return False
                path.unlink(missing_ok=True)
                self.settle([delivery])
        except OSError as error:
            log.error("cannot take the spooled measurement %s: %s", path, error.strerror)
            return False
        return True

    def _earlier(self, path: Path) -> list[Path]:
        """Return what is left, or aside, of the measurements that the job made before."""
        job = path.name.rpartition("-")[0]
        aside = {*left_aside(self._folder, f"{job}-"), *self._dropped}
        left = (*self._folder.glob(f"{job}-*.json"), *aside)
        return [one for one in left if one.name.startswith(f"{job}-") and one.name < path.name]

    def _path(self, delivery: Delivery) -> Path:
        return _path(self._folder, self._key, delivery.entry)

    def _own(self, content: bytes) -> Delivery:
        """Return a file's measurement; DamagedError if it is of another study, despite its name."""
        key, delivery = _decoded(content)
        if key != self._key:
            raise DamagedError(f"it belongs to study {key.name} of {key.created_at}")
        return delivery


def survey(folder: Path) -> tuple[dict[StudyKey, int], list[Path]]:
    """Return how many measurements of which studies wait, and what is aside or will be.

    OSError if a file cannot be read.
    """
    waiting: dict[StudyKey, int] = defaultdict(int)
    aside = left_aside(folder)
    for path in folder.glob("*.json"):
        try:
            if not durable.is_regular(path):
                raise DamagedError("it is no regular file")
            with durable.opened(path) as file:
                waiting[_decoded(file.read(documents.MOST_BYTES + 1))[0]] += 1
        except DamagedError:
            aside.append(path)
        except FileNotFoundError:  # delivered just now
            continue
    return dict(waiting), sorted(aside)


def _refusal(engine: Engine, delivery: Delivery) -> str | None:
    """Record a measurement; return why the database will never take it, if so.

    What is passing comes through, and so does what is no fault of the measurement's.
    """
    try:
        record(engine, [delivery])
    except SQLAlchemyError as error:
        if retry.is_passing(error) or retry.is_of_the_database(error):
            raise
        return retry.first_line(error)
    return None


def _write(folder: Path, key: StudyKey, delivery: Delivery) -> None:
    """Write a measurement's file so that it is there, whole, also after a power failure.

    SpoolError if the folder is full, by the bounds above or on the disk, or cannot be used.
    """
    path = _path(folder, key, delivery.entry)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_bounds(folder)
        durable.write(path, _encoded(key, delivery))
    except OSError as error:
        raise SpoolError(
            f"cannot spool a measurement to {folder}: {error.strerror}; free some space there, or "
            "set DENSITUNE_HOME to another disk"
        ) from error


def _path(folder: Path, key: StudyKey, entry: Entry) -> Path:
    """Return the file of a measurement: of one study by job, of a job by rung."""
    return folder / f"{key.short}-{entry.job_id:012d}-{entry.rung:06d}.json"


def _encoded(key: StudyKey, delivery: Delivery) -> bytes:
    """Return a file's content; floats are written so that they are read back to the last bit."""
    stored = {
        "worker_id": delivery.worker_id,
        "epoch": delivery.fence,  # as the database calls it
        "measurement": asdict(delivery.entry),
        "ending": delivery.ending,
    }
    content = {"study": asdict(key), "delivery": stored}
    return json.dumps({"sha256": _digest(content), "content": content}, indent=1).encode()


def _decoded(stored: bytes) -> tuple[StudyKey, Delivery]:
    """Return what a file holds; DamagedError if it was truncated or altered."""
    try:
        document = documents.from_json(
            stored, any_text=True
        )  # what is in `extra` the database says
        content = document["content"]
        if document["sha256"] != _digest(content):
            raise DamagedError("its checksum does not match")
        made = content["delivery"]
        told = {**made, "fence": made["epoch"], "entry": made["measurement"]}
        key = _KEY.validate_python(documents.checked(content["study"]))
        return key, _DELIVERY.validate_python(told)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError("it is no measurement, or only a part of one") from error


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON value's canonical text, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
