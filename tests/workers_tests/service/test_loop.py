"""The worker loop with real training of tiny networks on the packaged photographs."""

import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, create_engine, text
from support.queued import EXPIRE, set_state, unruled
from support.shell import query
from support.stations import Station, add, contents, make_bench, make_config, without_time, work
from support.waiting import wait_for

from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from storage import jobs, retry, studies
from storage.errors import StorageUnreachableError
from workers.service import heartbeat, pack
from workers.service.shift import Shift
from workers.training import devices
from workers.training.scores import Score
from workers.training.tasks import Draws, Task

HERE = re.escape(devices.describe(torch.device("cpu")))


def test_every_job_is_measured_at_every_rung(database: Engine, cache: Path) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0, 0.5])
    assert work(database, bench) == 4
    done, rows = contents(database, bench)
    assert [(trial.done, trial.failed) for trial in done] == [(2, 0), (2, 0)]
    assert [(row.trial, row.seed, row.rung) for row in rows] == [
        (trial, seed, rung) for trial in (0, 1) for seed in (0, 1) for rung in (1, 2)
    ]
    assert all("ssim" in row.extra and row.seconds > 0 for row in rows)


def test_a_pack_measures_what_single_jobs_measure(database: Engine, cache: Path) -> None:
    alone = make_bench(database, make_config(), cache)
    add(database, alone, [1.0, 0.5])
    work(database, alone)
    packed_config = make_config().model_copy(update={"name": "packed"})
    packed = make_bench(database, packed_config, cache)
    add(database, packed, [1.0, 0.5])
    assert work(database, packed, pack=3) == 4
    assert without_time(contents(database, alone)[1]) == without_time(contents(database, packed)[1])


def test_a_diverged_job_is_failed_and_the_worker_goes_on(database: Engine, cache: Path) -> None:
    bench = make_bench(database, make_config(lr=1e30), cache)
    add(database, bench, [1.0, 0.5])
    assert work(database, bench, pack=2) == 4
    done, _ = contents(database, bench)
    assert all(trial.failed == 2 for trial in done)
    assert done[0].error_text is not None
    assert "diverged" in done[0].error_text


def test_jobs_below_their_bar_are_cut_and_others_take_their_place(
    database: Engine, cache: Path
) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0, 0.5, 0.7])
    with database.begin() as connection:
        bars = text("""UPDATE densitune.jobs SET bars = '{"1": 1e9}' WHERE trial = 1""")
        connection.execute(bars)
    assert work(database, bench, pack=2) == 6
    done, rows = contents(database, bench)
    assert [(trial.done, trial.cut) for trial in done] == [(2, 0), (0, 2), (2, 0)]
    assert [row.rung for row in rows if row.trial == 1] == [1, 1]


class Cramped:
    """A task on a device with memory for so many jobs: a real one with a limit that is made up."""

    def __init__(self, inner: Task, limit: int) -> None:
        self._inner, self._limit = inner, limit
        self._in_training: weakref.WeakSet[Draws] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._inner)

    def batch(self, chosen: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        self._in_training.add(draws)
        if len(self._in_training) > self._limit:
            raise torch.OutOfMemoryError("out of memory")
        return self._inner.batch(chosen, draws)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self._inner.loss(outputs, targets)

    def evaluate(self, network: torch.nn.Module) -> Score:
        return self._inner.evaluate(network)

    def untrained(self) -> torch.nn.Module:
        return self._inner.untrained()

    def floor(self) -> float:
        return self._inner.floor()


def test_a_pack_that_does_not_fit_is_halved_and_no_job_fails(
    database: Engine, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_bench(database, make_config(), cache)
    add(database, whole, [1.0, 0.5, 0.7, 0.9])
    task = Cramped(whole.bench.task, limit=2)  # what has ended must be gone when another joins
    work(database, whole.with_task(task), pack=8)
    done, rows = contents(database, whole)
    assert [(trial.done, trial.failed) for trial in done] == [(2, 0)] * 4
    halved = [r.getMessage() for r in caplog.records if "going on with" in r.getMessage()]
    assert halved == [
        "a pack of 8 does not fit into memory; going on with 4",
        "a pack of 4 does not fit into memory; going on with 2",
    ]
    alone = make_bench(database, make_config().model_copy(update={"name": "alone"}), cache)
    add(database, alone, [1.0, 0.5, 0.7, 0.9])
    work(database, alone)
    assert without_time(contents(database, alone)[1]) == without_time(rows)


@pytest.mark.parametrize("pack", [1, 4, None])
def test_a_device_too_small_for_one_job_ends_the_worker_and_blames_no_density(
    database: Engine, cache: Path, pack: int | None
) -> None:
    whole = make_bench(database, make_config(), cache)
    add(database, whole, [1.0, 0.5])
    bench = whole.with_task(Cramped(whole.bench.task, limit=0))
    with pytest.raises(
        StudyFailedError, match=f"a single job does not fit into the memory of {HERE}"
    ) as caught:
        work(database, bench, pack=pack)
    assert caught.value.exit_code == 1  # 2 ends a Job of Kubernetes for all nodes
    done, rows = contents(database, whole)
    assert [(trial.waiting, trial.failed) for trial in done] == [(2, 0), (2, 0)]
    assert rows == []


def test_the_size_of_a_pack_is_measured_and_told(
    database: Engine, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])
    with caplog.at_level(logging.INFO, "densitune"):
        assert work(database, bench, pack=None) == 2
    (found,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("pack of")]
    assert "jobs/hour by size of the pack: 1: " in found


class Fragile:
    """A task whose batches fail for one seed's order of items, as a broken device might."""

    def __init__(self, inner: Task, bad_seed: int) -> None:
        self._inner, self._bad = inner, bad_seed

    def __len__(self) -> int:
        return len(self._inner)

    def batch(self, chosen: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        bad = Draws(self._bad, chosen.device)
        if draws.augmentation.initial_seed() == bad.augmentation.initial_seed():
            raise RuntimeError("the device has caught fire")
        return self._inner.batch(chosen, draws)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self._inner.loss(outputs, targets)

    def evaluate(self, network: torch.nn.Module) -> Score:
        return self._inner.evaluate(network)


@pytest.mark.parametrize("pack", [1, 4])
def test_an_exception_fails_the_job_that_raises_it_alone(
    database: Engine, cache: Path, pack: int
) -> None:
    whole = make_bench(database, make_config(), cache)
    bench = whole.with_task(Fragile(whole.bench.task, 1))
    add(database, bench, [1.0, 0.5])
    work(database, bench, pack=pack)
    done, rows = contents(database, bench)
    assert [(trial.done, trial.failed) for trial in done] == [(1, 1), (1, 1)]
    assert done[0].error_text == "RuntimeError: the device has caught fire"
    assert {row.seed for row in rows} == {0}


@dataclass
class Watched:
    """A real task that calls `on_batch` with the number of the batch before each, from 1 on."""

    inner: Task
    on_batch: Callable[[int], object]
    batches: int = 0

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, chosen: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches += 1
        self.on_batch(self.batches)
        return self.inner.batch(chosen, draws)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.inner.loss(outputs, targets)

    def evaluate(self, network: torch.nn.Module) -> Score:
        return self.inner.evaluate(network)

    def untrained(self) -> torch.nn.Module:
        return self.inner.untrained()

    def floor(self) -> float:
        return self.inner.floor()


def named(name: str, budget: int = 2) -> StudyConfig:
    return make_config(budget=budget).model_copy(update={"name": name})


def undisturbed(
    engine: Engine, cache: Path, densities: list[float]
) -> tuple[list[tuple[Any, ...]], int]:
    """What an undisturbed worker measures, and in how many batches."""
    alone = make_bench(engine, named("undisturbed"), cache)
    add(engine, alone, densities)
    task = Watched(alone.bench.task, lambda _: None)
    work(engine, alone.with_task(task))
    return without_time(contents(engine, alone)[1]), task.batches


@pytest.mark.parametrize("pack", [1, 3])
def test_who_goes_on_from_checkpoints_measures_the_same_and_trains_nothing_twice(
    database: Engine, cache: Path, pack: int
) -> None:
    expected, batches = undisturbed(database, cache, [1.0, 0.5])
    bench = make_bench(database, named("preempted"), cache)
    add(database, bench, [1.0, 0.5])
    trained = 0
    for limit in (batches // 3, batches // 4 + 1, batches):
        stop = threading.Event()

        def on_batch(number: int, stop: threading.Event = stop, limit: int = limit) -> None:
            if number >= limit:
                stop.set()

        task = Watched(bench.bench.task, on_batch)
        work(database, bench.with_task(task), pack=pack, stop=stop)
        trained += task.batches
        states = [(t.running, t.failed) for t in contents(database, bench)[0]]
        assert states == [(0, 0), (0, 0)]
        if limit < batches:
            assert len(bench.checkpoints()) == pack
    assert trained == batches
    assert without_time(contents(database, bench)[1]) == expected
    assert bench.checkpoints() == []


def interrupted(engine: Engine, bench: Station, after: int) -> None:
    """Work for so many batches."""
    stop = threading.Event()
    task = Watched(bench.bench.task, lambda number: stop.set() if number >= after else None)
    work(engine, bench.with_task(task), stop=stop)


def test_who_cannot_read_the_checkpoints_starts_again(database: Engine, cache: Path) -> None:
    expected, batches = undisturbed(database, cache, [1.0])
    bench = make_bench(database, named("preempted"), cache)
    add(database, bench, [1.0])
    interrupted(database, bench, after=3)
    elsewhere = replace(bench, folder=bench.folder / "of another host")
    task = Watched(bench.bench.task, lambda _: None)
    work(database, elsewhere.with_task(task))
    assert task.batches == batches
    assert without_time(contents(database, bench)[1]) == expected


def test_a_measurement_that_was_lost_comes_with_the_checkpoint(
    database: Engine, cache: Path
) -> None:
    """As when it is in the spool of a host that is gone."""
    expected, batches = undisturbed(database, cache, [1.0])
    bench = make_bench(database, named("preempted"), cache)
    add(database, bench, [1.0])
    interrupted(database, bench, after=batches // 4 + 1)  # an epoch of the first job, and a step
    with database.begin() as connection:
        deleted = connection.execute(text(
            "DELETE FROM densitune.measurements WHERE job_id IN "
            "(SELECT id FROM densitune.jobs WHERE study_id = :study)"
        ), {"study": bench.study_id})  # fmt: skip
        assert deleted.rowcount == 1
    work(database, bench)
    assert without_time(contents(database, bench)[1]) == expected


def test_what_cannot_be_saved_is_handed_back_without(
    database: Engine, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = undisturbed(database, cache, [1.0])
    bench = make_bench(database, named("preempted"), cache)
    add(database, bench, [1.0])
    (bench.folder / "checkpoints").write_text("a file where the folder should be")
    interrupted(database, bench, after=3)
    assert "trial 0 seed 0 is not saved" in caplog.text
    assert contents(database, bench)[0][0].waiting == 2
    work(database, bench)
    assert without_time(contents(database, bench)[1]) == expected


def test_a_stopped_study_ends_training_and_goes_on_from_there(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    expected, batches = undisturbed(database, cache, [1.0])
    bench = make_bench(database, named("stopped"), cache)
    add(database, bench, [1.0])
    first: list[Watched] = []

    def stop_and_wait(number: int) -> None:
        if number == 2:
            set_state(database, bench.study_id, "stopped")
        if number >= 2:
            time.sleep(0.05)  # until the heart has noticed

    first.append(Watched(bench.bench.task, stop_and_wait))
    work(database, bench.with_task(first[0]))
    trial = contents(database, bench)[0][0]
    assert (trial.waiting, trial.running) == (2, 0)
    set_state(database, bench.study_id, "running")
    second = Watched(bench.bench.task, lambda _: None)
    work(database, bench.with_task(second))
    assert first[0].batches + second.batches == batches
    assert without_time(contents(database, bench)[1]) == expected


@pytest.mark.parametrize("event", ["deleted", "finished"])
def test_a_study_that_is_over_ends_training_and_leaves_nothing(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])

    def end_and_wait(number: int) -> None:
        if number == 2 and event == "deleted":
            with database.begin() as connection:
                studies.delete(connection, bench.study_id)
        elif number == 2:
            set_state(database, bench.study_id, "finished")
        if number >= 2:
            time.sleep(0.05)  # until the heart has noticed

    task = Watched(bench.bench.task, end_and_wait)
    assert work(database, bench.with_task(task)) == 0
    assert bench.checkpoints() == []


def test_a_lost_lease_ends_that_job_alone(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    expected, batches = undisturbed(database, cache, [1.0, 0.5])
    bench = make_bench(database, named("lost"), cache)
    add(database, bench, [1.0, 0.5])

    def lose_one(number: int) -> None:
        if number == 5:
            with database.begin() as connection:
                connection.execute(text(EXPIRE))
                connection.execute(text(
                    "UPDATE densitune.jobs SET epoch = epoch + 1, worker_id = NULL, kind = 'lost', "
                    "lease_until = now() + interval '1 h' "
                    "WHERE study_id = :study AND trial = 0 AND seed = 1"
                ), {"study": bench.study_id})  # fmt: skip
        if number >= 5:
            time.sleep(0.02)  # until the heart has noticed

    task = Watched(bench.bench.task, lose_one)
    assert work(database, bench.with_task(task), pack=4) == 3
    assert task.batches < batches
    done, rows = contents(database, bench)
    # It is another worker's now, and stays so.
    assert [(t.done, t.waiting, t.running) for t in done] == [(1, 0, 1), (2, 0, 0)]
    kept = [row for row in without_time(rows) if row[:2] != (0, 1)]
    assert kept == [row for row in expected if row[:2] != (0, 1)]


def test_a_job_that_the_worker_knows_nothing_of_is_handed_back(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the answer to a claim was lost with the connection."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])
    with Shift(database, bench.study, bench.bench.device, bench.folder) as shift:
        known, unknown = shift.claim(2)
        shift._heart.drop([unknown.claim])
        wait_for(lambda: contents(database, bench)[0][0].waiting == 1)
        beats = query(database, "SELECT seen_at FROM densitune.workers")
        wait_for(lambda: query(database, "SELECT seen_at FROM densitune.workers") != beats)
        assert not shift.lost(known)
        held = query(database, "SELECT id FROM densitune.jobs WHERE state = 'running'")
        assert held == [(known.id,)]
        shift.release([known])
        assert not shift._heart.held
    assert contents(database, bench)[0][0].waiting == 2


class Outage:
    """Takes a database away from everybody, and gives it back."""

    def __init__(self, url: str, name: str | None) -> None:
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT")
        self._name = name

    def begin(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false"))
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
                ),
                {"name": self._name},
            )

    def end(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true"))
        self._engine.dispose()


@pytest.fixture
def outage(postgres: str, database: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.05)
    made = Outage(postgres, database.url.database)
    yield made
    made.end()


@pytest.mark.parametrize(
    ("pack", "back"), [(1, "between jobs"), (4, "in training"), (4, "when all is trained")]
)
def test_an_outage_costs_no_training_and_no_measurement(
    database: Engine, cache: Path, outage: Outage, pack: int, back: str
) -> None:
    expected, batches = undisturbed(database, cache, [1.0, 0.5])
    bench = make_bench(database, named("outage"), cache)
    add(database, bench, [1.0, 0.5])
    spool = bench.folder / "spool"

    def on_batch(number: int) -> None:
        if number == 3:
            outage.begin()
        if number == batches - 1 and back == "in training":
            outage.end()

    task = Watched(bench.bench.task, on_batch)
    thread = threading.Thread(
        target=work, args=(database, bench.with_task(task)), kwargs={"pack": pack}
    )
    thread.start()
    if back != "in training":
        trainable = batches * pack // 4  # nothing more can be claimed
        wait_for(lambda: task.batches == trainable and len(list(spool.glob("*.json"))) == 2 * pack)
        outage.end()
    thread.join(60)
    assert not thread.is_alive()
    assert task.batches == batches
    assert without_time(contents(database, bench)[1]) == expected
    assert [(t.done, t.running) for t in contents(database, bench)[0]] == [(2, 0), (2, 0)]
    assert list(spool.iterdir()) == []


def test_after_the_limit_the_worker_leaves_and_the_next_one_delivers(
    database: Engine, cache: Path, outage: Outage
) -> None:
    expected, batches = undisturbed(database, cache, [1.0])
    bench = make_bench(database, named("outage"), cache)
    add(database, bench, [1.0])
    task = Watched(bench.bench.task, lambda number: outage.begin() if number == 3 else None)
    with pytest.raises(StorageUnreachableError) as caught:
        work(database, bench.with_task(task), pack=2, outage_limit=0.2)
    assert task.batches == batches
    assert str(bench.folder / "spool") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    outage.end()
    assert work(database, bench.with_task(task)) == 0
    assert task.batches == batches
    assert without_time(contents(database, bench)[1]) == expected


def test_a_signal_during_an_outage_ends_a_worker_that_waits(
    database: Engine, cache: Path, outage: Outage
) -> None:
    bench = make_bench(database, make_config(), cache)
    stop = threading.Event()

    def when_idle() -> None:
        outage.begin()
        threading.Timer(0.2, stop.set).start()

    assert work(database, bench, stop=stop, when_idle=when_idle) == 0


class Idle(threading.Event):
    """A signal that never comes, in whose time waiting takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.waited += timeout or 0.0
        return False


def test_a_worker_without_work_leaves_in_time(database: Engine, cache: Path) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])
    stop, seen = Idle(), []
    done = work(
        database, bench, stop=stop, when_idle=lambda: seen.append(stop.waited), idle_exit=60
    )
    assert done == 2
    assert seen[0] == 0  # idle time begins with the first look in vain
    assert stop.waited == pytest.approx(60, abs=1)
    assert studies.state(database, bench.study_id) == "running"


def test_a_worker_on_which_everything_fails_leaves(database: Engine, cache: Path) -> None:
    whole = make_bench(database, make_config(), cache)
    add(database, whole, [1.0, 0.5, 0.7])

    def burn(number: int) -> None:
        raise RuntimeError("the device has caught fire")

    with pytest.raises(StudyFailedError) as caught:
        work(database, whole.with_task(Watched(whole.bench.task, burn)), pack=6)
    assert "all 3 jobs that this worker has tried failed" in str(caught.value)
    assert "RuntimeError: the device has caught fire" in str(caught.value)
    done, _ = contents(database, whole)
    assert [t.running for t in done] == [0, 0, 0]
    work(database, whole)  # another worker has no trouble with them
    assert sum(t.done for t in contents(database, whole)[0]) == 6


def test_a_worker_that_has_succeeded_stays_whatever_fails(database: Engine, cache: Path) -> None:
    first_job = undisturbed(database, cache, [1.0])[1] // 2
    whole = make_bench(database, make_config(), cache)
    add(database, whole, [1.0, 0.5, 0.7, 0.9])

    def burn_later(number: int) -> None:
        if number > first_job:
            raise RuntimeError("the device has caught fire")

    work(database, whole.with_task(Watched(whole.bench.task, burn_later)))
    found, _ = contents(database, whole)
    assert [(t.done, t.failed) for t in found] == [(1, 1), (0, 2), (0, 2), (0, 2)]


def test_a_device_that_computes_no_more_ends_the_worker_and_blames_no_job(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU after an illegal access, whose process cannot use it any more."""
    assert pack._answers(torch.device("cpu"))
    assert not pack._answers(torch.device("meta"))
    monkeypatch.setattr(pack, "_answers", lambda _: False)
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])
    with pytest.raises(
        StudyFailedError, match=f"{HERE} computes no more after RuntimeError: the dev"
    ):
        work(database, bench.with_task(Fragile(bench.bench.task, 0)), pack=2)
    assert (
        query(database, "SELECT state, kind FROM densitune.jobs") == [("waiting", "preempted")] * 2
    )


def test_the_worker_is_listed_while_it_works_and_retired_after(
    database: Engine, cache: Path
) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])
    work(database, bench)
    query = text(
        "SELECT device, versions, stopped_at IS NOT NULL AS stopped FROM densitune.workers"
    )
    with database.connect() as connection:
        row = connection.execute(query).one()._mapping
    assert row["stopped"]
    assert row["versions"] == {"torch": torch.__version__}


def test_a_claimed_job_that_was_finished_by_another_is_not_counted_twice(
    database: Engine, cache: Path
) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])
    work(database, bench)
    _, rows = contents(database, bench)
    with unruled(database) as connection:
        connection.execute(
            text(
                "UPDATE densitune.jobs SET state = 'waiting', worker_id = NULL, finished_at = NULL"
            )
        )
    set_state(database, bench.study_id, "running")
    work(database, bench)
    assert contents(database, bench)[1] == rows
    assert jobs.claim(database, bench.study_id, 1, 1, 60.0) == []
