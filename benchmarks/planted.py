"""Studies in which the truth is planted: densities that only start, or only step, otherwise.

With real training, as in false_positives.py, but a density's job trains something without spatial
structure in its place: `start` its scale control (initial weights times RMS(phi)), `steps` its
uniform mask (RMS(phi) at every tap). All other arms train what they are, each with an order of
images and noise of its own. A study of `start` should end with `scale_only` and one of `steps` with
`step_only`; `better` would be a false one.

    python benchmarks/planted.py --studies 5 --json planted.json
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import false_positives
from false_positives import CPU, Found
from helpers import ratios

from densitune import density
from optimizer import arms
from optimizer.arms import Arm
from optimizer.evidence.verdicts import Verdict
from workers import seeds
from workers.training import devices, member
from workers.training.recipe import Job
from workers.training.slots import Slots


def scaled(arm: Arm) -> Arm:
    """Return the scale control of a density, measured as the density is."""
    gain = {size: density.rms(den) for size, den in arm.densities.items()}
    return replace(arm, densities=arms.identity(arm.densities, arm.lr).densities, gain=gain)


def uniform(arm: Arm) -> Arm:
    """Return the uniform mask of a density, measured as the density is."""
    return replace(arm, mask="uniform")


@dataclass(frozen=True)
class Case:
    """What is planted, at a learning rate at which it makes a difference, and what should follow.

    The rates were found by training identity, scale controls and uniform masks of [0.3], [0.6] and
    [1.4] at 0.001, 0.01 and 0.05 with three seeds.
    """

    truth: Callable[[Arm], Arm]
    lr: float
    verdict: Verdict


CASES = {"start": Case(scaled, 1e-3, "scale_only"), "steps": Case(uniform, 5e-2, "step_only")}


class Planted(member.Member):
    """A member that trains the truth in place of a density, and draws from its arm's name too."""

    case: Case

    def __init__(self, slots: Slots, job: Job) -> None:
        truth = self.case.truth
        trained = replace(job, arm=truth(job.arm)) if is_density(job.arm) else job
        super().__init__(slots, trained)
        self._slot.draw(seeds.derive(job.seed, "arm", false_positives.name_of(job)))


def is_density(arm: Arm) -> bool:
    """Tell whether an arm trains a density: neither identity nor a control."""
    plain = arms.identity(arm.densities, arm.lr).densities
    return arm.mask == "density" and not arm.gain and dict(arm.densities) != dict(plain)


def study(name: str, number: int) -> Found:
    """Run one study of a case against the storage of this process's environment."""
    case = Planted.case = CASES[name]
    false_positives.train_as(Planted)
    training = {"budget": 1, "batch_size": 16, "precision": "full", "lr": case.lr}
    # No rate check: after a `better` alone, which would be the failure of this benchmark.
    given = false_positives.configured(
        number, name=f"{name}-{number}", training=training, confirm={"rates": "never"}
    )
    return false_positives.came_to(given, number)


def main() -> int:
    """Run all studies; return 1 if one says `better`, or most of a case say not what is true."""
    arguments = _arguments()
    devices.make_repeatable(CPU)  # what every study's process does
    results: dict[str, list[Found]] = {}
    given = false_positives.configured(0)
    with (
        false_positives.own_storage("planted-"),
        multiprocessing.get_context("spawn").Pool(arguments.processes) as pool,
    ):
        for name in CASES:
            print(name, flush=True)
            results[name] = []
            for one in pool.imap(partial(study, name), range(1, arguments.studies + 1)):
                results[name].append(one)
                print(*false_positives.row(one, given.unit), flush=True)
    about: dict[str, Any] = ratios.environment(CPU)
    print(f"\n{about}")
    for name, found in results.items():
        first = [one.verdicts[0].verdict for one in found]
        print(f"{name}: {first.count(CASES[name].verdict)} of {len(first)} as planted: {first}")
    if arguments.json:
        shown = {name: [asdict(one) for one in found] for name, found in results.items()}
        text = json.dumps({"environment": about, "found": shown}, indent=1, default=vars)
        arguments.json.write_text(text + "\n")
    return int(any(wrong(CASES[name], found) for name, found in results.items()))


def wrong(case: Case, found: list[Found]) -> bool:
    """Tell whether a study says `better`, or fewer than half say what was planted."""
    as_planted = sum(one.verdicts[0].verdict == case.verdict for one in found)
    return any(one.better for one in found) or 2 * as_planted < len(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=5, help="of each case")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
