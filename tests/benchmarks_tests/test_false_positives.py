"""The A/A benchmark: what its arms share, what is their own, and a study of it from end to end."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import false_positives
import pytest
import torch
from sqlalchemy import Engine
from support.synthetic import decided

from densitune.weighted_conv import WeightedConv2d
from optimizer.arms import Arm
from workers import preparation
from workers.training import loop
from workers.training.member import Member
from workers.training.recipe import Job
from workers.training.slots import Slots

CPU = torch.device("cpu")
SMALL = {"patch": 16, "patches_per_image": 4, "crop": 32}
ARMS = {
    "identity": Job(Arm({3: (1.0,)}), seed=1, budget=1),
    "a density": Job(Arm({3: (0.5,)}), seed=1, budget=1),
    "another": Job(Arm({3: (0.7,)}), seed=1, budget=1),
    "its control": Job(Arm({3: (1.0,)}, gain={3: 0.66}), seed=1, budget=1),
    "compensated": Job(Arm({3: (0.5,)}, init="compensated"), seed=1, budget=1),
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench() -> tuple[Any, Any]:
    given = false_positives.configured(0, data=SMALL)
    bank = false_positives.prepare(given)
    return preparation.task(given, bank, CPU), preparation.recipe(given, bank, "full")


def weights(member: Member) -> torch.Tensor:
    """What the network's layers compute with, as one vector."""
    plain = [
        module.weight * module.phi if isinstance(module, WeightedConv2d) else module.weight
        for module in member._slot.network.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    return torch.cat([weight.flatten() for weight in plain])


def trained(
    job: Job, bench: tuple[Any, Any], kind: type[Member] = false_positives.Blind
) -> torch.Tensor:
    member = kind(Slots(*bench, CPU), job)
    member.step()
    member.step()
    return weights(member)


def test_every_arm_starts_as_identity_does(bench: tuple[Any, Any]) -> None:
    plain = weights(Member(Slots(*bench, CPU), ARMS["identity"]))
    for job in ARMS.values():
        assert torch.equal(weights(false_positives.Blind(Slots(*bench, CPU), job)), plain)
    reseeded = replace(ARMS["identity"], seed=2)
    other = weights(false_positives.Blind(Slots(*bench, CPU), reseeded))
    assert not torch.equal(other, plain)


def test_arms_of_different_names_draw_differently_and_equal_ones_alike(
    bench: tuple[Any, Any],
) -> None:
    ended = {name: trained(job, bench) for name, job in ARMS.items()}
    for name, one in ended.items():
        for other_name, other in ended.items():
            assert torch.equal(one, other) == (name == other_name)
        assert torch.equal(one, trained(ARMS[name], bench))


def test_arms_differ_in_their_draws_alone(
    bench: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(false_positives, "name_of", lambda job: "the same")
    ended = [trained(job, bench) for job in ARMS.values()]
    assert all(torch.equal(one, ended[0]) for one in ended)


def test_a_study_of_blind_arms_ends_with_verdicts(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Member", false_positives.Blind)
    given = false_positives.configured(
        3,
        data=SMALL,
        training={"budget": 1, "batch_size": 16, "lr": 0.003},
        search={"trials": 5, "seeds": 2},
        confirm={"finalists": 2, "seeds": 2, "batch": 2},
    )
    found = false_positives.run(database, given, false_positives.prepare(given))
    assert found.study.phase == "decided"
    assert len(found.verdicts) == 2
    # The same initial weights and yet no two arms alike.
    by_arm: dict[int, list[float]] = {}
    for row in found.confirm.rows:
        by_arm.setdefault(row.trial, []).append(row.value)
    assert len(by_arm) == 1 + 2  # two seeds beat nothing, so that no control is trained
    assert len({tuple(values) for values in by_arm.values()}) == len(by_arm)


def test_a_table_counts_what_is_better() -> None:
    verdicts = decided().verdicts
    found = false_positives.Found(
        number=1, verdicts=verdicts, jobs=3, seconds_per_job=0.1, seconds=1.0
    )
    assert found.better == 1
    assert len(found.comparisons) == 6
    assert "better, scale_only" in false_positives.row(found, "dB")
    held = [c.low <= 0 <= c.high for c in found.comparisons]
    assert false_positives.covered([found]) == sum(held) / 6
