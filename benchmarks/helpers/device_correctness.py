"""Whether a device computes what it should: the sections of device_check.py that may be wrong.

A section takes a plan and returns its figures as JSON; "wrong" lists what is not as it must be.
"""

import copy
import io
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from densitune.weighted_conv import WeightedConv2d
from helpers.cases import Case
from helpers.device_plan import PRECISIONS, Figures, Plan, job_of, outcome, seconds_of, slots_of
from workers.networks.denoisers import LayerNorm2d
from workers.training import capture, packing
from workers.training.member import Member
from workers.training.slots import suit


def captured(plan: Plan) -> Figures:
    """Captured steps give the bits of those that Python issues, in used slots as well."""
    wrong = []
    kinds = list(itertools.product(plan.families, PRECISIONS, (False, True)))
    for family, precision, trainable in kinds:
        case = plan.case(family, images=512, epochs=2)
        jobs = [
            job_of(case, value, seed, trainable=trainable) for value, seed in ((0.6, 4), (1.2, 9))
        ]
        eager = [outcome(slots_of(plan, case, precision, captured=False), job) for job in jobs]
        slots = slots_of(plan, case, precision)
        if [outcome(slots, job) for job in jobs] != eager:
            wrong.append(f"{family}, {precision}{', trainable' if trainable else ''}")
    return {"kinds": len(kinds), "wrong": wrong}


def packs(plan: Plan) -> Figures:
    """A member of a pack gives the bits of the job alone, whoever is cut, diverges or joins."""
    wrong, members = [], 0
    for family in plan.families:
        case = plan.case(family, images=512, epochs=3)
        jobs = [
            job_of(case, 0.6, bars={1: -math.inf}),
            job_of(case, 0.9, bars={1: math.inf}),
            job_of(case, 1e30),
            job_of(case, 1.4, seed=3),
        ]
        late = job_of(case, 0.7, seed=7)
        joining = iter([[], [], [late]])
        together = outcome(slots_of(plan, case), *jobs, refill=partial(next, joining, []))
        for number, job in enumerate([*jobs, late]):
            members += 1
            if together[number] != outcome(slots_of(plan, case), job)[0]:
                wrong.append(f"{family}, member {number}")
    tiny = Case("dncnn", 3, images=32, epochs=2, held=16, tiny=True)
    crowd = [job_of(tiny, 0.5, seed) for seed in range(8 if plan.quick else 40)]
    together, alone = outcome(slots_of(plan, tiny), *crowd), slots_of(plan, tiny)
    for number, job in enumerate(crowd):
        members += 1
        if together[number] != outcome(alone, job)[0]:
            wrong.append(f"one of {len(crowd)} tiny members, {number}")
    return {"members": members, "wrong": wrong}


def resume(plan: Plan) -> Figures:
    """A job goes on from a checkpoint, in a slot that another has used, with the same bits."""
    wrong = []
    for family in plan.families:
        case = plan.case(family, images=512, epochs=3)
        job = job_of(case, 0.6, seed=4)
        expected = outcome(slots_of(plan, case), job)[0]
        member = Member(slots_of(plan, case), job)
        for _ in range(5):
            member.step()
        saved = io.BytesIO()
        torch.save(member.state(), saved)
        saved.seek(0)
        state = torch.load(saved, map_location="cpu", weights_only=True)
        slots = slots_of(plan, case)
        outcome(slots, job_of(case, 0.9))
        found = outcome(slots, job, restore={0: state}.get)[0]
        if found != expected[len(expected) - len(found) :]:
            wrong.append(family)
    return {"families": len(plan.families), "wrong": wrong}


def memory(plan: Plan) -> Figures:
    """A pack that does not fit says so, and a smaller one trains in the same process afterwards."""
    case = plan.case("vgg")
    slots = slots_of(plan, case)
    if plan.on_gpu:
        total = torch.cuda.get_device_properties(plan.device).total_memory
        # The current device, which is the plan's: one without a number is refused here.
        torch.cuda.set_per_process_memory_fraction(3 * 2**30 / total, torch.cuda.current_device())
    sizes: list[int] = []

    def rate(size: int) -> float:
        sizes.append(size)
        if not plan.on_gpu and size > 2:  # a CPU's memory is not to be filled
            torch.empty(2**60)
        packing.step_rate(slots, size)
        return float(size)

    found = packing.calibrate(rate, largest=256)
    slots.clear()
    packing.release_memory(plan.device)
    packing.step_rate(slots, 1)
    wrong = [] if found.full and found.error is None else ["memory was never full, or spoiled"]
    return {"fits": found.size, "does not": found.full, "wrong": wrong}


def operator(plan: Plan) -> Figures:
    """A weighted convolution against float64, and what it costs where steps are captured.

    And the layers that have other forms on a GPU than torch's, as a slot has them.
    """
    figures: Figures = _replaced(plan)
    cudnn = torch.backends.cudnn
    for tf32 in (False, True):
        cudnn.allow_tf32 = tf32
        figures[f"error, TF32 {'on' if tf32 else 'off'}"] = max(
            map(partial(_error, plan), (3, 5, 7))
        )
    cudnn.allow_tf32 = False
    for k in (3, 5, 7)[: 1 if plan.quick else None]:
        figures[f"captured overhead k={k}"] = round(_overhead(plan, k), 4)
    limits = {"error, TF32 off": 1e-5, "layer normalisation, error": 1e-4, "7 x 7, error": 2e-2}
    wrong = [f"{name}: {figures[name]:.1g}" for name in limits if not figures[name] < limits[name]]
    return figures | {"wrong": wrong}


def _replaced(plan: Plan) -> Figures:
    """Return the largest errors of outputs and gradients in float32 and in bfloat16."""
    norm, conv = LayerNorm2d(64), nn.Conv2d(64, 128, 7, padding=3, bias=False)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weights in (*norm.parameters(), *conv.parameters()):
            weights.normal_(std=0.05, generator=draw)
    images = torch.randn(32, 64, 8, 8, generator=draw)
    layers, errors = nn.ModuleList([norm, conv]), []
    exact = copy.deepcopy(layers).double()
    suit(layers.to(memory_format=torch.channels_last).to(plan.device), plan.device)
    for layer, reference, low in zip(layers, exact, (False, True), strict=True):
        inputs = images.to(plan.device, memory_format=torch.channels_last).requires_grad_()
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=low):
            output = layer(inputs)
        output.float().square().sum().backward()
        doubles = images.double().requires_grad_()
        expected = reference(doubles)
        expected.square().sum().backward()
        found = [output, inputs.grad, *(weights.grad for weights in layer.parameters())]
        right = [expected, doubles.grad, *(weights.grad for weights in reference.parameters())]
        errors.append(max(map(_off, found, right)))
    return {
        "layer normalisation": getattr(norm.normalise, "__module__", ""),
        "layer normalisation, error": errors[0],
        "7 x 7, error": errors[1],
    }


def _off(found: Any, exact: Any) -> float:
    """Return the largest error as a share of the largest entry."""
    exact = exact.detach()
    return float((found.detach().cpu().double() - exact).abs().max() / exact.abs().max())


def _layers(plan: Plan, k: int) -> tuple[nn.Conv2d, WeightedConv2d, torch.Tensor]:
    channels, batch, side = (8, 2, 8) if plan.quick else (64, 128, 16)
    draw = torch.Generator().manual_seed(k)
    plain = nn.Conv2d(channels, channels, k, padding=k // 2, bias=False)
    with torch.no_grad():
        plain.weight.normal_(std=0.05, generator=draw)
    weighted = WeightedConv2d.from_conv(plain, (0.5,) * (k // 2))
    images = torch.randn(batch, channels, side, side, generator=draw)
    other = nn.Conv2d(channels, channels, k, padding=k // 2, bias=False)
    for layer in (other, weighted):
        layer.to(memory_format=torch.channels_last).to(plan.device)
    return other, weighted, images.to(memory_format=torch.channels_last).to(plan.device)


@torch.no_grad()
def _error(plan: Plan, k: int) -> float:
    """Return the largest error of an output as a share of the largest output."""
    _, weighted, images = _layers(plan, k)
    images = images[:16]  # a CPU takes seconds for them in float64
    exact = weighted.cpu().double()(images.cpu().double())
    return _off(weighted.to(plan.device).float()(images), exact)


def _overhead(plan: Plan, k: int) -> float:
    """Return how much longer a captured training step of the one layer takes than a plain one's."""
    plain, weighted, images = _layers(plan, k)
    lanes = capture.Lanes(plan.device, captured=True)
    runs: list[Callable[[], None]] = []
    for layer in (weighted, plain):
        optimizer = torch.optim.SGD(
            layer.parameters(), torch.tensor(1e-6, device=plan.device), momentum=0.9, fused=True
        )
        lane, repeated = lanes.give(layer), capture.Repeated(captured=lanes.captured, generators=[])

        def step(layer: nn.Module = layer, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(plan.device.type, torch.bfloat16):
                output = layer(images)
            output.float().square().mean().backward()
            optimizer.step()

        def run(lane: Any = lane, repeated: Any = repeated, step: Any = step) -> None:
            with lane():
                repeated(step)

        for _ in range(capture.EAGER_STEPS + 1):
            run()
        runs.append(run)
    times = [seconds_of(plan, run) for _ in range(1 if plan.quick else 3) for run in runs]
    return min(times[::2]) / min(times[1::2]) - 1
