"""A season of storms: who is killed when, and when PostgreSQL is restarted, drawn from a seed."""

import itertools
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from helpers.cluster import Cluster

from support.crew import Crew

Event = Literal["worker", "proposer", "fast", "immediate"]
"""worker or proposer: it is killed and replaced; fast or immediate: PostgreSQL is restarted so."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How hard a season is; what happens how often is in seconds from one time to the next."""

    seconds: float
    workers: int
    worker_every: float
    proposer_every: float
    restart_every: float


def events(forecast: Forecast) -> list[tuple[float, Event]]:
    """Return when what happens, in order, in seconds from the start."""
    stops: Iterator[Event] = itertools.cycle(("immediate", "fast"))
    return sorted(
        [
            *((at, "worker") for at in _times(forecast.worker_every, forecast)),
            *((at, "proposer") for at in _times(forecast.proposer_every, forecast)),
            *zip(_times(forecast.restart_every, forecast), stops, strict=False),
        ]
    )


class Season:
    """A season's clock, which stands still between two studies."""

    def __init__(self, forecast: Forecast, seed: int) -> None:
        self._coming = deque(events(forecast))
        self._lot = random.Random(seed)
        self._now = 0.0
        self.seen = Counter[Event]()

    @property
    def over(self) -> bool:
        """Tell whether nothing will happen any more."""
        return not self._coming

    def blow(self, crew: Crew, cluster: Cluster) -> None:
        """Storm over a study until it or the season is over."""
        last = time.monotonic()
        while self._coming and not crew.tend():
            time.sleep(0.1)
            now = time.monotonic()
            self._now, last = self._now + now - last, now
            while self._coming and self._coming[0][0] <= self._now:
                self._strike(self._coming.popleft()[1], crew, cluster)

    def _strike(self, event: Event, crew: Crew, cluster: Cluster) -> None:
        self.seen[event] += 1
        number = self._lot.choice((signal.SIGKILL, signal.SIGTERM))
        match event:
            case "worker":
                crew.replace_worker(self._lot.randrange(len(crew.workers)), number)
            case "proposer":
                crew.replace_proposer(number)
            case "fast" | "immediate":
                cluster.restart(event)


def _times(every: float, forecast: Forecast) -> Iterator[float]:
    return itertools.takewhile(lambda at: at < forecast.seconds, itertools.count(every, every))
