"""A pack of claimed jobs in training, and what becomes of each.

A job leaves when it ends, fails, or is another worker's now; others join in its place. Where
training has to stop, every job is saved and handed back, and whoever finds the checkpoint goes on
from there. Where it breaks, the jobs are trained one by one to find the one that fails.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from optimizer.arms import Arm
from optimizer.errors import StudyFailedError, UsageError
from storage.failures import Kind
from storage.jobs import ClaimedJob
from workers.scripts.process import ScriptError
from workers.scripts.stage import Stage
from workers.service import checkpoint
from workers.service.checkpoint import Checkpoints
from workers.service.shift import Shift
from workers.training import devices, loop
from workers.training.capture import CaptureError
from workers.training.loop import StoppedError
from workers.training.member import DivergedError, State
from workers.training.recipe import Job, Measurement
from workers.training.scores import Score
from workers.training.slots import Slots

FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two looks at an empty queue; the wait doubles from the first to the longest. On a
GPU a job may take no longer than that."""
PROBATION = 3
"""Failures after which a worker leaves if none of its jobs ever came to an end."""

log = logging.getLogger("densitune.worker")


@dataclass
class Tally:
    """How many of a worker's jobs have ended, and how many of those failed as if for its sake."""

    ended: int = 0
    failed: int = 0

    @property
    def proven(self) -> bool:
        """Whether the worker has brought a job to an end; a divergence is one."""
        return self.ended > self.failed


@dataclass(frozen=True)
class Place:
    """Where a worker works."""

    shift: Shift
    bench: Slots | Stage
    """What jobs are trained on: in slots of this process, or by a script in one of its own."""
    checkpoints: Checkpoints
    stop: threading.Event
    tally: Tally = field(default_factory=Tally)

    @property
    def train(self) -> Callable[..., None]:
        """Return what trains jobs here, with the callbacks of workers.training.loop.train."""
        if isinstance(self.bench, Stage):
            return self.bench.train
        return partial(loop.train, self.bench)


@dataclass
class _Held:
    """A claimed job that has not ended."""

    claimed: ClaimedJob
    job: Job
    made: list[Measurement] = field(default_factory=list)
    told: int = 0
    """How many of the measurements are stored or spooled; not those that came with a checkpoint."""


def train(place: Place, claimed: Sequence[ClaimedJob], *, places: int) -> bool:
    """Train claimed jobs to their ends, others joining while there are places (0: none join).

    Every job is recorded, failed or handed back. Returns whether the pack fitted into memory; the
    same for one job alone if the worker has trained others. StudyFailedError if there is a reason
    to think that the worker fails and not its jobs.
    """
    pack = _Pack(place, claimed, places)
    apart: list[ClaimedJob] = []
    try:
        pack.train()
    except StoppedError:
        pack.release()
    except StudyFailedError:
        raise
    except CaptureError as error:
        raise StudyFailedError(
            f"{devices.describe(place.bench.device)} cannot be used by this process any longer: "
            f"{error}; the worker leaves, its jobs go back to the queue"
        ) from error
    except Exception as error:  # whatever a device or a network throws must not end the worker
        full = devices.is_out_of_memory(error)
        if full and places != 1:
            pack.release()
            return False
        log.exception("a pack of %d failed", len(pack.open))
        if not full and not _answers(place.bench.device):
            raise StudyFailedError(
                f"{devices.describe(place.bench.device)} computes no more after {_said(error)}; "
                f"the worker leaves, its jobs go back to the queue"
            ) from error
        if len(pack.open) == 1:
            pack.fail(next(iter(pack.open)), error)
            return place.tally.proven or not full
        apart = [held.claimed for held in pack.open.values()]
    for job in apart:
        train(place, [job], places=0)
    return True


def _answers(device: torch.device) -> bool:
    """Tell whether a device computes; after some errors a GPU does so in a new process only."""
    try:
        return torch.ones((), device=device).item() == 1
    except RuntimeError:
        return False


def _kind(error: Exception) -> Kind:
    if devices.is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, DivergedError):
        return "diverged"
    return "data" if isinstance(error, OSError | UsageError) else "code"


def _said(error: Exception) -> str:
    if isinstance(error, DivergedError | ScriptError):
        return str(error)
    return f"{type(error).__name__}: {error}"  # others' text may not even say what they are


class _Pack:
    """Jobs that are trained together; `open` has those that have not ended, by order of arrival."""

    def __init__(self, place: Place, claimed: Sequence[ClaimedJob], places: int) -> None:
        self._place, self._places = place, places
        self._phase = claimed[0].phase  # one recipe for all
        self.open: dict[int, _Held] = {}
        self._arrived = 0
        self._look_at, self._wait = time.monotonic() + FIRST_WAIT, FIRST_WAIT
        self._first = self._join(claimed)

    def train(self) -> None:
        """Train until no job is left; whatever training raises comes through."""
        self._place.train(
            self._first,
            on_rung=self._record,
            on_failure=self.fail,
            refill=self._refill,
            stopping=self._stopping,
            leaving=self._drop_lost,
            restore=self._restore,
            save=self._save,
        )

    def release(self) -> None:
        """Hand the open jobs back."""
        self._place.shift.release(held.claimed for held in self.open.values())

    def fail(self, number: int, error: Exception) -> None:
        """Note that a job failed for a reason of its own; StudyFailedError if all of them do."""
        held, kind, reason = self.open[number], _kind(error), _said(error)
        log.warning("%s failed: %s", _name(held.claimed), reason)
        self._place.shift.fail(held.claimed, reason, kind)
        self._end(number)
        tally = self._place.tally
        tally.failed += kind != "diverged"
        if tally.failed >= PROBATION and not tally.proven:
            raise StudyFailedError(
                f"all {tally.failed} jobs that this worker has tried failed, at last with "
                f"{reason}; it leaves, and the jobs are for other workers"
            )

    def _stopping(self) -> bool:
        return self._place.stop.is_set() or self._place.shift.study_state != "running"

    def _record(self, number: int, measurement: Measurement) -> None:
        held = self.open[number]
        held.made.append(measurement)
        self._place.shift.record(held.claimed, held.made, held.told)
        held.told = len(held.made)
        log.info(
            "%s: %.4f after %d of %d epochs, %.1f s%s",
            _name(held.claimed), measurement.score.value, measurement.rung, held.job.budget,
            measurement.seconds, _remark(measurement),
        )  # fmt: skip
        if measurement.ending:
            self._end(number)

    def _end(self, number: int) -> None:
        self._place.checkpoints.remove(self.open.pop(number).claimed.id)
        self._place.tally.ended += 1
        self._look_at, self._wait = -math.inf, FIRST_WAIT  # there is a place now

    def _refill(self) -> list[Job]:
        free, now = self._places - len(self.open), time.monotonic()
        if free <= 0 or now < self._look_at or self._place.stop.is_set():
            return []
        joining = self._join(self._place.shift.claim_more(free, self._phase))
        self._look_at = now + self._wait
        self._wait = FIRST_WAIT if joining else min(2 * self._wait, LONGEST_WAIT)
        return joining

    def _join(self, claimed: Sequence[ClaimedJob]) -> list[Job]:
        joining = [_Held(job, _job(job)) for job in claimed]
        self.open |= dict(enumerate(joining, start=self._arrived))
        self._arrived += len(joining)
        return [held.job for held in joining]

    def _drop_lost(self) -> list[int]:
        lost = [n for n, held in self.open.items() if self._place.shift.lost(held.claimed)]
        for number in lost:
            log.warning("%s is no longer this worker's", _name(self.open.pop(number).claimed))
        return lost

    def _save(self, number: int, state: State) -> None:
        """Save a job that stops here, unless nobody will go on with it."""
        shift, held = self._place.shift, self.open[number]
        if shift.lost(held.claimed) or shift.study_state not in ("running", "stopped"):
            return
        saved = {"training": state, "measurements": [asdict(made) for made in held.made]}
        try:
            self._place.checkpoints.save(held.claimed.id, self._subject(held), saved)
        except OSError as error:
            log.warning("%s is not saved: %s", _name(held.claimed), error)

    def _restore(self, number: int) -> State | None:
        held = self.open[number]
        found = self._place.checkpoints.load(held.claimed.id, self._subject(held))
        if found is None:
            return None
        held.made = [_measurement(made) for made in found["measurements"]]
        log.info("%s goes on from its checkpoint", _name(held.claimed))
        state: State = found["training"]
        return state

    def _subject(self, held: _Held) -> str:
        bench = self._place.bench
        return checkpoint.subject(held.job, bench.recipe, bench.device)


def _job(claimed: ClaimedJob) -> Job:
    arm = Arm.of(claimed.densities, claimed.arm)
    return Job(arm, claimed.seed, claimed.budget, claimed.bars)


def _measurement(saved: dict[str, Any]) -> Measurement:
    return Measurement(**{**saved, "score": Score(**saved["score"])})


def _remark(measurement: Measurement) -> str:
    if measurement.score.extra.get("diverged"):
        return ", the floor, for training diverged"
    return ", cut" if measurement.ending == "cut" else ""


def _name(claimed: ClaimedJob) -> str:
    return f"{claimed.phase}: trial {claimed.trial} seed {claimed.seed}"
