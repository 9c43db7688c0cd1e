"""Devices: which one a worker uses, and how it is set up for repeatable results."""

import os
import re

import torch

from optimizer.errors import UsageError


def resolve(name: str) -> torch.device:
    """Return the device of a name: auto, cpu, cuda or cuda:N.

    UsageError if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if known is None:
        raise UsageError(f"device {name!r} is unknown; take auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device(name)
    # Checked before torch sees it: torch takes the number modulo 256.
    index = int(known[1]) if known[1] else None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (index or 0) >= count:
        found = f"{count} GPU{'s' if count != 1 else ''}" if count else "no GPU"
        raise UsageError(f"device {name} was asked for, but torch sees {found} here; take cpu")
    return torch.device("cuda") if index is None else torch.device("cuda", index)


def all_gpus() -> list[str]:
    """Return the names of all GPUs; UsageError if there is none."""
    if not torch.cuda.is_available():
        raise UsageError("--all-gpus was asked for, but torch sees no GPU here; take --device cpu")
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def describe(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU"


def make_repeatable(device: torch.device) -> None:
    """Set this process up so that the same job gives the same result again.

    On a CPU one thread: results depend on the number of threads, and one process per core is also
    the fastest way to train small networks (1.1x over one process with two threads on two cores).
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def spread(name: str, workers: int | None) -> list[str]:
    """Return the device of each local worker process.

    Without a number: one process per GPU, or per CPU core where the device is a CPU. UsageError if
    there is no such device here.
    """
    device = resolve(name)
    if device.type == "cpu":
        return ["cpu"] * (_cores() if workers is None else workers)
    gpus = all_gpus() if name in ("auto", "cuda") else [name]
    return [gpus[place % len(gpus)] for place in range(len(gpus) if workers is None else workers)]


def _cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
