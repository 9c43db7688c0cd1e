"""How fast a device is, and where its time goes: the other sections of device_check.py.

A section takes a plan and returns its figures as JSON; "wrong" lists what is not as it must be.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import roofline
import throughput
import torch

from helpers import ratios
from helpers.cases import FAMILIES, Case, Family
from helpers.device_plan import Figures, Plan, job_of, profiled, seconds_of, slots_of
from workers.training import capture, devices, packing
from workers.training.loop import train
from workers.training.member import Member
from workers.training.recipe import Job, steps_per_epoch
from workers.training.slots import Slots


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
            pack = packing.Treadmill(slots, job_of(case, 0.6), 1)
            for _ in range(capture.EAGER_STEPS + 1):
                pack.round()
            own[f"{name} ms"] = round(1000 * seconds_of(plan, pack.round), 3)
            if name == "eager":
                own["kernels"] = _kernels(plan, pack.round)
        figures[f"{family} k={k}"] = own
    return figures


def _kernels(plan: Plan, run: Callable[[], object]) -> int | None:
    """Return how many kernels a call starts; None on a CPU, which has none."""
    if not plan.on_gpu:
        return None
    events = profiled(plan, run, calls=1).events()
    return sum(bool(event.device_type.name == "CUDA") for event in events)


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
        auto = packing.calibrate(rates.__getitem__, largest=max(rates)).size
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
    waiting = [job_of(case, 0.4 + 0.02 * number, seed=number % 3) for number in range(count)]
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

    member: Member = timed("build", lambda: Member(slots, job_of(case, 0.6)))
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


def rival(plan: Plan, family: Family) -> Figures:
    """The engine beside plain_search.py's, in turns."""
    if plan.quick:
        case = plan.case(family)
        problem = throughput.plain_problem(case, plan.device)
        plain = throughput.plain_loop(problem, case, loader_workers=0)
        engine = throughput.densitune_step(case, plan.device)
        return {"ratios": [seconds_of(plan, plain) / seconds_of(plan, engine)]}
    name, images = str(plan.device), throughput.IMAGES[plan.device.type]
    started = time.perf_counter()
    with (
        throughput.Crew(partial(throughput.plain_step, seconds=1.0), name, 1) as other,
        throughput.Crew(throughput.densitune_step, name, 1) as engine_crew,
    ):
        case = Case(family, 3, images=images)
        other.load(case)
        loaded = time.perf_counter()
        # Told at once: a section that runs out of time leaves no figures.
        print(f"plain_search.py is ready after {loaded - started:.1f} s", flush=True)
        engine_crew.load(case)
        ready = time.perf_counter()
        print(f"densitune is ready {ready - loaded:.1f} s later", flush=True)
        rates = throughput.measure(other, engine_crew, rounds=2, seconds=1.0)
    return {
        "plain steps/s": round(min(theirs for theirs, _ in rates), 2),
        "densitune steps/s": round(min(ours for _, ours in rates), 2),
        "ratios": [round(ours / theirs, 2) for theirs, ours in rates],
        "images": images,
        "loaders tried": throughput.loader_workers(plan.device),
        "plain ready in s": round(loaded - started, 1),
        "densitune ready in s": round(ready - loaded, 1),
    }


def hot_spots(plan: Plan) -> Figures:
    """What a step's time goes into: the kernels that take most of it, as shares."""
    figures: Figures = {}
    cases: tuple[tuple[Family, int], ...] = (("vgg", 3), ("vgg", 7), ("nafnet", 3), ("nafnet", 7))
    for family, k in cases[: 1 if plan.quick else None]:
        case = plan.case(family, k)
        pack = packing.Treadmill(slots_of(plan, case, captured=False), job_of(case, 0.6), 1)
        for _ in range(capture.EAGER_STEPS):
            pack.round()
        taken: dict[str, float] = {}
        for event in profiled(plan, pack.round, calls=4).events():
            # On a GPU only kernels: an operator of the host is billed what its kernels take.
            if not plan.on_gpu or event.device_type.name == "CUDA":
                own = event.time_range.elapsed_us() if plan.on_gpu else event.self_cpu_time_total
                taken[event.name] = taken.get(event.name, 0.0) + own
        total = sum(taken.values()) or 1.0
        first = sorted(taken, key=lambda name: -taken[name])[:8]
        figures[f"{family} k={k}"] = {name[:80]: round(taken[name] / total, 3) for name in first}
    return figures
