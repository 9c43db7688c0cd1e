"""Cases in which it is known why a density helps, with real training: the controls find it.

Images are flat, each of one gray, so that the best filter is a plain average and nothing spatial is
to be had from a density that weakens the outer taps.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from densitune.density import Densities
from optimizer import arms
from optimizer.arms import Arm
from workers.data.bank import Bank
from workers.networks.proxies import Proxy
from workers.training.loop import train
from workers.training.recipe import Job, Measurement, Recipe
from workers.training.slots import Slots
from workers.training.tasks import Denoising, Task

CPU = torch.device("cpu")
SEEDS = range(12)
DEN: Densities = {3: (0.5,)}

Values = NDArray[np.float64]


def flat(count: int = 76) -> Bank:
    grays = np.random.default_rng(0).integers(40, 215, (count, 1, 1, 1))
    images = np.broadcast_to(grays, (count, 1, 12, 12)).astype(np.uint8)
    return Bank(images[12:], images[:12], fingerprint="", source="flat")


def trained(chosen: Mapping[str, Arm], lr: float, budget: int) -> dict[str, Values]:
    """Return every arm's PSNR by seed, of NAFNets in which no convolution feeds a normalisation."""
    task = Denoising(flat(), CPU, sigma=50)
    how = Recipe(Proxy("nafnet", 4, 1, (3,), 1, None), "library", 8, lr, ())
    return {name: values(task, how, arm, budget) for name, arm in chosen.items()}


def values(task: Task, how: Recipe, arm: Arm, budget: int) -> Values:
    found: dict[int, float] = {}

    def note(number: int, measurement: Measurement) -> None:
        found[number] = measurement.score.value

    def fail(number: int, error: Exception) -> None:
        raise AssertionError(f"seed {number}: {error}")

    jobs = [Job(arm, seed, budget) for seed in SEEDS]
    train(Slots(task, how, CPU), jobs, on_rung=note, on_failure=fail)
    return np.array([found[number] for number in range(len(jobs))])


def t(first: Values, second: Values) -> float:
    """Return Student's t of paired differences; 1.8 is the one-sided 5 % of twelve seeds."""
    differences = first - second
    return float(differences.mean() / differences.std(ddof=1) * len(differences) ** 0.5)


def test_where_only_steps_help_a_uniform_mask_does_as_well() -> None:
    """The rate is too high for identity, and all arms start at its scale."""
    found = trained(
        {
            "identity": arms.identity(DEN, None),
            "density": arms.compensated(DEN, None),
            "uniform": arms.uniform(DEN, None, "compensated"),
        },
        lr=0.15,
        budget=3,
    )
    assert t(found["density"], found["identity"]) > 1.8
    assert t(found["uniform"], found["identity"]) > 1.8
    assert t(found["density"], found["uniform"]) < 1.8


def test_where_only_the_start_helps_it_does_so_without_the_steps() -> None:
    """The rate is so small that networks stay where they start."""
    found = trained(
        {
            "identity": arms.identity(DEN, None),
            "density": Arm(DEN, None, "library"),
            "scale control": arms.scale_control(DEN, None),
            "uniform": arms.uniform(DEN, None),
            "init only": arms.init_only(DEN, None),
            "steps only": arms.steps_only(DEN, None),
        },
        lr=1e-4,
        budget=1,
    )
    for name in ("density", "scale control", "uniform", "init only"):
        assert t(found[name], found["identity"]) > 1.8, name
    assert t(found["density"], found["scale control"]) < 1.8
    assert np.allclose(found["init only"], found["density"], atol=0.1)
    assert np.allclose(found["steps only"], found["identity"], atol=0.1)
    assert np.allclose(found["uniform"], found["scale control"], atol=0.1)
