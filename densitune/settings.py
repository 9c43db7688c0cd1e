"""What a job may leave behind in a process that changes what the next one computes.

Settings are put back as they were. Threads and processes cannot be: they are named.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

_Setting = tuple[Callable[[], Any], Callable[[Any], object]]


class Usual:
    """A process as it is now, with its code imported and before its first job."""

    def __init__(self, device: torch.device) -> None:
        self._settings = _settings(device)
        self._values = {name: _value(get) for name, (get, _) in self._settings.items()}
        self._threads, self._children = set(threading.enumerate()), set(_children())

    def put_back(self) -> list[str]:
        """Put all settings back; return what is left behind nevertheless, in words."""
        left = []
        for name, (get, put) in self._settings.items():
            usual = self._values[name]
            if _value(get) != usual:
                with suppress(Exception):  # as torch raises where its old and new ways are mixed
                    put(usual)
                if _value(get) != usual:
                    left.append(name)
        left += [f"thread {one.name}" for one in threading.enumerate() if self._is_new(one)]
        left += [f"process {pid}" for pid in _children() if pid not in self._children]
        return left

    def _is_new(self, thread: threading.Thread) -> bool:
        # tqdm's thread looks at bars alone, and stays wherever one has been shown.
        return thread not in self._threads and not type(thread).__module__.startswith("tqdm.")


def _settings(device: torch.device) -> Mapping[str, _Setting]:
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    attributes = [
        (cudnn, "enabled"),
        (cudnn, "benchmark"),
        (cudnn, "deterministic"),
        (cudnn, "allow_tf32"),
        (products, "allow_tf32"),
        (products, "allow_fp16_reduced_precision_reduction"),
        (products, "allow_bf16_reduced_precision_reduction"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ]
    return {
        "number of threads": (torch.get_num_threads, torch.set_num_threads),
        "precision of products": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        "deterministic algorithms": (
            torch.get_deterministic_debug_mode,
            torch.set_deterministic_debug_mode,
        ),
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "default device": (torch.get_default_device, _set_default_device),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "anomaly detection": (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda both: torch.set_anomaly_enabled(*both),
        ),
        **{f"autocast on {kind}": _autocast(kind) for kind in {"cpu", device.type}},
        **{f"{name} of {owner}": _attribute(owner, name) for owner, name in attributes},
        "hooks of all modules": _hooks(vars(modules)),
        "hooks of all optimisers": _hooks(vars(optimizers)),
        "numpy's errors": (np.geterr, lambda kinds: np.seterr(**kinds)),
        "environment": (lambda: dict(os.environ), _set_environment),
        "sys.path": (lambda: [*sys.path], lambda places: sys.path.__setitem__(slice(None), places)),
    }


def _value(get: Callable[[], Any]) -> Any:
    """Return a setting; the error in words where torch refuses to say."""
    try:
        return get()
    except RuntimeError as error:
        return str(error)


def _attribute(owner: Any, name: str) -> _Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(kind: str) -> _Setting:
    def put(both: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(kind, both[0])
        torch.set_autocast_dtype(kind, both[1])

    return lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)), put


def _hooks(names: Mapping[str, Any]) -> _Setting:
    """Return the hooks that a module of torch keeps for all: its dictionaries of that name."""
    kept: dict[str, dict[Any, Any]] = {
        name: hooks
        for name, hooks in names.items()
        if name.startswith("_global_") and isinstance(hooks, dict)
    }

    def put(usual: Mapping[str, dict[Any, Any]]) -> None:
        for name, hooks in kept.items():
            hooks.clear()
            hooks.update(usual[name])

    return lambda: {name: dict(hooks) for name, hooks in kept.items()}, put


def _set_default_device(device: torch.device) -> None:
    # The CPU is it without being set, and set it would cost at every call.
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_environment(usual: Mapping[str, str]) -> None:
    for name in os.environ.keys() - usual.keys():
        del os.environ[name]
    os.environ.update(usual)


def _children() -> Iterator[int]:
    """Return the processes that this one has started and that have not ended."""
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended since
            for pid in map(int, listed.read_text().split()):
                if _is_alive(pid):
                    yield pid


def _is_alive(pid: int) -> bool:
    try:
        # After the name, which may have spaces: the state (proc_pid_stat(5)).
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False
