"""The worker loop: claim jobs, train them, look for more.

A signal or a stopped study ends it; so do a queue that stays empty, a storage that stays away, and
a worker of which no job succeeds.
"""

import logging
import math
import threading
from collections.abc import Callable

from optimizer.errors import StudyFailedError
from storage.errors import StorageUnreachableError
from storage.jobs import ClaimedJob
from workers.preparation import Bench
from workers.service.checkpoint import Checkpoints
from workers.service.pack import Place, train
from workers.service.shift import Shift
from workers.training import devices, packing

FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two looks at an empty queue; the wait doubles from the first to the longest."""

log = logging.getLogger("densitune.worker")


def work(
    shift: Shift,
    bench: Bench,
    checkpoints: Checkpoints,
    *,
    pack: int | None,
    stop: threading.Event,
    when_idle: Callable[[], None],
    idle_exit: float = math.inf,
    outage_limit: float,
) -> int:
    """Train jobs of a study until it is finished or stopped, or `stop` is set; return how many.

    `pack` jobs are trained together, None for as many as are fastest (workers.training.packing).
    `when_idle` is called whenever the queue is empty: a chance to take the proposer's role. After
    `idle_exit` seconds without a job the worker ends as well. StudyFailedError if not even one job
    fits into the device's memory (another machine should try), or if the first jobs all fail
    (workers.service.pack), and StorageUnreachableError if the storage is away for `outage_limit`
    seconds while there is nothing to train.
    """
    place = Place(shift, bench, checkpoints, stop)
    size = pack or _calibrated(bench)

    def look() -> list[ClaimedJob] | None:
        """Return jobs, an empty list if there are none now, None if there will be none."""
        claimed = shift.claim(size)
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
            fitted = train(place, claimed, places=size)
            size = size if fitted else _halved(size, bench)
            idle, wait = 0.0, FIRST_WAIT
        elif idle >= idle_exit:
            log.info("no job for %.0f s, as long as --idle-exit allows", idle)
            break
        else:
            stop.wait(wait)
            idle, wait = idle + wait, min(2 * wait, LONGEST_WAIT)
    return place.tally.ended


def _calibrated(bench: Bench) -> int:
    try:
        return packing.best_size(bench.task, bench.recipe, bench.device)
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
    return _halved(1, bench)


def _halved(size: int, bench: Bench) -> int:
    """Return the size to go on with after a pack did not fit; StudyFailedError if it was one."""
    packing.release_memory(bench.device)
    if size == 1:
        raise StudyFailedError(
            f"a single job does not fit into the memory of {devices.describe(bench.device)} "
            f"(training.batch_size {bench.recipe.batch_size}); its jobs are back in the queue, use "
            f"a device with more memory or a study with smaller batches"
        )
    log.warning("a pack of %d does not fit into memory; going on with %d", size, size // 2)
    return size // 2
