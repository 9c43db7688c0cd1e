"""What device_check.py finds out about a device, section by section.

A section takes a plan and returns its figures as JSON; "wrong" lists what is not as it must be.
"""

import hashlib
import io
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import roofline
import throughput
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from densitune.weighted_conv import WeightedConv2d
from helpers import ratios
from helpers.cases import FAMILIES, Case, Family
from optimizer.arms import Arm, Precision
from workers.training import capture, devices, packing
from workers.training.loop import train
from workers.training.member import Member
from workers.training.recipe import Job, steps_per_epoch
from workers.training.scores import Score
from workers.training.slots import Slots
from workers.training.tasks import Task

Figures = dict[str, Any]
PRECISIONS: tuple[Precision, ...] = ("full", "bfloat16")


@dataclass(frozen=True)
class Plan:
    """Where it is measured, and whether only to see that it can be."""

    device: torch.device
    quick: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one for which all of this is made."""
        return self.device.type == "cuda"

    @property
    def families(self) -> Sequence[Family]:
        """The families that have to be right; the tests have all of them on a CPU."""
        return FAMILIES[::3] if self.quick else FAMILIES

    def case(self, family: Family, k: int = 3, images: int = 1_024, **changes: Any) -> Case:
        """Return a case of the given size, a tiny one if that will do."""
        if self.quick:
            return Case(family, k, images=32, epochs=2, held=16, tiny=True)
        return Case(family, k, images=images, **changes)


@dataclass
class Judged:
    """A task that notes every bit of the networks that it judges."""

    inner: Task
    networks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def evaluate(self, network: nn.Module) -> Score:
        values = [value.cpu().numpy().tobytes() for value in network.state_dict().values()]
        self.networks.append(hashlib.sha256(b"".join(values)).hexdigest()[:16])
        return self.inner.evaluate(network)


def slots_of(
    plan: Plan, case: Case, precision: Precision | None = None, *, captured: bool = True
) -> Slots:
    """Return slots whose task notes what is judged."""
    recipe = case.recipe(plan.device, precision)
    task: Any = Judged(case.task(plan.device))
    return Slots(task, recipe, plan.device, captured=captured)


def outcome(slots: Slots, *jobs: Job, **others: Any) -> dict[int, list[Any]]:
    """Train jobs; return by number what each measured, with the bits of its network."""
    task: Any = slots.task
    found: dict[int, list[Any]] = {number: [] for number in range(len(jobs))}

    def note(number: int, measurement: Any) -> None:
        told = (measurement.rung, measurement.score.value, measurement.ending, task.networks[-1])
        found.setdefault(number, []).append(told)

    def fail(number: int, error: Exception) -> None:
        found.setdefault(number, []).append(str(error).split(" after ")[-1])

    train(slots, jobs, on_rung=note, on_failure=fail, **others)
    return found


def _job(case: Case, value: float, seed: int = 0, **others: Any) -> Job:
    k = case.kernel_size
    bars = others.pop("bars", {})
    return Job(Arm({k: (value,) * (k // 2)}, **others), seed, case.epochs, bars)


def _seconds(plan: Plan, run: Callable[[], object], least: float = 0.3) -> float:
    """Return the seconds of a call, many of them in a row."""
    least = 0.01 if plan.quick else least
    run()
    calls, taken = 1, 0.0
    while taken < least:
        calls *= 2
        devices.synchronize(plan.device)
        started = time.perf_counter()
        for _ in range(calls):
            run()
        devices.synchronize(plan.device)
        taken = time.perf_counter() - started
    return taken / calls


def ceilings(plan: Plan) -> Figures:
    """Versions, and the highest speeds that this device shows."""
    figures: Figures = dict(ratios.environment(plan.device))
    if plan.on_gpu:
        about = torch.cuda.get_device_properties(plan.device)
        figures |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{about.major}.{about.minor}",
            "GiB": round(about.total_memory / 2**30, 1),
            "multiprocessors": about.multi_processor_count,
        }
    side, count = (256, 2**18) if plan.quick else (None, None)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        rate = roofline.matrix_throughput(plan.device, dtype, side)
        figures[f"{name} TFLOP/s"] = round(rate / 1e12, 3)
    figures["copy GB/s"] = round(roofline.bandwidth(plan.device, count) / 1e9, 1)
    return figures


def captured(plan: Plan) -> Figures:
    """Captured steps give the bits of those that Python issues, in used slots as well."""
    wrong = []
    kinds = list(itertools.product(plan.families, PRECISIONS, (False, True)))
    for family, precision, trainable in kinds:
        case = plan.case(family, images=512, epochs=2)
        jobs = [
            _job(case, value, seed, trainable=trainable) for value, seed in ((0.6, 4), (1.2, 9))
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
            _job(case, 0.6, bars={1: -math.inf}),
            _job(case, 0.9, bars={1: math.inf}),
            _job(case, 1e30),
            _job(case, 1.4, seed=3),
        ]
        late = _job(case, 0.7, seed=7)
        joining = iter([[], [], [late]])
        together = outcome(slots_of(plan, case), *jobs, refill=partial(next, joining, []))
        for number, job in enumerate([*jobs, late]):
            members += 1
            if together[number] != outcome(slots_of(plan, case), job)[0]:
                wrong.append(f"{family}, member {number}")
    tiny = Case("dncnn", 3, images=32, epochs=2, held=16, tiny=True)
    crowd = [_job(tiny, 0.5, seed) for seed in range(8 if plan.quick else 40)]
    together, alone = outcome(slots_of(plan, tiny), *crowd), slots_of(plan, tiny)
    for number, job in enumerate(crowd):
        members += 1
        if together[number] != outcome(alone, job)[0]:
            wrong.append(f"one of {len(crowd)} tiny members, {number}")
    return {"members": members, "wrong": wrong}


def steps(plan: Plan) -> Figures:
    """A step alone: issued by Python, captured, and of how many kernels."""
    figures: Figures = {}
    for family, k in [*((family, 3) for family in FAMILIES), ("vgg", 7), ("nafnet", 7)][
        : 4 if plan.quick else None
    ]:
        case = plan.case(family, k)
        own: Figures = {}
        for name in ("eager", "captured"):
            slots = slots_of(plan, case, captured=name == "captured")
            pack = packing.Treadmill(slots, _job(case, 0.6), 1)
            for _ in range(capture.EAGER_STEPS + 1):
                pack.round()
            own[f"{name} ms"] = round(1000 * _seconds(plan, pack.round), 3)
            if name == "eager":
                own["kernels"] = _kernels(plan, pack.round)
        figures[f"{family} k={k}"] = own
    return figures


def _kernels(plan: Plan, run: Callable[[], object]) -> int | None:
    """Return how many kernels a call starts; None on a CPU, which has none."""
    if not plan.on_gpu:
        return None
    events = _profiled(plan, run, calls=1).events()
    return sum(bool(event.device_type.name == "CUDA") for event in events)


def _profiled(plan: Plan, run: Callable[[], object], calls: int) -> Any:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if plan.on_gpu else [])]
    with profile(activities=activities) as found:
        for _ in range(calls):
            run()
        devices.synchronize(plan.device)
    return found


def sweep(plan: Plan) -> Figures:
    """Steps per second by the size of the pack, and what `--pack auto` makes of them."""
    sizes = (1, 2) if plan.quick else (1, 2, 4, 8, 16, 32)
    cases: tuple[tuple[Family, int], ...] = (("vgg", 3), ("vgg", 7), ("dncnn", 3), ("nafnet", 3))
    figures: Figures = {"wrong": []}
    for family, k in cases[: 1 if plan.quick else None]:
        slots = slots_of(plan, plan.case(family, k))
        rates: dict[int, float] = {}
        for size in sizes:
            try:
                rates[size] = packing.step_rate(slots, size)
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                packing.release_memory(plan.device)
                break
        auto = packing.calibrate(lambda size, rates=rates: rates[size], largest=max(rates)).size  # type: ignore[misc]
        shown = {str(size): round(rate, 1) for size, rate in rates.items()}
        figures[f"{family} k={k}"] = {"steps/s": shown, "auto": auto}
        if rates[auto] < 0.9 * max(rates.values()) and plan.on_gpu:
            figures["wrong"].append(f"{family} k={k}: auto is more than 10 % from the best")
    return figures


def job(plan: Plan) -> Figures:
    """The CIFAR-shaped job of 8 epochs: alone and by parts, the next in its slot, 16 in a pack."""
    case = plan.case("vgg", images=45_000, held=5_000)
    slots = slots_of(plan, case)
    task: Any = slots.task
    slots = Slots(task.inner, slots.recipe, plan.device)
    figures: Figures = {"first": _parts(plan, slots, case), "next": _parts(plan, slots, case)}
    count, places = (4, 2) if plan.quick else (16, 8)
    waiting = [_job(case, 0.4 + 0.02 * number, seed=number % 3) for number in range(count)]
    started = time.perf_counter()

    def refill() -> list[Job]:
        joining, ended[:] = waiting[: len(ended)], []
        del waiting[: len(joining)]
        return joining

    ended: list[int] = []
    first = [waiting.pop(0) for _ in range(places)]
    train(
        slots,
        first,
        on_rung=lambda number, m: ended.append(number) if m.ending else None,
        on_failure=lambda number, error: ended.append(number),
        refill=refill,
    )
    taken = time.perf_counter() - started
    return figures | {
        f"{count} jobs in a pack of {places}, s": round(taken, 3),
        "s per job": round(taken / count, 3),
    }


def _parts(plan: Plan, slots: Slots, case: Case) -> Figures:
    """Return what the parts of one job take, in milliseconds."""
    parts: Figures = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = run()
        devices.synchronize(plan.device)
        parts[f"{name} ms"] = round(1000 * (time.perf_counter() - started), 2)
        return result

    member: Member = timed("build", lambda: Member(slots, _job(case, 0.6)))
    total = case.epochs * steps_per_epoch(slots.task, slots.recipe)
    first = min(capture.EAGER_STEPS, total - 2)

    def several(count: int) -> None:
        for _ in range(count):
            member.step()

    timed("first step", partial(several, 1))
    timed("eager steps", partial(several, first - 1))
    timed("capture", partial(several, 1))
    timed("steps", partial(several, total - first - 1))
    timed("measure", member.measure)
    timed("measure again", member.measure)
    member.leave()
    return parts | {"steps": total}


def rival(plan: Plan) -> Figures:
    """The engine beside plain_search.py's, in turns."""
    if plan.quick:
        case = plan.case("vgg")
        plain = throughput.plain_loop(case, plan.device, loader_workers=0)
        engine = throughput.densitune_step(case, plan.device)
        return {"vgg k=3": {"ratios": [_seconds(plan, plain) / _seconds(plan, engine)]}}
    figures: Figures = {}
    name, images = str(plan.device), throughput.IMAGES[plan.device.type]
    with (
        throughput.Crew(partial(throughput.plain_step, seconds=1.5), name, 1) as other,
        throughput.Crew(throughput.densitune_step, name, 1) as engine_crew,
    ):
        for family in ("vgg", "nafnet"):
            case = Case(family, 3, images=images)
            other.load(case)
            engine_crew.load(case)
            rates = throughput.measure(other, engine_crew, rounds=2, seconds=1.5)
            figures[f"{family} k=3"] = {
                "plain steps/s": round(min(theirs for theirs, _ in rates), 2),
                "densitune steps/s": round(min(ours for _, ours in rates), 2),
                "ratios": [round(ours / theirs, 2) for theirs, ours in rates],
            }
    return figures | {"images": images, "loaders tried": throughput.loader_workers(plan.device)}


def resume(plan: Plan) -> Figures:
    """A job goes on from a checkpoint, in a slot that another has used, with the same bits."""
    wrong = []
    for family in plan.families:
        case = plan.case(family, images=512, epochs=3)
        job = _job(case, 0.6, seed=4)
        expected = outcome(slots_of(plan, case), job)[0]
        member = Member(slots_of(plan, case), job)
        for _ in range(5):
            member.step()
        saved = io.BytesIO()
        torch.save(member.state(), saved)
        saved.seek(0)
        state = torch.load(saved, map_location="cpu", weights_only=True)
        slots = slots_of(plan, case)
        outcome(slots, _job(case, 0.9))
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
        here = torch.cuda.current_device()  # a device without a number is refused here
        torch.cuda.set_per_process_memory_fraction(3 * 2**30 / total, here)
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
    """A weighted convolution against float64, and what it costs where steps are captured."""
    figures: Figures = {}
    cudnn = torch.backends.cudnn
    for tf32 in (False, True):
        cudnn.allow_tf32 = tf32
        figures[f"error, TF32 {'on' if tf32 else 'off'}"] = max(
            map(partial(_error, plan), (3, 5, 7))
        )
    cudnn.allow_tf32 = False
    for k in (3, 5, 7)[: 1 if plan.quick else None]:
        figures[f"captured overhead k={k}"] = round(_overhead(plan, k), 4)
    limit = figures["error, TF32 off"]
    return figures | {"wrong": [] if limit < 1e-5 else [f"float32 is off by {limit:.1g}"]}


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
    exact = weighted.cpu().double()(images.cpu().double())
    found = weighted.to(plan.device).float()(images).cpu().double()
    return float((found - exact).abs().max() / exact.abs().max())


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
    times = [_seconds(plan, run) for _ in range(1 if plan.quick else 3) for run in runs]
    return min(times[::2]) / min(times[1::2]) - 1


def hot_spots(plan: Plan) -> Figures:
    """What a step's time goes into: the kernels that take most of it, as shares."""
    figures: Figures = {}
    cases: tuple[tuple[Family, int], ...] = (("vgg", 3), ("vgg", 7), ("nafnet", 3), ("nafnet", 7))
    for family, k in cases[: 1 if plan.quick else None]:
        case = plan.case(family, k)
        pack = packing.Treadmill(slots_of(plan, case, captured=False), _job(case, 0.6), 1)
        for _ in range(capture.EAGER_STEPS):
            pack.round()
        averages = _profiled(plan, pack.round, calls=4).key_averages()
        kind = "self_device_time_total" if plan.on_gpu else "self_cpu_time_total"
        taken = {event.key: float(getattr(event, kind)) for event in averages}
        total = sum(taken.values()) or 1.0
        first = sorted(taken, key=lambda name: -taken[name])[:8]
        figures[f"{family} k={k}"] = {name[:80]: round(taken[name] / total, 3) for name in first}
    return figures


SECTIONS: dict[str, tuple[Callable[[Plan], Figures], float]] = {
    "ceilings": (ceilings, 25),
    "captured": (captured, 60),
    "packs": (packs, 50),
    "steps": (steps, 35),
    "sweep": (sweep, 55),
    "job": (job, 50),
    "rival": (rival, 80),
    "resume": (resume, 20),
    "memory": (memory, 25),
    "operator": (operator, 20),
    "hot spots": (hot_spots, 30),
}
"""By name, in the order in which they are run: what is found out, and in how many seconds."""
