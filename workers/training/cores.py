"""How many CPU cores this process may use: its affinity, and the CPU quota of its control groups.

A container with `--cpus 0.5` sees all cores of its host. Its quota is in the files of the kernel's
control groups (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/cpu; sched-bwc.rst): every group
up to the root may have one.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SYSTEM = Path("/")


def usable(system: Path = SYSTEM) -> int:
    """Return the number of cores, at least 1; `system` is where /proc and /sys are."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.floor(min([cores, *_quotas(system)])))


def _quotas(system: Path) -> Iterator[float]:
    """Yield every limit there is, in cores."""
    for folder in _groups(system):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield float(quota) / float(period)  # "max" is no limit
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota = (folder / "cpu.cfs_quota_us").read_text()
            if int(quota) > 0:  # -1 is no limit
                yield int(quota) / int((folder / "cpu.cfs_period_us").read_text())


def _groups(system: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups for the CPU, each with those above it.

    Lines are `hierarchy:controllers:path`, in version 2 `0::path`. In a container the path may be
    the host's and lead nowhere; the folder above it all is then the container's own.
    """
    mounts = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = mounts / controllers if controllers else mounts
        group = Path(path.lstrip("/"))
        yield from (mount / above for above in (group, *group.parents))
