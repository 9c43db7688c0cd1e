"""Planted truths: what trains in place of a density has its start or its steps, and no shape."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import false_positives
import planted
import pytest
import torch
from planted import CASES, Planted

from densitune import density
from densitune.density import Densities
from optimizer import arms
from optimizer.arms import Arm
from workers import preparation
from workers.training.member import Member
from workers.training.recipe import Job
from workers.training.slots import Slots

CPU = torch.device("cpu")
DEN: Densities = {3: (0.4,)}


@pytest.fixture(scope="module")
def bench() -> tuple[Any, Any]:
    given = false_positives.configured(0, data={"patch": 16, "patches_per_image": 4, "crop": 32})
    bank = false_positives.prepare(given)
    return preparation.task(given, bank, CPU), preparation.recipe(given, bank, "full")


def kernels(member: Member) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By layer: weights, and what multiplies them."""
    return {
        name: (module.weight.detach(), getattr(module, "phi", torch.ones(())))
        for name, module in member._slot.network.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)
    }


@pytest.mark.parametrize("name", CASES)
def test_a_density_starts_at_its_scale_and_has_no_shape(
    bench: tuple[Any, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planted, "case", CASES[name], raising=False)
    job = Job(Arm(DEN, floored=True), seed=3, budget=1)
    found = kernels(Planted(Slots(*bench, CPU), job))
    plain = kernels(Member(Slots(*bench, CPU), replace(job, arm=arms.identity(DEN, None))))
    factor = density.rms(DEN[3])
    for layer, (weight, phi) in found.items():
        assert phi.unique().numel() == 1
        torch.testing.assert_close(weight * phi, plain[layer][0] * factor)
        assert weight.equal(plain[layer][0]) == (name == "steps")


def test_all_but_densities_train_what_they_are() -> None:
    others: Mapping[str, Arm] = {
        "identity": arms.identity(DEN, 0.1),
        "scale control": arms.scale_control(DEN, 0.1),
        "uniform mask": arms.uniform(DEN, 0.1),
    }
    assert not any(map(planted.is_density, others.values()))
    assert planted.is_density(Arm(DEN, 0.1))
    for case in CASES.values():
        asked = Arm(DEN, 0.1, split="both", per_image=True, floored=True)
        truth = case.truth(asked)
        assert (truth.lr, truth.split, truth.per_image, truth.floored) == (0.1, "both", True, True)
        assert not planted.is_density(truth)
