"""The worker loop: claim jobs, train them, look for more.

A signal or a stopped study ends it; so do a queue that stays empty, a storage that stays away, and
a worker of which no job succeeds.
"""

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import StudyFailedError
from storage.errors import StorageUnreachableError
from storage.jobs import ClaimedJob
from storage.states import Phase
from workers.preparation import Bench
from workers.scripts.stage import Stage
from workers.service.checkpoint import Checkpoints
from workers.service.pack import FIRST_WAIT, LONGEST_WAIT, Place, train
from workers.service.packs import PackSizes
from workers.service.shift import Shift
from workers.training import devices, packing
from workers.training.capture import CaptureError
from workers.training.slots import Slots

log = logging.getLogger("densitune.worker")


@dataclass
class _Bay:
    """Where jobs of one recipe are trained, and how many at a time."""

    place: Place
    size: int


class _Bays:
    """A worker's bays, each made when a job first needs it: an audit trains a larger network.

    `pack` jobs are trained together, None for as many as are fastest there.
    """

    def __init__(
        self,
        benches: tuple[Bench | Stage, Bench | None],
        place: Callable[[Slots | Stage], Place],
        pack: int | None,
        sizes: PackSizes,
    ) -> None:
        self._benches, self._place, self._pack, self._sizes = benches, place, pack, sizes
        self._made: dict[bool, _Bay] = {}

    @property
    def ended(self) -> int:
        """Return how many jobs have ended here."""
        return sum(bay.place.tally.ended for bay in self._made.values())

    def of(self, phase: Phase) -> _Bay:
        """Return the bay for jobs of a phase; StudyFailedError if there can be none."""
        audits = phase == "audit"
        if audits in self._made:
            return self._made[audits]
        bench = self._benches[audits]
        if bench is None:
            raise StudyFailedError(
                "this worker began before an audit was asked for; it leaves, and the jobs are for "
                "workers that begin now"
            )
        for bay in self._made.values():  # no job is in training there, and memory is short
            if isinstance(bay.place.bench, Slots):
                bay.place.bench.clear()
        self._made[audits] = self._new(bench)
        return self._made[audits]

    def _new(self, bench: Bench | Stage) -> _Bay:
        if isinstance(bench, Stage):
            return _Bay(self._place(bench), 1)
        slots = Slots(bench.task, bench.recipe, bench.device)
        return _Bay(self._place(slots), self._pack or _calibrated(slots, self._sizes))


def work(
    shift: Shift,
    bench: Bench | Stage,
    checkpoints: Checkpoints,
    *,
    audit: Bench | None = None,
    pack: int | None,
    packs: Path,
    stop: threading.Event,
    when_idle: Callable[[], None],
    idle_exit: float = math.inf,
    outage_limit: float,
) -> int:
    """Train jobs of a study until it is finished or stopped, or `stop` is set; return how many.

    `audit` is what its audit's jobs are trained with, if it has one.
    `pack` jobs are trained together, None for as many as are fastest: as the folder `packs` has it,
    or as it is measured now (workers.training.packing); a script trains one. `when_idle` is called
    whenever the queue is empty: a chance to take the proposer's role. After `idle_exit` seconds
    without a job the worker ends as well. StudyFailedError if not even one job fits into the
    device's memory (another machine should try), or if the first jobs all fail
    (workers.service.pack), and StorageUnreachableError if the storage is away for `outage_limit`
    seconds while there is nothing to train.
    """
    sizes = PackSizes(packs)
    bays = _Bays((bench, audit), lambda one: Place(shift, one, checkpoints, stop), pack, sizes)
    bay = bays.of(shift.first_phase)

    def look() -> list[ClaimedJob] | None:
        """Return jobs, an empty list if there are none now, None if there will be none."""
        claimed = shift.claim(bay.size)
        if claimed:
            return claimed
        when_idle()
        return [] if shift.study_runs() else None

    idle, wait = 0.0, FIRST_WAIT
    while not stop.is_set():
        try:
            claimed = shift.patiently(look, outage_limit, stop)
        except StorageUnreachableError:
            if stop.is_set():
                break
            raise
        if claimed is None:
            break
        if claimed:
            bay = bays.of(claimed[0].phase)
            shift.release(claimed[bay.size :])  # as many as the last bay had room for
            bay.size = _trained(bay.place, claimed[: bay.size], bay.size, sizes)
            idle, wait = 0.0, FIRST_WAIT
        elif idle >= idle_exit:
            log.info("no job for %.0f s, as long as --idle-exit allows", idle)
            break
        else:
            stop.wait(wait)
            idle, wait = idle + wait, min(2 * wait, LONGEST_WAIT)
    return bays.ended


def _trained(place: Place, claimed: list[ClaimedJob], size: int, sizes: PackSizes) -> int:
    """Train jobs in packs of a size; return that of the next pack, which `sizes` has if it is new.

    StudyFailedError comes through, and if memory was full then, the next worker takes half.
    """
    slots = place.bench
    if isinstance(slots, Stage):  # which tells of full memory as of any other failure
        train(place, claimed, places=1)
        return 1
    try:
        if train(place, claimed, places=size):
            return size
    except StudyFailedError as error:
        if isinstance(error.__cause__, CaptureError) and devices.is_out_of_memory(error):
            sizes.note(slots, max(1, size // 2))
        raise
    half = _halved(size, slots)
    sizes.note(slots, half)
    return half


def _calibrated(slots: Slots, sizes: PackSizes) -> int:
    """Return the best size of a pack; StudyFailedError if finding it has spoiled the device."""
    known = sizes.find(slots)
    if known is not None:
        log.info("pack of %d, as measured on this device before", known)
        return known
    try:
        found = packing.best_size(slots)
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        return _halved(1, slots)
    if slots.device.type != "cpu":
        sizes.note(slots, found.size)
    if found.error is not None:
        raise StudyFailedError(
            f"a pack of {found.full} did not fit into memory, and this process cannot use "
            f"{devices.describe(slots.device)} any longer; the next worker takes {found.size}"
        ) from found.error
    return found.size


def _halved(size: int, slots: Slots) -> int:
    """Return the size to go on with after a pack did not fit; StudyFailedError if it was one."""
    slots.clear()
    packing.release_memory(slots.device)
    if size == 1:
        raise StudyFailedError(
            f"a single job does not fit into the memory of {devices.describe(slots.device)} "
            f"(training.batch_size {slots.recipe.batch_size}); its jobs are back in the queue, use "
            f"a device with more memory or a study with smaller batches"
        )
    log.warning("a pack of %d does not fit into memory; going on with %d", size, size // 2)
    return size // 2
