"""Devices: which one a worker uses, and how it is set up for repeatable results."""

import ctypes
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch

from optimizer.arms import Precision
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
    """Return what a person calls the device: two of one name compute the same bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"


def cpu_model() -> str:
    """Return the CPU's own name; Linux keeps it in /proc/cpuinfo."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "CPU"


def precision(asked: Literal["auto", Precision], device: torch.device) -> Precision:
    """Return the precision to train with: what was asked for, or what a device is fast with.

    A GPU is from compute capability 8.0 on, a CPU with AVX-512 BF16 or AMX (docs/method.md).
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "full"
    # torch before 2.12 cannot tell, and then takes what every CPU is fast with.
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = found.get("avx512_bf16") or found.get("amx_bf16")
    return "bfloat16" if fast and _adds_in_float32(device) else "full"


def check_precision(precision: Precision, names: Iterable[str]) -> None:
    """Refuse to train in bfloat16 where the sums of a gradient are kept in it too; UsageError."""
    for device in map(resolve, names):
        if precision == "bfloat16" and not _adds_in_float32(device):
            raise UsageError(
                "training.precision bfloat16 needs a GPU or a CPU with AVX-512; "
                f"{describe(device)} adds up in bfloat16, and gradients are wrong by percents: "
                "take another device, or a study with training.precision: full"
            )


def _adds_in_float32(device: torch.device) -> bool:
    """Tell whether products of bfloat16 numbers are added up in float32 on a device.

    oneDNN does so from AVX-512 on. Without it torch falls back to kernels that add the gradients of
    a batch up in bfloat16, 1.5 to 5 % off for batches of 64 to 256 (docs/decisions.md).
    """
    if device.type != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # a torch without oneDNN
        return False


def make_repeatable(device: torch.device) -> None:
    """Set this process up so that the same job gives the same result again, and fast.

    On a CPU one thread: results depend on the number of threads, and one process per core is also
    the fastest way to train small networks (1.1x over one process with two threads on two cores).
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
        _keep_freed_memory()
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what is queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device's memory is full; torch has no type for CPUs."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed instead of giving it back to the kernel after every step.

    Every activation would come as fresh pages, each zeroed at its first touch: 5 to 10 % of a step
    (docs/performance.md). Parameters as in mallopt(3); another C library has other ways.
    """
    trim_threshold, mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


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
