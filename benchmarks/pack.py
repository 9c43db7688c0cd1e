"""Jobs per hour against the size of the pack, and the size that `--pack auto` takes.

Every size is timed in turns with the others, round by round. On a CPU a worker has one thread, so
the curve is flat there and `auto` takes one job per process; on a GPU it shows what members side
by side are worth.

    python benchmarks/pack.py --family vgg --k 3 --sizes 1 2 4
"""

import argparse
import json
import statistics
from pathlib import Path

from helpers import ratios
from helpers.cases import FAMILIES, Case

from workers.training import devices, packing
from workers.training.recipe import steps_per_epoch
from workers.training.slots import Slots


def main() -> None:
    arguments = _arguments()
    device = devices.resolve(arguments.device)
    devices.make_repeatable(device)
    rows, found = [], []
    for family in arguments.family:
        for k in arguments.k:
            case = Case(family, k, images=arguments.images)
            slots = Slots(case.task(device), case.recipe(device), device)
            hourly = 3600 / (steps_per_epoch(slots.task, slots.recipe) * case.epochs)
            rates: dict[int, list[float]] = {size: [] for size in arguments.sizes}
            for _ in range(arguments.rounds):
                for size in arguments.sizes:
                    rates[size].append(hourly * packing.step_rate(slots, size))
            auto = packing.best_size(slots).size
            middle = {size: statistics.median(values) for size, values in rates.items()}
            best = max(middle, key=lambda size: middle[size])
            found.append({"family": family, "k": k, "jobs/hour": rates, "best": best, "auto": auto})
            cells = [f"{middle[size]:.0f} ±{_spread(rates[size]):.0%}" for size in arguments.sizes]
            rows.append([f"{family} k={k}", *cells, str(best), str(auto)])
            print("  ".join(rows[-1]), flush=True)
    about = ratios.environment(device) | {
        "rounds": arguments.rounds,
        "images": arguments.images,
        "epochs": Case.epochs,
    }
    print(f"\n{about}\n")
    header = ["jobs/hour", *(f"K={size}" for size in arguments.sizes), "best K", "auto"]
    print(ratios.table(header, rows))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": about, "rows": found}, indent=1) + "\n"
        )


def _spread(values: list[float]) -> float:
    """Return half the range as a share of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--k", nargs="+", type=int, default=[3, 5, 7])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--images", type=int, default=2048, help="of the training set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
