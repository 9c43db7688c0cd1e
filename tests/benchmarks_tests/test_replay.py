"""A replay searches as the product does, on what was recorded and nothing else."""

from typing import Any

import numpy as np
import pytest
import replay
from helpers.simulated_desk import SimulatedDesk, World, searched
from helpers.surface import Floats, Plan, Surface
from sqlalchemy import Engine
from support import searches

from optimizer.config.study_file import StudyConfig
from optimizer.phases.proposer import Proposer
from storage import jobs, ledger, studies
from storage.ledger import Entry

SEEDS = 5


def height(densities: Floats) -> Floats:
    """(densities,)"""
    return np.asarray(-((densities - 0.6) ** 2).sum(axis=1))


def made(
    kernel_size: int = 5, points: int = 20, seeds: int = SEEDS, *, diverged: bool = False
) -> World:
    """A surface with its top at 0.6, seeds far apart and noise of its own for each job."""
    plan = Plan("made", "nafnet", 1, 1, kernel_size, points, 1, (1, 2, 4))
    densities = plan.densities()
    random = np.random.default_rng(0)
    rungs = height(densities)[:, None, None] + np.array([-1.0, -0.5, 0.0])
    shared, own = random.normal(0, 3, (1, seeds, 1)), random.normal(0, 0.3, (points, seeds, 3))
    values = rungs + shared + own
    if diverged:
        values[7:12, 1, 1:] = np.nan
    return World(Surface(plan, densities, values, np.broadcast_to([1.0, 2.0, 4.0], values.shape)))


def config(world: World, sampler: str, trials: int = 30) -> StudyConfig:
    given = replay.configured(world, sampler, seed=3, seeds=2, in_flight=4)
    return given.model_copy(update={"search": given.search.model_copy(update={"trials": trials})})


def simulated(world: World, given: StudyConfig, workers: int) -> tuple[list[Any], list[Any], float]:
    desk = SimulatedDesk.of(world, given, dict(zip(given.seeds, (4, 1), strict=True)))
    *_, last = searched(desk, workers)
    assert desk.left_for == ["confirm"]
    trials = [(t.number, t.densities, t.state) for t in desk.trials("search")]
    rows = [(r.trial, r.seed, r.rung, r.value) for r in desk.measured("search")]
    return trials, sorted(rows), last.clock


def test_a_simulated_search_is_what_the_product_does_on_postgresql(database: Engine) -> None:
    world = made(diverged=True)
    given = config(world, "tpe", trials=24)
    study_id = searches.create(database, given)
    proposer, worker = Proposer(database, study_id, given), searches.enlist(database, study_id)
    recorded = dict(zip(given.seeds, (4, 1), strict=True))
    while studies.state(database, study_id) == "running":
        proposer.advance()
        for job in jobs.claim(database, study_id, worker, 8, 60):
            values, _ = world.run(job.densities[5], recorded[job.seed])
            found: list[Entry] = []
            ended = False
            for rung, value in zip((1, 2, 4), values.tolist(), strict=True):
                if np.isnan(value):
                    if found:
                        ledger.record(database, worker, found, finished=[])
                    jobs.fail(database, job.claim, "loss nan", "diverged")
                    ended = True
                    break
                found.append(Entry(job_id=job.id, rung=rung, value=value, extra={}, seconds=rung))
                if value < job.bars.get(rung, value):
                    ledger.record(database, worker, found, finished=[], cut=[job.id])
                    ended = True
                    break
            if not ended:
                ledger.record(database, worker, found, finished=[job.id])

    trials, rows = searches.contents(database, study_id)

    known, measured, _ = simulated(world, given, workers=3)
    assert [(t.number, t.densities, t.state) for t in trials] == known
    assert sorted((r.trial, r.seed, r.rung, r.value) for r in rows) == measured
    assert {t.state for t in trials} == {"complete", "pruned", "failed"}


def test_more_workers_find_the_same_sooner() -> None:
    world = made()
    given = config(world, "random")
    alone, many = simulated(world, given, 1), simulated(world, given, 4)
    assert alone[:2] == many[:2]
    assert many[2] < alone[2] / 2


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_at_what_was_trained_a_job_repeats_its_record(kernel_size: int) -> None:
    world = made(kernel_size)
    for place, den in enumerate(world.surface.densities.tolist()):
        for seed in range(SEEDS):
            values, _ = world.run(den, seed)
            np.testing.assert_allclose(values, world.surface.values[place, seed], atol=1e-9)
    assert world.best >= max(world.effect(den) for den in world.surface.densities.tolist()) - 1e-9
    assert world.effect((1.0,) * (kernel_size // 2)) == 0


def test_the_truth_is_closer_to_what_was_drawn_than_the_means_are() -> None:
    world = made(points=60, seeds=4)
    drawn = height(world.surface.densities) - height(np.ones((1, 2)))
    means = world.surface.values[:, :, -1].mean(axis=1)
    truths = np.array([world.effect(den) for den in world.surface.densities.tolist()])
    assert np.std(truths - drawn) < 0.6 * np.std(means - means[0] - drawn)
    (top,) = np.flatnonzero(drawn == drawn.max())
    assert world.effect(world.surface.densities[top].tolist()) > world.best - 0.2


def test_regret_falls_and_holds_until_something_else_is_found() -> None:
    world = made()
    given = config(world, "tpe", trials=200)
    run = replay.replicate(world, given, workers=2, budget=200.0)
    assert run.at(0.0, before=9.0) == 9.0
    assert run.at(200.0, before=9.0) == run.regret[-1] >= 0
    assert run.at(200.0, before=9.0) < run.regret[0]
    again = replay.replicate(world, given, workers=2, budget=200.0)
    assert (again.spent, again.regret) == (run.spent, run.regret)
