"""Two ways to do one thing, timed side by side so that a drifting machine favours neither.

What is compared is the ratio within a round of A B B A, in which a linear drift cancels. It needs
torch and numpy only.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workers.training import devices

Run = Callable[[], object]
Clock = Callable[[Run], float]

WARM_UP = 3
"""Calls of either way before its times count."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """How long one way takes as a multiple of the other, over n rounds."""

    median: float
    low: float
    """Lower end of the 95 % bootstrap interval of the median."""
    high: float
    n: int
    seconds: tuple[float, float]
    """Median time of a call, of the first way and of the second."""

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wall(run: Run) -> float:
    """Return the seconds of one call on a CPU."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def cuda(run: Run) -> float:
    """Return the seconds of one call on the current CUDA device, between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def clock(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return cuda if device.type == "cuda" else wall


def interleaved(a: Run, b: Run, rounds: int, *, clock: Clock = wall) -> Ratio:
    """Return the time of `a` divided by that of `b`, from that many rounds of A B B A."""
    for run in (a, b):
        for _ in range(WARM_UP):
            run()
    orders = ((a, b, b, a), (b, a, a, b))  # in turn, so that neither is always the one in between
    times = np.array([[clock(run) for run in orders[index % 2]] for index in range(rounds)])
    outer, inner = times[:, [0, 3]], times[:, [1, 2]]
    swapped = (np.arange(rounds) % 2 == 1)[:, None]
    of_a, of_b = np.where(swapped, inner, outer), np.where(swapped, outer, inner)
    low, high = interval(ratios := of_a.sum(axis=1) / of_b.sum(axis=1))
    seconds = (float(np.median(of_a)), float(np.median(of_b)))
    return Ratio(float(np.median(ratios)), low, high, rounds, seconds)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the median of `values`, a percentile bootstrap of fixed seed."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def summary(ratios: Sequence[Ratio]) -> Ratio:
    """Return the median over several comparisons, with the interval that their spread gives."""
    medians = [ratio.median for ratio in ratios]
    low, high = interval(medians)
    first, second = (statistics.median(ratio.seconds[way] for ratio in ratios) for way in (0, 1))
    return Ratio(statistics.median(medians), low, high, len(ratios), (first, second))


def environment(device: torch.device) -> dict[str, str | int]:
    """Return what a figure depends on: device, CPU, threads and versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpu": devices.cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text in columns: the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)
