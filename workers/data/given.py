"""Data of the user's own: what their function returns, as tensors of known shapes.

Nothing is cached: the function is called wherever the data are needed, under a fixed seed, and a
fingerprint tells whether it returned the same. Shapes: N items, C channels, any spatial dimensions.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimizer.errors import UsageError
from workers.seeds import drawing_by

PARTS = ("train", "validation", "test")
FUNCTIONS = ("loss", "metric")
_SEED = 20_261_128
"""Under which the function draws, if it does: the same data for every job and worker."""

Loss = Callable[[Any, Tensor], Tensor]
"""Of a network's outputs and targets (B, ...): what training minimises, a scalar."""
Metric = Callable[[Any, Tensor], Tensor | float]
"""Of a network's outputs and targets (M, ...): a number, or one for each item, shape (M,)."""


@dataclass(frozen=True, eq=False)
class Items:
    """Inputs (N, C, ...) in float32, and targets (N, ...)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.inputs)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of types, shapes and bytes."""
        sha = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
            sha.update(np.ascontiguousarray(tensor.numpy()).data)
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Given:
    """What a function of the user's returned."""

    train: Items
    validation: Items
    test: Items | None
    classes: int | None
    loss: Loss | None
    """None takes cross-entropy of classes, and the mean squared error of anything else."""
    metric: Metric | None
    """None takes the top-1 accuracy in %; there is one if there are no classes."""
    source: str
    """One sentence for people."""
    taken: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Return that of training and validation data; the test split has one of its own."""
        parts = f"{self.train.fingerprint}{self.validation.fingerprint}{self.classes}"
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def channels(self) -> int:
        """Return the channels of the inputs."""
        return self.train.inputs.shape[1]


def load(
    name: str, function: Callable[..., Any], kwargs: Any, classes: int | None, *, has_test: bool
) -> Given:
    """Call a function of the user's and return what it has; UsageError if that is no data.

    It returns a mapping: `train`, `validation` and perhaps `test`, each a pair of tensors or
    arrays, or a data set of such pairs; and perhaps the functions `loss` and `metric`.
    """
    with drawing_by(_SEED):
        try:
            returned = function(**kwargs)
        except (Exception, SystemExit) as error:  # anything may happen in there
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"data.load {name} failed: {text[:300]}") from error
    _check(name, returned, classes)
    items = {
        part: _items(f"{part} of data.load {name}", returned[part], classes)
        for part in PARTS
        if returned.get(part) is not None
    }
    if ("test" in items) != has_test:
        raise UsageError(
            f"data.test is {str(has_test).lower()}, but data.load {name} returned "
            f"{'no' if has_test else 'a'} test split; make them agree"
        )
    first = items["train"].inputs.shape[1:2]
    for part, some in items.items():
        if some.inputs.shape[1:2] != first:
            raise UsageError(
                f"{part} of data.load {name} has {some.inputs.shape[1]} channels, train {first[0]}"
            )
    counts = " and ".join(f"{len(some):,} {part}" for part, some in items.items())
    return Given(
        items["train"],
        items["validation"],
        items.get("test"),
        classes,
        returned.get("loss"),
        returned.get("metric"),
        source=f"{name}: {counts} items of {tuple(items['train'].inputs.shape[1:])}",
    )


def _check(name: str, returned: Any, classes: int | None) -> None:
    """Check that all is there that is needed, and nothing that nobody knows; UsageError."""
    if not isinstance(returned, Mapping):
        raise UsageError(
            f"data.load {name} returned a {type(returned).__name__}; it has to return a mapping "
            f"with train, validation and, if there are, test, loss and metric"
        )
    unknown = sorted(set(map(str, returned)) - {*PARTS, *FUNCTIONS})
    missing = [part for part in PARTS[:2] if returned.get(part) is None]
    if unknown or missing:
        fault = f"has {unknown[0]}" if unknown else f"lacks {missing[0]}"
        raise UsageError(
            f"what data.load {name} returned {fault}; there may be {', '.join(PARTS + FUNCTIONS)}"
        )
    for what in FUNCTIONS:
        if returned.get(what) is not None and not callable(returned[what]):
            raise UsageError(f"{what} of data.load {name} is no function")
    if classes is None and (returned.get("metric") is None or returned.get("loss") is None):
        raise UsageError(
            f"data.load {name} has to return loss and metric, or data.classes has to say how many "
            f"classes the targets have"
        )


def _items(what: str, part: Any, classes: int | None) -> Items:
    """Return a pair of tensors or arrays, or a data set of pairs, as items; UsageError if not."""
    try:
        if isinstance(part, tuple | list) and len(part) == 2:
            inputs, targets = (_tensor(each) for each in part)
        else:
            inputs, targets = (torch.stack(each) for each in zip(*_pairs(part), strict=True))
    except Exception as error:  # whatever is no tensor, or a data set raises
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"{what} is neither a pair of tensors nor a data set of pairs: {text[:300]}"
        ) from error
    if not inputs.is_floating_point() or not 3 <= inputs.dim() <= 5:
        raise UsageError(
            f"inputs of {what} are {inputs.dtype} {tuple(inputs.shape)}; they have to be floating "
            f"point numbers, normalised, of shape (N, C, ...) with 1 to 3 spatial dimensions"
        )
    if len(inputs) != len(targets) or not len(inputs):
        raise UsageError(f"{what} has {len(inputs)} inputs and {len(targets)} targets")
    inputs = inputs.float()
    if not inputs.isfinite().all():
        raise UsageError(f"inputs of {what} are not all finite")
    if classes is not None:
        if targets.is_floating_point() or targets.dim() != 1:
            raise UsageError(
                f"targets of {what} are {targets.dtype} {tuple(targets.shape)}; classes are whole "
                f"numbers of shape (N,)"
            )
        if targets.min() < 0 or targets.max() >= classes:
            raise UsageError(f"targets of {what} are not all from 0 to {classes - 1}")
        targets = targets.long()
    if targets.is_floating_point():
        targets = targets.float()
        if not targets.isfinite().all():
            raise UsageError(f"targets of {what} are not all finite")
    return Items(inputs.contiguous(), targets.contiguous())


def _pairs(part: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs of a map-style data set in their order."""
    for number in range(len(part)):
        item, target = part[number]
        yield _tensor(item), _tensor(target)


def _tensor(given: Any) -> Tensor:
    """Return a dense tensor of real numbers on the CPU, of its own memory; TypeError if not."""
    tensor = torch.tensor(given.copy()) if isinstance(given, np.ndarray) else torch.as_tensor(given)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
        raise TypeError(f"{tensor.dtype}, {tensor.layout}, is no dense tensor of real numbers")
    unsigned = tensor.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return tensor.detach().cpu().to(torch.int64 if unsigned else tensor.dtype, copy=True)
