"""Confirmations that are drawn instead of trained, thousands at once: arrays over studies.

A study is a row: finalists of known effects, their controls and identity, with noise of their own
(what all arms share at a seed cancels in differences). The test is densitune's own, on arrays, and
`race` does in arrays what optimizer.phases.confirmation does study by study; a test holds the two
together. Effects are in standard deviations of a paired difference (SD).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from helpers.simulation import PAIRED, Array, Noise, draw, failed
from optimizer.evidence import sequential_test
from optimizer.evidence.sequential_test import Plan
from optimizer.evidence.verdicts import Control

Cause = Literal["space", "scale", "steps"]
"""What an effect comes from: only the first is the density's own. The scale control shares an
effect of scale, the uniform mask one of steps as well."""


@dataclass(frozen=True)
class Policy:
    """How a confirmation goes about it."""

    plan: Plan
    keep: tuple[int, ...] = (2, 1)
    controls: tuple[Control, ...] = ("control", "uniform")
    lazy: bool = True
    """Whether controls are trained once identity is beaten, and not from the start."""
    sticky: bool = True
    """Whether what a look has shown stays shown."""
    idle: int = 0
    """Arms of each finalist that have no part in the verdict."""


@dataclass(frozen=True)
class Truth:
    """What is the case in all studies of a row."""

    effects: tuple[float, ...]
    """Of the finalists against identity, SD."""
    cause: Cause = "space"
    noise: Noise = "normal"


@dataclass(frozen=True)
class Drawn:
    """Differences of all studies, each (studies, finalists, seeds)."""

    to_identity: Array
    to_controls: Mapping[Control, Array]
    diverged: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """By arm where it diverged, of the same shape; nowhere without."""


@dataclass(frozen=True)
class Raced:
    """What became of all studies."""

    verdicts: NDArray[np.str_]
    """(studies, finalists)"""
    jobs: NDArray[np.int_]
    """(studies,)"""
    seeds: NDArray[np.int_]
    """Of each finalist, (studies, finalists)."""
    covered: NDArray[np.bool_] = field(repr=False)
    """Whether the 95 % interval against identity has the truth in it, (studies, finalists)."""


def drawn(rng: Generator, truth: Truth, studies: int, seeds: int) -> Drawn:
    """Return the differences of so many studies with all seeds of all arms."""
    shape = (studies, len(truth.effects), seeds)
    shared: dict[Control, tuple[Cause, ...]] = {
        "control": ("scale",),
        "uniform": ("scale", "steps"),
    }
    effects = PAIRED * np.array(truth.effects)[:, None]
    finalist = effects + draw(rng, truth.noise, shape, plain=False)
    identity = draw(rng, truth.noise, (studies, 1, seeds), plain=True)
    controls = {name: draw(rng, truth.noise, shape, plain=True) for name in shared}
    to_controls = {
        name: finalist - (effects * (truth.cause in shared[name]) + own)
        for name, own in controls.items()
    }
    plain = {
        "identity": np.broadcast_to(identity, shape),
        **{str(n): x for n, x in controls.items()},
    }
    return Drawn(
        finalist - identity,
        to_controls,
        {name: failed(truth.noise, own) for name, own in plain.items()},
    )


def race(found: Drawn, truth: Truth, policy: Policy) -> Raced:
    """Return what confirmations by a policy say of these differences, and what they train."""
    plan, shape = policy.plan, found.to_identity.shape[:2]
    judge = sequential_test.outcomes if policy.sticky else sequential_test.at_look
    verdicts = np.full(shape, "", dtype="<U11")
    above = np.zeros(shape, dtype=bool)
    jobs, seeds = np.zeros(shape[0], dtype=int), np.zeros(shape, dtype=int)
    covered = np.zeros(shape, dtype=bool)
    arms = 1 + len(policy.controls) + policy.idle
    for look, size in enumerate(plan.looks):
        batch = size - ([0, *plan.looks][look])
        running = verdicts == ""
        beside = running if not policy.lazy else running & above
        jobs += batch * (running.any(axis=1) + running.sum(axis=1))
        jobs += batch * (arms - 1) * beside.sum(axis=1)
        own = judge(found.to_identity[..., :size], plan, _until(found, "identity", size))
        others = {
            name: judge(found.to_controls[name][..., :size], plan, _until(found, name, size))
            for name in policy.controls
        }
        said = _verdicts(own, others)
        fresh = running & (own == "above") & ~above if policy.lazy else np.zeros_like(running)
        waiting = fresh if policy.controls else np.zeros_like(running)
        mean = found.to_identity[..., :size].mean(axis=2)
        dropped = _dropped(running & ((said == "") | waiting), mean, look + 1, policy.keep)
        jobs += size * (arms - 1) * (fresh & ~dropped).sum(axis=1)
        above |= fresh
        seeds[running] = size
        covered = np.where(running, _covered(found.to_identity[..., :size], truth), covered)
        verdicts = np.where(running, np.where(dropped, "dropped", said), verdicts)
    return Raced(verdicts, jobs, seeds, covered)


def _until(found: Drawn, arm: str, size: int) -> NDArray[np.bool_]:
    """Return where an arm diverged on the first seeds."""
    nowhere = np.zeros(found.to_identity.shape, bool)
    return found.diverged.get(arm, nowhere)[..., :size]


def _verdicts(
    own: NDArray[np.str_], others: Mapping[Control, NDArray[np.str_]]
) -> NDArray[np.str_]:
    """Return what optimizer.evidence.sequential_test says of each, empty where it is undecided."""
    known = list(others.values()) or [np.full(own.shape, "above")]
    scale = others.get("control", np.full(own.shape, "above"))
    return np.select(
        [
            own == "below",
            own == "futile",
            own != "above",
            np.all([outcome == "above" for outcome in known], axis=0),
            ~np.isin(scale, ("above", "open")),
            ~np.any([outcome == "open" for outcome in known], axis=0),
        ],
        ["worse", "no_evidence", "", "better", "scale_only", "step_only"],
        "",
    ).astype("<U11")


def _dropped(
    running: NDArray[np.bool_], mean: Array, looks: int, keep: Sequence[int]
) -> NDArray[np.bool_]:
    """Return which of the undecided finalists are not among those that go on."""
    if not keep:
        return np.zeros_like(running)
    order = np.argsort(-np.where(running, mean, -np.inf), axis=1, kind="stable")
    place = np.argsort(order, axis=1)
    return running & (place >= keep[min(looks, len(keep)) - 1])


def _covered(differences: Array, truth: Truth) -> NDArray[np.bool_]:
    size = differences.shape[-1]
    reach = sequential_test.reach(size) * differences.std(axis=-1, ddof=1) / math.sqrt(size)
    off = np.abs(differences.mean(axis=-1) - PAIRED * np.array(truth.effects))
    inside: NDArray[np.bool_] = off <= reach
    return inside
