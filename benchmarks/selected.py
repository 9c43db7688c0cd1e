"""What it does to intervals that their density was chosen by what they are about.

A density is chosen on the validation images, so that the interval over seeds and images there is
one of the largest of many values; what its winner is taken apart into inherits that it was the
best of a confirmation, which stopped where it was ahead. The product's own functions compute all
intervals. Truths are known, for they are drawn.

    OMP_NUM_THREADS=1 python benchmarks/selected.py --studies 4000
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from helpers import confirmations
from helpers.confirmations import Drawn, Policy, Raced, Truth
from helpers.simulation import PAIRED, Array
from numpy.random import Generator
from scipy.stats import binomtest

from optimizer.arms import Part
from optimizer.config.sections import Confirm
from optimizer.evidence import apart, images
from optimizer.evidence.sequential_test import Plan

SEEDS, SEARCH_SEEDS = 12, 2
"""Of the interval, and of the search that chose the density."""
OF_SEEDS = 0.1
"""Standard deviation between seeds, in those between images and of what both together add, with 40
images; with more it is smaller, so that seeds weigh the same beside the mean of the images."""
FINALISTS = 3


@dataclass(frozen=True)
class Choice:
    """How many densities, none of which helps, the best was chosen from on how many images."""

    trials: int
    images: int = 40
    shared: float = 0.0
    """Part of the variance between images that all densities have in common."""


CHOICES = (
    *(Choice(trials) for trials in (1, 7, 28, 100)),
    Choice(28, images=300),
    Choice(28, shared=0.5),
)
EFFECTS = (0.0, 0.5, 1.0)
"""Of a start, SD; the steps do nothing."""


def of_a_choice(rng: Generator, choice: Choice) -> tuple[bool, bool]:
    """Return whether the intervals hold zero, on the images of the choice and on others."""
    common = rng.standard_normal((1, choice.images))
    own = rng.standard_normal((choice.trials, choice.images))
    effects = math.sqrt(choice.shared) * common + math.sqrt(1 - choice.shared) * own
    spread = math.sqrt((_of_seeds(choice.images) ** 2 + 1 / choice.images) / SEARCH_SEEDS)
    best = np.argmax(effects.mean(axis=1) + spread * rng.standard_normal(choice.trials))
    return _holds_zero(rng, effects[best]), _holds_zero(rng, rng.standard_normal(choice.images))


def _holds_zero(rng: Generator, by_image: Array) -> bool:
    seeds = _of_seeds(len(by_image)) * rng.standard_normal((SEEDS, 1))
    found = seeds + by_image + rng.standard_normal((SEEDS, len(by_image)))
    return bool(abs(found.mean()) <= images.half_width(found))


def _of_seeds(count: int) -> float:
    return OF_SEEDS * math.sqrt(40 / count)


def apart_of(rng: Generator, effect: float, studies: int) -> dict[str, tuple[int, int, int]]:
    """Return of how many winners an interval holds the truth, is above zero, and of how many.

    By what the interval is of; of `better` winners alone unless there is no effect. All of it is
    the start's.
    """
    given = Confirm()
    identity = rng.standard_normal((studies, 1, given.seeds))
    density = PAIRED * effect + rng.standard_normal((studies, FINALISTS, given.seeds))
    policy = Policy(Plan(given.seeds, given.batch, FINALISTS), given.keep, controls=())
    truth = Truth((effect,) * FINALISTS)
    raced = confirmations.race(Drawn(density - identity, {}), truth, policy)
    winners = _winners(raced, density - identity)
    truths = {name: PAIRED * effect * (name in ("init_only", "start")) for name in NAMES}
    found: dict[str, list[tuple[bool, bool]]] = {name: [] for name in NAMES}
    for study, best in enumerate(winners):
        if effect and raced.verdicts[study, best] != "better":
            continue
        count = int(raced.seeds[study, best])
        alone: dict[Part, dict[int, float]] = {
            "init_only": _by_seed(PAIRED * effect + rng.standard_normal(count)),
            "steps_only": _by_seed(rng.standard_normal(count)),
        }
        seen = apart.effects(
            _by_seed(identity[study, 0, :count]), _by_seed(density[study, best, :count]), alone
        )
        for name, one in seen.items():
            found[name].append((one.low <= truths[name] <= one.high, one.low > 0))
    return {
        name: (sum(held for held, _ in all_of), sum(up for _, up in all_of), len(all_of))
        for name, all_of in found.items()
    }


NAMES = ("init_only", "steps_only", "start", "steps", "interaction")
"""What a winner is taken apart into."""


def _winners(raced: Raced, to_identity: Array) -> list[int]:
    """Return the winner of each study, as optimizer.evidence.verdicts.best does."""
    winners = []
    for verdicts, seeds, differences in zip(raced.verdicts, raced.seeds, to_identity, strict=True):
        ranks = [
            (said == "better", said != "dropped", own[:count].mean())
            for said, count, own in zip(verdicts, seeds, differences, strict=True)
        ]
        winners.append(max(range(len(ranks)), key=lambda number: ranks[number]))
    return winners


def _by_seed(values: Array) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


def _share(count: int, of: int) -> str:
    low, high = binomtest(count, of).proportion_ci(0.95)
    return f"{count / of:.1%} [{low:.1%}, {high:.1%}]"


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [heads, ["---"] * len(heads), *rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    rows = []
    for number, choice in enumerate(CHOICES):
        rng = np.random.default_rng(number)
        here, there = np.sum([of_a_choice(rng, choice) for _ in range(studies)], axis=0)
        what = [str(choice.trials), str(choice.images), f"{choice.shared:g}"]
        rows.append([*what, _share(here, studies), _share(there, studies)])
    _print(["chosen from", "images", "shared", "on these images", "on a test split"], rows)
    print()
    rows = []
    for number, effect in enumerate(EFFECTS):
        found = apart_of(np.random.default_rng(number), effect, studies)
        rows += [
            [f"{effect:g}", name, _share(held, of), _share(up, of), str(of)]
            for name, (held, up, of) in found.items()
        ]
    _print(["start, SD", "interval of", "holds the truth", "above zero", "winners"], rows)


if __name__ == "__main__":
    main()
