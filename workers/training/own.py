"""A task of the user's own: their items, loss and metric; nothing is drawn and nothing is changed.

Shapes: N items, B of a batch, M to judge on.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optimizer.errors import UsageError
from workers.data.given import Given, Items
from workers.networks.named import first_of
from workers.training import scores
from workers.training.scores import Judge, Score
from workers.training.tasks import Draws

AT_ONCE = 256
"""Items that are judged at once: always as many, so that results keep their bits."""


class Untrained(nn.Module):
    """Stands for what needs no network: it scores the floor."""


class Own:
    """Items of the user's own on a device, judged by their metric, or as classes."""

    def __init__(self, given: Given, device: torch.device, *, sign: float, floor: float) -> None:
        """Take `sign` -1 for a metric whose smaller values are better, and the floor as shown."""
        self._given, self._sign, self._floor = given, sign, floor
        self._train = _on(given.train, device)
        self._validation = _on(given.validation, device)
        self._device = device
        self._test: Judge | None = None

    def __len__(self) -> int:
        """Return the number of items that are trained on."""
        return len(self._train)

    def batch(self, chosen: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the chosen items as they were given."""
        chosen = chosen.to(self._device)
        return self._train.inputs[chosen], self._train.targets[chosen]

    def check(self, outputs: Any, targets: Any, network: str) -> None:
        """Raise UsageError if classes are wanted and these are no logits (B, classes)."""
        if self._given.loss is None:
            wanted = len(targets), self._given.classes
            shape = tuple(getattr(first_of(outputs), "shape", ()))
            if shape != wanted:
                raise UsageError(
                    f"proxy {network} returns {shape}, and logits of shape {wanted} are wanted; "
                    f"return a loss of your own from data.load, or give another network"
                )

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the user's loss, or the mean cross-entropy of logits (B, classes)."""
        if self._given.loss is None:
            return F.cross_entropy(first_of(outputs), targets)
        return self._given.loss(outputs, targets)

    def evaluate(self, network: nn.Module) -> Score:
        """Return the metric on the validation items."""
        return self._judged(network, self._validation)

    def judge_few(self, network: nn.Module, count: int) -> Score:
        """Return the metric on the first validation items."""
        items = self._validation
        return self._judged(network, Items(items.inputs[:count], items.targets[:count]))

    def test(self) -> Judge:
        """Return what judges on the test split; UsageError if there is none here."""
        if self._given.test is None:
            raise UsageError(f"the data here ({self._given.source}) have no test split")
        if self._test is None:
            items, fingerprint = _on(self._given.test, self._device), self._given.test.fingerprint

            def judge(network: nn.Module) -> Score:
                score = self._judged(network, items)
                return replace(score, extra={**score.extra, "test": fingerprint})

            self._test = judge
        return self._test

    def untrained(self) -> nn.Module:
        """Return what scores the floor."""
        return Untrained()

    def floor(self) -> float:
        """Return what needs no network."""
        return self._sign * self._floor

    def _judged(self, network: nn.Module, items: Items) -> Score:
        if isinstance(network, Untrained):
            return Score(self.floor(), {})
        if self._given.metric is None:
            return scores.classified(
                lambda some: first_of(network(some)), items.inputs, items.targets, AT_ONCE
            )
        outputs = _joined([network(some) for some in items.inputs.split(AT_ONCE)])
        return self._scored(self._given.metric(outputs, items.targets), len(items))

    def _scored(self, value: Tensor | float, count: int) -> Score:
        """Return the score that a metric comes to: its mean, and each item's if there are those."""
        told = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        if told.dim() and told.shape != (count,):
            raise UsageError(
                f"the metric of {self._given.source} returned shape {tuple(told.shape)}; it has to "
                f"be a number, or one for each of the {count} items"
            )
        told = self._sign * told
        mean = told.mean().item()
        if mean > scores.MOST:
            raise UsageError(
                f"the metric of {self._given.source} returned {mean:g}; it lies between -1,000,000 "
                f"and 1,000,000: return it in another unit"
            )
        if mean < -scores.MOST:  # worse than any that is kept
            mean = -math.inf
        each = told.dim() and told.abs().max() <= scores.MOST
        return Score(mean, {}, tuple(told.tolist()) if each else ())


def _on(items: Items, device: torch.device) -> Items:
    return Items(items.inputs.to(device), items.targets.to(device))


def _joined(outputs: list[Any]) -> Any:
    """Return what a network returned for some items after others as if for all at once."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if isinstance(first, Mapping):
        return {name: _joined([each[name] for each in outputs]) for name in first}
    if isinstance(first, tuple | list):
        return tuple(_joined(list(each)) for each in zip(*outputs, strict=True))
    raise UsageError(f"a network that returns a {type(first).__name__} cannot be judged")
