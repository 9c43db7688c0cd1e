"""A step's operators, recorded and done again on the same tensors: what a CUDA graph is on a GPU.

No GPU is at hand in tests, and a CPU has no capture. A tape shares with one what may go wrong: it
knows no Python, it reads and writes the very tensors of the recorded step, and whatever the host
decided then stays so.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Notes the operators that are called within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Do all of it again; results go where those of the recording lie."""
        with torch.no_grad():
            for func, args, kwargs, recorded in self.calls:
                result = func(*args, **kwargs)
                for old, new in zip(_tensors(recorded), _tensors(result), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def record(step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
    """Stand in for workers.training.capture.record.

    A capture computes nothing and a recording does, so the first replay has been done already.
    """
    tape, replays = Tape(), itertools.count()
    with tape:
        step()

    def replay() -> None:
        if next(replays):
            tape.replay()

    return replay
