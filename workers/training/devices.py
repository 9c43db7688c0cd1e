"""Devices: which one a worker uses, and how it is set up for repeatable results."""

import ctypes
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch

from densitune import repeatable
from optimizer.arms import Precision
from optimizer.errors import UsageError
from workers.training import cores

DRIVER = Path("/proc/driver/nvidia/version")
"""What a loaded NVIDIA driver says of itself; containers see that of their host."""
QUEUES = 32
"""Streams that a GPU serves side by side: torch has a pool of so many, and CUDA's own default is 8
(CUDA programming guide, environment variables)."""
FULL = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""What errors without a type of their own say when memory is full: torch on a CPU, CUDA outside
torch's allocator (graphs, modules), cuBLAS and cuDNN."""


def resolve(name: str) -> torch.device:
    """Return the device of a name: auto, cpu, cuda or cuda:N.

    UsageError if there is no such device here, and for auto if there may be a GPU that torch cannot
    use: a study would be trained on the CPU for days.
    """
    if name == "auto":
        if _gpus():
            return torch.device("cuda")
        _check_driver()
        return torch.device("cpu")
    known = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if known is None:
        raise UsageError(f"device {name!r} is unknown; take auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device(name)
    # Checked before torch sees it: torch takes the number modulo 256.
    index = int(known[1]) if known[1] else None
    count = _gpus()
    if (index or 0) >= count:
        found = f"{count} GPU{'s' if count != 1 else ''}" if count else "no GPU"
        raise UsageError(f"device {name} was asked for, but torch sees {found} here; take cpu")
    return torch.device("cuda") if index is None else torch.device("cuda", index)


def all_gpus() -> list[str]:
    """Return the names of all GPUs; UsageError if there is none."""
    count = _gpus()
    if not count:
        raise UsageError("--all-gpus was asked for, but torch sees no GPU here; take --device cpu")
    return [f"cuda:{index}" for index in range(count)]


def _gpus() -> int:
    """Return how many GPUs torch sees."""
    _ask_for_queues()
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _ask_for_queues() -> None:
    """Have a GPU serve all streams side by side; CUDA reads this when it starts in a process."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(QUEUES))


def _check_driver() -> None:
    """Refuse the CPU where an NVIDIA driver is loaded and not hidden; UsageError."""
    hidden = re.match(r"\d|GPU-|MIG-", os.environ.get("CUDA_VISIBLE_DEVICES", "0")) is None
    if hidden or not DRIVER.exists():
        return
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:  # a container without GPUs
        return
    raise UsageError(
        f"device auto: {DRIVER} shows an NVIDIA driver, but torch {torch.__version__} sees no GPU; "
        f"update the driver, install a torch for it, or take cpu"
    )


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
    """Set this process, and those that it starts, up so that the same job gives the same result."""
    if device.type == "cuda":
        _ask_for_queues()
        # cuBLAS reads it at its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    repeatable.set_up(device)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what is queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or one behind it, says that a device's memory is full.

    What is raised while another error is handled stands before it: a capture that cannot be ended,
    say, before the allocation that failed in it.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        if isinstance(found, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(found, RuntimeError) and any(words in str(found) for words in FULL):
            return True
        seen.add(id(found))
        waiting += [found.__cause__, found.__context__]
    return False


def spread(name: str, workers: int | None) -> list[str]:
    """Return the device of each local worker process.

    Without a number: one process per GPU, or per usable CPU core where the device is a CPU.
    UsageError if there is no such device here.
    """
    device = resolve(name)
    if device.type == "cpu":
        return ["cpu"] * (cores.usable() if workers is None else workers)
    gpus = all_gpus() if name in ("auto", "cuda") else [name]
    return [gpus[place % len(gpus)] for place in range(len(gpus) if workers is None else workers)]
