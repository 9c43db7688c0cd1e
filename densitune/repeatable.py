"""Random numbers and settings of a process by which a training gives the same result again."""

import ctypes
import hashlib
import random
from typing import Any

import numpy as np
import torch


def set_up(device: torch.device) -> None:
    """Set this process up so that the same training gives the same result again, and fast.

    On a CPU one thread: results depend on the number of threads, and one process per core is also
    the fastest way to train small networks (1.1x over one process with two threads on two cores).
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
        _keep_freed_memory()
        return
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # Scores are compared in float32, and what trains in full precision asked for it: TF32, which
    # cuDNN takes for convolutions unless told otherwise, has 10 bits. bfloat16 is the fast one.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.index is not None:
        # Whatever goes by the current device goes to this one: else every process would also take
        # hundreds of MB of the first GPU for a context there.
        torch.cuda.set_device(device)


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, which depends on nothing else."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed(number: int) -> None:
    """Seed the global generators of Python, numpy and torch, on all devices."""
    random.seed(number)
    np.random.seed(number % 2**32)  # which takes no more
    torch.manual_seed(number)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators: tensors and plain values."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on with the random numbers of another process."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


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
