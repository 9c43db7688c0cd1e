"""Slots: whatever was trained in one before, a job gives the bits of a fresh one.

Captured steps are stood in for by a tape (support.tape): no GPU was at hand.
"""

import io
from typing import Any

import numpy as np
import pytest
import torch
from helpers.device_plan import Judged
from support import tape
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from optimizer.arms import Arm, Precision
from workers.data.bank import Bank
from workers.networks import proxies
from workers.networks.proxies import Proxy
from workers.training import capture, starts
from workers.training.loop import train
from workers.training.member import Member
from workers.training.recipe import Job, Recipe
from workers.training.slots import Slot, Slots
from workers.training.tasks import Classification, Denoising

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
PROXIES = {
    "vgg": Proxy("vgg", 4, 3, (3, 5), 1, 2),
    "resnet": Proxy("resnet", 4, 8, (3,), 1, 2),
    "dncnn": Proxy("dncnn", 4, 3, (3,), 1, None),
    "nafnet": Proxy("nafnet", 4, 3, (5,), 1, None),
}
every_family = pytest.mark.parametrize("family", PROXIES)
precisions = pytest.mark.parametrize("precision", ["full", "bfloat16"])


def task_of(family: str) -> Judged:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (52, 1, 16, 16), dtype=np.uint8)
    labels = rng.integers(0, 2, 52)
    if family in ("dncnn", "nafnet"):
        bank = Bank(images[:40], images[40:], fingerprint="", source="random")
        return Judged(Denoising(bank, CPU, sigma=50))
    return Judged(Classification(Bank(
        images[:40], images[40:], labels[:40], labels[40:], 2, fingerprint="", source="random"
    ), CPU))  # fmt: skip


def recipe(family: str, precision: Precision = "full") -> Recipe:
    return Recipe(PROXIES[family], "library", 8, 0.02, (1, 2), precision)


def arm(family: str, value: float, **others: Any) -> Arm:
    dens = {3: (value,), 5: (0.5 * value, value)}
    return Arm({size: dens[size] for size in PROXIES[family].kernel_sizes}, **others)


def taped(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> Slots:
    """Have the steps of slots recorded after the first ones, and replayed."""
    slots._lanes.captured = True
    monkeypatch.setattr(capture, "record", tape.record)
    return slots


def trained(slots: Slots, *jobs: Job, **others: Any) -> list[Any]:
    """Train jobs; return what they measured and the bits of what was judged."""
    found: list[Any] = []
    task = slots.task
    assert isinstance(task, Judged)
    task.networks.clear()
    train(
        slots,
        jobs,
        on_rung=lambda number, m: found.append((number, m.rung, m.score, m.ending)),
        on_failure=lambda number, error: found.append((number, str(error))),
        **others,
    )
    return [*found, *task.networks]


def fresh(family: str, precision: Precision, *jobs: Job) -> list[Any]:
    """What jobs come to in slots that nobody has used, every step issued by Python."""
    return trained(Slots(task_of(family), recipe(family, precision), CPU, captured=False), *jobs)


def spoil(slot: Slot) -> None:
    """Leave nothing in a slot as it was, but for the sizes of things."""
    values = list(slot.network.state_dict().values())
    for tuner in slot._tuners:
        values += [
            tuner.rates,
            *(v for own in tuner.optimizer.state.values() for v in own.values()),
        ]
    for value in values:
        value.fill_(float("nan") if value.is_floating_point() else 77)
    slot._orders.fill_(1)
    slot._count.fill_(5)
    torch.rand(3, generator=slot._draws.noise)


@every_family
@precisions
@pytest.mark.parametrize("trainable", [False, True])
def test_a_job_in_a_used_slot_gives_the_bits_of_a_fresh_one(
    family: str, precision: Precision, trainable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Job(arm(family, 0.6, trainable=trainable), 4, 3)
    second = Job(arm(family, 1.3, trainable=trainable, lr=0.005), 9, 3)
    slots = taped(Slots(task_of(family), recipe(family, precision), CPU), monkeypatch)
    assert trained(slots, first) == fresh(family, precision, first)
    [slot] = slots._free
    spoil(slot)
    assert trained(slots, second) == fresh(family, precision, second)
    assert slots._free == [slot]


@every_family
def test_what_diverged_leaves_nothing_in_its_slot(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing, sound = Job(arm(family, 1e30), 0, 3), Job(arm(family, 0.7), 0, 3)
    slots = taped(Slots(task_of(family), recipe(family), CPU), monkeypatch)
    [(_, message), *_] = trained(slots, overflowing)
    assert "diverged" in message
    assert trained(slots, sound) == fresh(family, "full", sound)


@pytest.mark.parametrize("different", [
    {"init": "compensated"}, {"gain": {3: 0.5, 5: 0.25}}, {"lr": 0.1}, {"trainable": True},
    {"mask": "uniform"}, {"mask": "ones", "start": "times_phi"}, {"start": "over_phi"},
])  # fmt: skip
def test_arms_of_every_kind_take_turns_in_slots(
    different: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = taped(Slots(task_of("vgg"), recipe("vgg"), CPU), monkeypatch)
    plain, other = Job(arm("vgg", 0.6), 4, 2), Job(arm("vgg", 0.9, **different), 4, 2)
    for job in (plain, other, plain, other):
        assert trained(slots, job) == fresh("vgg", "full", job)


@every_family
def test_a_job_goes_on_in_a_slot_that_another_has_used(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(arm(family, 0.6, trainable=True), 4, 3)
    member = Member(Slots(task_of(family), recipe(family), CPU), job)
    for _ in range(7):
        member.step()
    saved = io.BytesIO()
    torch.save(member.state(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    # As the first checkpoints have it: the order of an epoch and its generator, which are of no
    # use any more.
    state["order"] = torch.zeros(5, 8, dtype=torch.int64)
    state["generators"]["order"] = torch.Generator().get_state()
    slots = taped(Slots(task_of(family), recipe(family), CPU), monkeypatch)
    trained(slots, Job(arm(family, 0.9, trainable=True), 5, 3))
    rest = trained(slots, job, restore={0: state}.get)
    undisturbed = fresh(family, "full", job)  # three measurements, and the bits of each
    assert rest == undisturbed[1:3] + undisturbed[4:]


def test_there_are_no_more_slots_than_were_in_use_at_once() -> None:
    slots = Slots(task_of("dncnn"), recipe("dncnn"), CPU)
    searched, confirmed = Job(arm("dncnn", 0.6), 0, 2), Job(arm("dncnn", 0.6), 0, 3)
    taken = [slots.take(job) for job in (searched, searched, confirmed)]
    for slot in taken:
        slots.give(slot)
    assert slots.take(confirmed) is taken[2]
    assert slots.take(searched) is taken[0]
    another = slots.take(confirmed)  # the last free one, of another shape, goes for it
    assert another not in taken
    assert slots._free == []
    slots.give(another)
    slots.clear()
    assert slots._free == []


def test_densities_share_the_weights_and_orders_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = proxies.build

    def counted(*args: Any, **kwargs: Any) -> nn.Module:
        built.append(kwargs["seed"])
        return build(*args, **kwargs)

    monkeypatch.setattr(proxies, "build", counted)
    slots = Slots(task_of("vgg"), recipe("vgg"), CPU)
    jobs = [Job(arm("vgg", value), seed, 2) for seed in (0, 1) for value in (0.4, 0.6, 0.8)]
    trained(slots, *jobs)
    assert built == [0, 1]


def test_what_is_not_kept_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(arm("vgg", 0.6), seed, 2) for seed in (0, 1, 0)]
    expected = fresh("vgg", "full", *jobs)
    monkeypatch.setattr(starts, "MOST_BYTES", 100)
    slots = Slots(task_of("vgg"), recipe("vgg"), CPU)
    assert trained(slots, *jobs) == expected
    assert len(slots._starts._kept) == 1  # what was asked for last, however large


# How much a GPU is asked to do


class Launches(TorchDispatchMode):
    """Counts operators that start kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


STEPS = {"vgg": 90, "resnet": 165, "dncnn": 66, "nafnet": 360}
"""Operators of a step at most. Each costs a GPU some microseconds, whatever it computes."""
BESIDE = 70
"""Operators of a measurement beside the network's own, for one batch of images."""


@every_family
def test_a_step_and_a_measurement_stay_within_their_launches(family: str) -> None:
    slots = Slots(task_of(family).inner, recipe(family, "bfloat16"), CPU)
    member = Member(slots, Job(arm(family, 0.6), 0, 2))
    for _ in range(4):
        member.step()
    with Launches() as step:
        member.step()
    with Launches() as measurement:
        member.measure()
    with Launches() as forward, torch.inference_mode():
        member._slot.network.eval()(torch.zeros(1, 1, 16, 16))
    assert step.count <= STEPS[family]
    assert measurement.count - forward.count <= BESIDE
