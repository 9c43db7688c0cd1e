"""How fast a step of each proxy could be at all on this device, and how fast it is.

The floor of a step is the larger of its operations over the measured matrix throughput and its
bytes over the measured memory bandwidth (Williams et al. 2009, the roofline model). Operations are
those of convolutions and linear layers: 2 per multiplication, three times (forward, gradient by
the input, gradient by the weight). Bytes count every layer's input and output once in each of
these three passes, as if nothing were fused or kept in a cache; a device with large caches can
therefore be faster than the second floor.

    python benchmarks/roofline.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from helpers import ratios
from helpers.cases import FAMILIES, Case
from torch import Tensor, nn

from workers.networks import proxies
from workers.seeds import generator
from workers.training import devices, packing
from workers.training.slots import Slots
from workers.training.tasks import Draws

PASSES = 3


def work_of(case: Case) -> tuple[float, float]:
    """Return the operations and bytes of one training step."""
    recipe = case.recipe(torch.device("cpu"))
    network = proxies.build(recipe.proxy, case.densities, init="library", seed=0)
    operations = elements = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations, elements
        elements += inputs[0].numel() + output.numel()
        if isinstance(layer, nn.Conv2d | nn.Linear):
            operations += 2 * output.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    task = case.task(torch.device("cpu"))
    chosen = torch.randint(len(task), (recipe.batch_size,), generator=generator(0, "floor"))
    with torch.no_grad():
        network(task.batch(chosen, Draws(0, torch.device("cpu")))[0])
    return PASSES * operations, PASSES * elements


def matrix_throughput(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Return the operations per second of a large matrix product."""
    side = side or (2048 if device.type == "cpu" else 8192)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b, device)


def bandwidth(device: torch.device, count: int | None = None) -> float:
    """Return the bytes per second of a copy that no cache holds, reading and writing counted."""
    source = torch.empty(count or (2**26 if device.type == "cpu" else 2**29), device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source), device)


def main() -> None:
    arguments = _arguments()
    device = devices.resolve(arguments.device)
    devices.make_repeatable(device)
    low = devices.precision("auto", device) == "bfloat16"
    dtype = torch.bfloat16 if low else torch.float32
    peak, copied = matrix_throughput(device, dtype), bandwidth(device)
    print(f"measured ceilings: {peak / 1e9:.0f} GFLOP/s ({dtype}), {copied / 1e9:.1f} GB/s\n")
    rows, found = [], []
    for family in arguments.family:
        for k in arguments.k:
            case = Case(family, k)
            operations, elements = work_of(case)
            by_operations, by_bytes = operations / peak, elements * dtype.itemsize / copied
            slots = Slots(case.task(device), case.recipe(device), device)
            taken = 1 / packing.step_rate(slots, packing.best_size(slots).size)
            floor = max(by_operations, by_bytes)
            found.append(
                {"family": family, "k": k, "GFLOP": operations / 1e9, "MB": elements * 2 / 1e6,
                 "floor ms": 1000 * floor, "step ms": 1000 * taken, "share": floor / taken}
            )  # fmt: skip
            cells = (operations / 1e9, elements * dtype.itemsize / 1e6, 1000 * by_operations,
                     1000 * by_bytes, 1000 * taken)  # fmt: skip
            rows.append([f"{family} k={k}", *(f"{c:.1f}" for c in cells), f"{floor / taken:.0%}"])
    about = ratios.environment(device) | {"dtype": str(dtype)}
    header = ["step", "GFLOP", "MB", "operations ms", "bytes ms", "measured ms", "of the floor"]
    print(ratios.table(header, rows))
    print(f"\n{about}")
    if arguments.json:
        report = {"environment": about, "FLOP/s": peak, "B/s": copied, "rows": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _seconds(run: ratios.Run, device: torch.device) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(12):
        devices.synchronize(device)
        started = time.perf_counter()
        run()
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--k", nargs="+", type=int, default=[3, 5, 7])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
