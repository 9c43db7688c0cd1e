"""Networks by name in training: a job alone, in a pack and resumed; and what is refused before."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.named import network

from optimizer.arms import Arm
from optimizer.errors import UsageError
from workers.data.bank import Bank
from workers.networks.named import Network
from workers.training import dry_run
from workers.training.loop import StoppedError, train
from workers.training.member import Member, State
from workers.training.recipe import Job, Measurement, Recipe
from workers.training.slots import Slots
from workers.training.tasks import Classification, Denoising, Tried

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
IDENTITY, OTHER = Arm({3: (1.0,)}), Arm({3: (0.4,)})
UNIFORM = Arm({3: (0.4,)}, mask="uniform")
LEARNING = Arm({3: (1.0,)}, trainable=True)


DENOISER = network("denoiser", '{"depthwise": true}', classes=None, kind="regressor")
NETWORKS = {
    "dropout": network("classifier"),
    "several": network("several", '{"form": "dict"}'),
    "denoiser": DENOISER,
    "timm": network(
        "timm:resnet10t",
        '{"stem_width": 8, "channels": [8, 8, 8, 8], "drop_path_rate": 0.5, "drop_rate": 0.2}',
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def task_for(given: Network, count: int = 32) -> Tried:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count + 8, given.channels, 16, 16), dtype=np.uint8)
    if given.classes is None:
        return Denoising(
            Bank(images[:count], images[count:], fingerprint="", source="noise"), CPU, sigma=50
        )
    labels = np.arange(count + 8) % given.classes
    bank = Bank(
        images[:count], images[count:], labels[:count], labels[count:], given.classes,
        fingerprint="", source="noise",
    )  # fmt: skip
    return Classification(bank, CPU)


def recipe(given: Network, **changes: Any) -> Recipe:
    usual = Recipe(given, "model", batch_size=8, lr=0.01, rungs=(1,), precision="full")
    return replace(usual, **changes)


Told = list[tuple[int, int, float, dict[str, Any]]]


def run(given: Network, jobs: Sequence[Job], slots: Slots | None = None, **others: Any) -> Told:
    told: Told = []

    def note(number: int, made: Measurement) -> None:
        told.append((number, made.rung, made.score.value, made.score.extra))

    def fail(number: int, error: Exception) -> None:
        raise error

    slots = slots or Slots(task_for(given), recipe(given), CPU)
    train(slots, jobs, on_rung=note, on_failure=fail, **others)
    return told


def of(told: Told, number: int) -> list[tuple[int, float, dict[str, Any]]]:
    return [measured for found, *measured in told if found == number]  # type: ignore[misc]


@every_network
def test_a_job_has_the_same_bits_alone_in_a_pack_and_in_a_slot_that_was_used(name: str) -> None:
    given = NETWORKS[name]
    jobs = [Job(arm, 0, 2) for arm in (IDENTITY, OTHER, UNIFORM, LEARNING)] + [Job(OTHER, 1, 2)]
    torch.manual_seed(0)
    pack = run(given, jobs)
    torch.rand(5)
    slots = Slots(task_for(given), recipe(given), CPU)
    for number, job in enumerate(jobs):
        alone = run(given, [job], slots)
        assert of(alone, 0) == of(pack, number)
    assert len({str(of(pack, number)) for number in range(len(jobs))}) == len(jobs)


@every_network
def test_a_job_goes_on_from_its_state_as_if_nothing_had_happened(name: str) -> None:
    given, job = NETWORKS[name], Job(OTHER, 5, 3)
    expected = run(given, [job])
    saved: dict[int, State] = {}

    def keep(number: int, state: State) -> None:
        saved[number] = torch.load(_stored(state), weights_only=True)

    rounds = iter([False] * 6 + [True])
    with pytest.raises(StoppedError):
        run(given, [job], stopping=lambda: next(rounds), save=keep)
    torch.manual_seed(77)
    rest = run(given, [job], restore=saved.get)
    assert rest == expected[1:]


def _stored(state: State) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_dropout_draws_by_the_seed_alone_and_not_from_what_all_share() -> None:
    given = NETWORKS["dropout"]
    slots = Slots(task_for(given), recipe(given), CPU)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = []
    for arm, seed in ((IDENTITY, 0), (OTHER, 0), (OTHER, 1)):
        member = Member(slots, Job(arm, seed, 1))
        for _ in range(3):
            member.step()
        drawn.append(member.state()["generators"]["network"])
        member.leave()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_bfloat16_trains_what_has_several_outputs() -> None:
    given = network("several", '{"form": "tuple"}')
    slots = Slots(task_for(given), recipe(given, precision="bfloat16"), CPU)
    assert run(given, [Job(IDENTITY, 0, 1)], slots)[0][2] >= 0


# What is tried before anything is written


@every_network
@pytest.mark.parametrize("init", ["model", "library", "compensated"])
def test_what_can_be_trained_is_told_with_its_layers(name: str, init: str) -> None:
    given = NETWORKS[name]
    before = torch.get_rng_state()
    [first, *_] = dry_run.check(task_for(given), recipe(given, init=init))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.startswith(f"{given.name} ")
    assert "weighted layers: " in first


def test_what_is_left_as_it_is_is_told() -> None:
    given = replace(DENOISER, kwargs='{"transposed": true}')
    [_, second] = dry_run.check(task_for(given), recipe(given))
    assert second == "left as they are: 1 that cannot be weighted (2: ConvTranspose2d)"


def test_what_no_gpu_can_capture_is_told() -> None:
    given = network("faulty", '{"fault": "asking"}')
    [_, second] = dry_run.check(task_for(given), recipe(given))
    assert second.startswith("in training it asks for the value of a tensor (item): it trains on a")


FAULTS = [
    ("counting", "two passes with the same seed have the losses"),
    ("late", "passes changes in training to 2; what a network keeps beside"),
    ("numpy", "two passes with the same seed have the losses"),
    ("chance in judging", "judged twice on the same it scores"),
    ("raising", "does not take inputs of shape (2, 1, 16, 16): KeyError: 'no such thing'"),
    ("detached", "cannot be trained: RuntimeError: element 0 of tensors does not require grad"),
    ("text", "returns a str, and logits of shape (2, 4) are wanted"),
    ("nan", "its loss is nan before the first step"),
    ("half detached", "stem is without a gradient, so that a density has no effect there"),
    ("bypass", "stem is not called, so that a density has no effect there; leave out what is not"),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_what_could_not_be_trained_again_is_refused_in_one_line(fault: str, expected: str) -> None:
    given = network("faulty", f'{{"fault": "{fault}"}}')
    with pytest.raises(UsageError) as refusal:
        dry_run.check(task_for(given), recipe(given))
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


UNFIT = [
    (network("classifier", '{"side": 32}'), "does not take inputs of shape (2, 1, 16, 16)"),
    (network("classifier", kernel_sizes=(5,)), "no convolution has kernel size 5; sizes in this"),
    (network("classifier", layers=("body*",)), "layers 'body*' fits no convolution; their names"),
    (replace(DENOISER, classes=4), "returns (2, 1, 16, 16), and logits of shape (2, 4) are wanted"),
    (network("torchvision:resnet18"), "does not take inputs of shape (2, 1, 16, 16)"),
]


@pytest.mark.parametrize(("given", "expected"), UNFIT, ids=[line for _, line in UNFIT])
def test_what_does_not_fit_the_data_is_refused_in_one_line(given: Network, expected: str) -> None:
    with pytest.raises(UsageError) as refusal:
        dry_run.check(task_for(given), recipe(given))
    assert expected in str(refusal.value)


def test_a_batch_of_one_that_batch_norm_cannot_take_is_refused() -> None:
    given = network("timm:resnet10t", '{"stem_width": 8, "channels": [8, 8, 8, 8]}')
    dry_run.check(task_for(given), recipe(given))
    with pytest.raises(UsageError, match="Expected more than 1 value per channel"):
        dry_run.check(task_for(given), recipe(given, batch_size=1))
