"""The one training loop: a pack of jobs side by side on one device.

It knows no database and no configuration file: it takes slots and jobs, and calls back at rungs.
What a member of a pack computes does not depend on its neighbours, so jobs may join and leave at
any step.
"""

import itertools
import time
from collections.abc import Callable, Collection, Sequence

from workers.training.member import DivergedError, Member, State
from workers.training.recipe import Job, Measurement
from workers.training.slots import Slots

OnRung = Callable[[int, Measurement], None]
OnFailure = Callable[[int, DivergedError], None]


class StoppedError(Exception):
    """Training was asked to stop before its end."""


def train(
    slots: Slots,
    jobs: Sequence[Job],
    *,
    on_rung: OnRung,
    on_failure: OnFailure,
    refill: Callable[[], Sequence[Job]] = tuple,
    stopping: Callable[[], bool] = lambda: False,
    leaving: Callable[[], Collection[int]] = tuple,
    restore: Callable[[int], State | None] = lambda number: None,
    save: Callable[[int, State], None] = lambda number, state: None,
) -> None:
    """Train jobs together and call back with each one's number in the order of arrival.

    A job leaves when it is done, cut or diverged, and the others go on; after every round of steps
    `leaving` is asked for jobs to be dropped and `refill` for jobs that join. A job that joins goes
    on from the state that `restore` has of it. Before every round `stopping` is asked: if it says
    so, `save` is called with the state of every job and StoppedError is raised. Errors of the
    device (out of memory) come through.
    """
    numbers = itertools.count()
    pack: dict[int, Member] = {}
    joining = jobs
    while pack or joining:
        for job in joining:
            number = next(numbers)
            pack[number] = _begin(slots, job, restore(number))
        if stopping():
            for number, member in pack.items():
                save(number, member.state())
            raise StoppedError
        _step(pack)
        _measure(pack, on_rung, on_failure)
        for number in leaving():
            if number in pack:
                pack.pop(number).leave()
        joining = refill()


def _begin(slots: Slots, job: Job, state: State | None) -> Member:
    started = time.perf_counter()
    member = Member(slots, job)
    if state is not None:
        member.resume(state)
    member.seconds += time.perf_counter() - started
    return member


def _step(pack: dict[int, Member]) -> None:
    """Train every member on one batch."""
    started = time.perf_counter()
    for member in pack.values():
        member.step()
    # On a GPU steps are only queued here. Who comes to a rung waits for what is queued, and
    # meanwhile the device works for all.
    for member in pack.values():
        if member.rung is not None:
            member.wait()
    share = (time.perf_counter() - started) / len(pack)
    for member in pack.values():
        member.seconds += share


def _measure(pack: dict[int, Member], on_rung: OnRung, on_failure: OnFailure) -> None:
    """Measure the members that are at a rung, and let go those whose training ends there."""
    for number, member in list(pack.items()):
        if member.rung is None:
            continue
        try:
            measurement = member.measure()
        except DivergedError as error:
            pack.pop(number).leave()
            on_failure(number, error)
            continue
        if measurement.ending:
            pack.pop(number).leave()
        on_rung(number, measurement)
