"""An extension: a decided study gets more fresh seeds, once, and what is better stays better."""

from typing import Any

import pytest
from sqlalchemy import Engine
from support.simulated import go_on, noise, run, small

from optimizer.cli import session
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from optimizer.snapshot import Snapshot
from storage import studies
from storage.jobs import ClaimedJob


def structured(job: ClaimedJob) -> bool:
    """Whether a job has a density below 1, and not a uniform mask."""
    return job.densities[3][0] < 0.9 and job.arm["mask"] == "density"


def weakly(job: ClaimedJob) -> float:
    """Densities below 1 help a little: half a standard deviation of a paired difference."""
    return 30 + 0.5 * structured(job) + noise(job, 1.0)


def strongly(job: ClaimedJob) -> float:
    return 30 + 5.0 * structured(job) + noise(job, 1.0)


def given(seeds: int, **changes: Any) -> StudyConfig:
    return small(confirm={"finalists": 2, "seeds": seeds, "batch": 8, "keep": []}, **changes)


def launch(engine: Engine, config: StudyConfig, fingerprint: str = "print") -> Any:
    """What `launch` does with a study that exists."""
    return session.create(engine, config, "none", fingerprint, "full", dict)


def extended(engine: Engine, seeds: int) -> Snapshot:
    config = given(seeds)
    return go_on(engine, _reopened(engine, config), config, weakly)


def _reopened(engine: Engine, config: StudyConfig) -> int:
    study = launch(engine, config)
    studies.go_on(engine, study.id, None, force=False)
    return int(study.id)


def test_an_extended_study_goes_on_with_the_seeds_that_it_has(database: Engine) -> None:
    before = run(database, given(16), weakly)
    assert "better" not in {one.verdict for one in before.verdicts}
    after = extended(database, 96)
    assert after.study.state == "finished"
    assert after.config.confirm.seeds == 96
    old = {(row.trial, row.seed): row.value for row in before.confirm.rows}
    new = {(row.trial, row.seed): row.value for row in after.confirm.rows}
    assert old.items() < new.items()
    assert len(new) == len(after.confirm.rows)
    assert after.rows == before.rows
    trained = [len(one.to_identity.by_seed) for one in after.verdicts if one.to_identity]
    assert all(count % 8 == 0 for count in trained)
    assert max(trained) > 16
    assert any("Confirmed with 16 seeds, then extended to 96" in line for line in after.cautions)
    assert not any("extended" in line for line in before.cautions)


def test_an_extended_study_ends_as_if_it_had_always_had_its_seeds(database: Engine) -> None:
    """Nothing was better before, so all is judged by the larger plan alone."""
    run(database, given(16), weakly)
    after = extended(database, 96)
    calm = run(database, given(96, name="calm"), weakly)
    assert [one.verdict for one in after.verdicts] == [one.verdict for one in calm.verdicts]
    assert after.study.verdicts == calm.study.verdicts


def test_what_was_better_stays_so_and_is_not_trained_again(database: Engine) -> None:
    def one_of_two(job: ClaimedJob) -> float:
        gains = {0.75: 5.0, 0.7: 1.0}
        gain = gains.get(job.densities[3][0], 0.0) * structured(job)
        return 30 + gain + noise(job, 1.0)

    before = run(database, given(16), one_of_two)
    better = [one for one in before.verdicts if one.verdict == "better"]
    assert 0 < len(better) < len(before.verdicts)
    config = given(48)
    after = go_on(database, _reopened(database, config), config, one_of_two)
    assert [one for one in after.verdicts if one.trial == better[0].trial] == better


def test_only_a_finished_study_with_something_open_is_extended_and_once(database: Engine) -> None:
    run(database, given(16), strongly)
    with pytest.raises(UsageError, match="every finalist is better"):
        launch(database, given(32))
    open_one = {"name": "open"}
    run(database, given(16, **open_one), weakly)
    with pytest.raises(UsageError, match=r"another config \(confirm.seeds: 16 -> 8\)"):
        launch(database, given(8, **open_one))
    with pytest.raises(UsageError, match="could not be compared"):
        launch(database, given(32, **open_one), fingerprint="other data")
    more_trials = given(32, **open_one, search={"trials": 9})
    with pytest.raises(UsageError, match=r"search.trials: 7 -> 9"):
        launch(database, more_trials)
    launch(database, given(32, **open_one))
    with pytest.raises(UsageError, match="is stopped at phase confirm"):
        launch(database, given(48, **open_one))
    config = given(32, **open_one)
    go_on(database, _reopened(database, config), config, weakly)
    with pytest.raises(UsageError, match="was extended once"):
        launch(database, given(48, **open_one))
