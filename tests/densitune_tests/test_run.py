"""A run by itself, as a script sees it without a study; within one: workers_tests/scripts."""

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import densitune
from densitune import repeatable
from densitune.link import Ended, Link
from densitune.run import Run
from densitune.treatment import Treatment
from densitune.weighted_conv import WeightedConv2d

CPU = torch.device("cpu")


class Keeping(Link):
    """Keeps the last checkpoint, and ends a run at a report."""

    def __init__(
        self, rungs: tuple[int, ...] = (), end: int = 0, found: bytes | None = None
    ) -> None:
        self.rungs, self._end, self.found = rungs, end, found
        self.heard: list[Any] = []

    def report(self, epoch: int, value: float, test: float | None, learned: Any) -> bool:
        self.heard.append((epoch, value, test, learned))
        return epoch != self._end

    def wants_checkpoint(self) -> bool:
        return True

    def save(self, epoch: int, parts: Sequence[bytes]) -> None:
        self.found = b"".join(parts)

    def saved(self) -> bytes | None:
        return self.found


def run(link: Link, budget: int = 3, **arm: Any) -> Run:
    return Run.of_study(7, 0.1, budget, CPU, Treatment({3: [0.5]}, **arm), link)


def test_a_script_runs_by_itself() -> None:
    alone = densitune.Run(seed=3, lr=0.1, budget=2, device="cpu")
    model = alone.apply(nn.Conv2d(1, 1, 3))
    assert type(model) is nn.Conv2d
    assert alone.resume() is None
    for epoch in alone.epochs():
        alone.checkpoint(model.state_dict())
        alone.report(epoch, torch.tensor(epoch / 2), test=lambda: 1 / 0)
    assert alone.values == {1: 0.5, 2: 1.0}
    assert (alone.seed, alone.lr, alone.device) == (3, 0.1, CPU)
    weighted = densitune.Run(densities={3: [0.7]}).apply(nn.Conv2d(1, 1, 3))
    assert type(weighted) is WeightedConv2d


def test_a_run_that_is_cut_ends_through_what_catches_errors() -> None:
    cut, reached = run(Keeping(end=2)), []
    cut.apply(nn.Conv2d(1, 1, 3))

    def train() -> None:
        for epoch in cut.epochs():
            with suppress(Exception):
                cut.report(epoch, 0.0)
                reached.append(epoch)

    with pytest.raises(Ended):
        train()
    assert reached == [1]


@pytest.mark.parametrize("first", ["checkpoint", "report"])
@pytest.mark.parametrize("by_itself", [False, True])
def test_a_resumed_run_goes_on_after_its_checkpoint_with_the_same_random_numbers(
    first: str, by_itself: bool
) -> None:
    """by_itself: the script has a loop of its own, as trainers do."""

    def train(current: Run, until: int) -> list[float]:
        current.apply(nn.Conv2d(1, 1, 3))
        seen: list[float] = (current.resume() or {"seen": []})["seen"]
        epochs = current.epochs()
        if by_itself:
            epochs = iter(range(current.first_epoch, current.budget + 1))
        for epoch in epochs:
            if epoch > until:
                break
            seen.append(random.random() + float(np.random.rand()) + torch.rand(()).item())
            if first == "checkpoint":
                current.checkpoint({"seen": [*seen]})
            seen[-1] += random.random()  # as a validation may take some
            current.report(epoch, seen[-1])
            if first == "report":
                current.checkpoint({"seen": [*seen]})
        return seen

    if by_itself and first == "checkpoint":  # it would be of the epoch before
        with pytest.raises(RuntimeError, match=r"run\.checkpoint before run\.report"):
            train(run(Keeping(), 4), 4)
        return
    repeatable.seed(7)
    whole = train(run(Keeping(), 4), 4)
    link = Keeping()
    repeatable.seed(7)
    train(run(link, 4), 3)
    repeatable.seed(99)
    resumed = train(run(link, 4), 4)
    assert resumed[3:] == whole[3:]
    if first == "report":
        assert resumed == whole


def test_what_a_study_needs_to_hear_is_asked_for() -> None:
    link = Keeping(rungs=(1,))
    with pytest.raises(RuntimeError, match=r"run\.report before run\.apply"):
        run(link).report(1, 0.0)
    silent = run(link)
    silent.apply(nn.Conv2d(1, 1, 3))
    with pytest.raises(RuntimeError, match=r"ended without run.report\(1, value\)"):
        list(silent.epochs())
    late = run(link)
    late.apply(nn.Conv2d(1, 1, 3))
    with pytest.raises(RuntimeError, match=r"ended without run.report\(1, value\)"):
        late.report(3, 0.0)  # in a loop of its own
    assert link.heard == []
    link.wants_test = True
    tested = run(link, 1)
    tested.apply(nn.Conv2d(1, 1, 3))
    with pytest.raises(RuntimeError, match="given no test="):
        tested.report(1, 0.0)
    tested.report(1, 0.5, test=lambda: torch.tensor(0.25))
    assert link.heard == [(1, 0.5, 0.25, None)]
    with pytest.raises(RuntimeError, match=r"run\.report\(1, value\) came after that of epoch 1"):
        tested.report(1, 0.5)
    for epoch in (0, 2, "1", True):
        with pytest.raises(ValueError, match="is not one of 1 to 1"):
            tested.report(epoch, 0.0)  # type: ignore[arg-type]


def test_a_model_is_applied_to_once() -> None:
    twice, model = run(Link()), nn.Conv2d(1, 1, 3)
    assert twice.apply(model) is model
    with pytest.raises(RuntimeError, match="twice"):
        twice.apply(model)
    twice.apply(nn.Conv2d(1, 1, 3))


def test_what_several_models_have_learned_is_told() -> None:
    link = Keeping()
    learning = run(link, 1, trainable=True)
    models = [learning.apply(nn.Conv2d(1, 1, 3)) for _ in range(2)]
    learning.report(1, 0.0)
    assert link.heard[0][3] == {"3": [[0.5], [0.5]]}
    assert len(models) == 2


@pytest.mark.parametrize("kept", [Keeping(), lambda: 0])
def test_a_state_that_cannot_be_kept_is_refused_at_once(kept: Any) -> None:
    keeping = run(Keeping())
    keeping.apply(nn.Conv2d(1, 1, 3))
    for _ in keeping.epochs():
        with pytest.raises(
            TypeError, match=r"a checkpoint takes tensors.*(Keeping|lambda)"
        ) as told:
            keeping.checkpoint({"model": kept})
        assert "weights_only" not in str(told.value)  # nobody is to trust files
        break
