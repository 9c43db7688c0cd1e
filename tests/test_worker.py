"""The worker loop with real training of tiny networks on the packaged photographs."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from sqlalchemy import Engine, text

from optimizer import config
from optimizer.config import StudyConfig
from optimizer.errors import UsageError
from storage import jobs, ledger, studies, trials
from storage.ledger import LedgerRow
from storage.trials import TrialRow
from workers import heartbeat, preparation, worker
from workers.tasks import Draws, Score, Task
from workers.worker import Bench


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_config(lr: float = 1e-3, budget: int = 2) -> StudyConfig:
    return config.parse(
        {
            "name": "work",
            "task": "photos",
            "data": {"patch": 8, "patches_per_image": 2, "crop": 16},
            "proxy": {"family": "dncnn", "width": 4, "depth": 3},
            "kernel_size": 3,
            "training": {"budget": budget, "batch_size": 4, "lr": lr},
            "search": {"trials": 5, "rungs": [1]},
        },
        origin="test",
    )


def make_bench(engine: Engine, given: StudyConfig, cache: Path) -> Bench:
    """A study with one trial for each density, and what is needed to work for it."""
    bank = preparation.bank(given.data, cache)
    study, _ = studies.create(engine, given.name, given.document(), bank.fingerprint, {})
    device = torch.device("cpu")
    task, recipe = (
        preparation.task(given, bank, device),
        preparation.recipe(given, bank, "full"),
    )
    return Bench(study.id, task, recipe, device)


def add(engine: Engine, bench: Bench, densities: list[float], budget: int = 2) -> None:
    with engine.begin() as connection:
        for number, value in enumerate(densities):
            trials.add(
                connection,
                bench.study_id,
                number=number,
                optuna_number=number,
                role="candidate",
                label=str(value),
                densities={3: (value,)},
                seeds=[0, 1],
                budget=budget,
            )


def contents(engine: Engine, bench: Bench) -> tuple[list[TrialRow], list[LedgerRow]]:
    with engine.connect() as connection:
        return trials.all_of(connection, bench.study_id), ledger.read(connection, bench.study_id)


def work(engine: Engine, bench: Bench, *, pack: int | None = 1) -> int:
    """Work until the queue is empty."""
    return worker.work(
        engine,
        bench,
        pack=pack,
        stop=threading.Event(),
        when_idle=lambda: studies.set_state(engine, bench.study_id, "finished"),
    )


def without_time(rows: list[LedgerRow]) -> list[tuple[object, ...]]:
    return [(row.trial, row.seed, row.rung, row.value, row.extra) for row in rows]


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
    assert done[0].error is not None
    assert "diverged" in done[0].error


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

    def floor(self) -> float:
        return self._inner.floor()


def test_a_pack_that_does_not_fit_is_halved_and_no_job_fails(
    database: Engine, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_bench(database, make_config(), cache)
    add(database, whole, [1.0, 0.5, 0.7, 0.9])
    task = Cramped(whole.task, limit=2)  # what has ended must be gone when another joins
    work(database, Bench(whole.study_id, task, whole.recipe, whole.device), pack=8)
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
    bench = Bench(whole.study_id, Cramped(whole.task, limit=0), whole.recipe, whole.device)
    with pytest.raises(UsageError, match="a single job does not fit into the memory of CPU"):
        work(database, bench, pack=pack)
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
        if draws.order.initial_seed() == Draws(self._bad, chosen.device).order.initial_seed():
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
    bench = Bench(whole.study_id, Fragile(whole.task, 1), whole.recipe, whole.device)  # type: ignore[arg-type]
    add(database, bench, [1.0, 0.5])
    work(database, bench, pack=pack)
    done, rows = contents(database, bench)
    assert [(trial.done, trial.failed) for trial in done] == [(1, 1), (1, 1)]
    assert done[0].error == "RuntimeError: the device has caught fire"
    assert {row.seed for row in rows} == {0}


def test_a_signal_hands_unfinished_jobs_back(database: Engine, cache: Path) -> None:
    bench = make_bench(database, make_config(budget=10_000), cache)
    add(database, bench, [1.0], budget=10_000)
    stop = threading.Event()
    loop = threading.Thread(
        target=worker.work,
        args=(database, bench),
        kwargs={"pack": 1, "stop": stop, "when_idle": lambda: None},
    )
    loop.start()
    wait_for(lambda: contents(database, bench)[0][0].running == 1)
    stop.set()
    loop.join(20)
    assert not loop.is_alive()
    trial = contents(database, bench)[0][0]
    assert (trial.waiting, trial.running) == (2, 0)


@pytest.mark.parametrize("event", ["study stopped", "lease lost"])
def test_work_ends_when_the_study_stops_or_the_lease_is_lost(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    bench = make_bench(database, make_config(budget=10_000), cache)
    add(database, bench, [1.0], budget=10_000)
    loop = threading.Thread(
        target=worker.work,
        args=(database, bench),
        kwargs={"pack": 2, "stop": threading.Event(), "when_idle": lambda: None},
    )
    loop.start()
    wait_for(lambda: contents(database, bench)[0][0].running == 2)
    if event == "study stopped":
        studies.set_state(database, bench.study_id, "stopped")
    else:
        with database.begin() as connection:
            connection.execute(
                text("UPDATE densitune.jobs SET epoch = epoch + 1, worker_id = NULL")
            )
        studies.set_state(database, bench.study_id, "stopped")
    loop.join(20)
    assert not loop.is_alive()
    trial = contents(database, bench)[0][0]
    if event == "study stopped":
        assert (trial.waiting, trial.running) == (2, 0)
    else:  # they are another worker's now, and stay so
        assert (trial.waiting, trial.running) == (0, 2)


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
        row: Mapping[str, object] = connection.execute(query).one()._mapping
    assert row["stopped"]
    assert row["versions"] == {"torch": torch.__version__}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_claimed_job_that_was_finished_by_another_is_not_counted_twice(
    database: Engine, cache: Path
) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [1.0])
    work(database, bench)
    _, rows = contents(database, bench)
    with database.begin() as connection:
        connection.execute(text("UPDATE densitune.jobs SET state = 'waiting'"))
    studies.set_state(database, bench.study_id, "running")
    work(database, bench)
    assert contents(database, bench)[1] == rows
    assert jobs.claim(database, bench.study_id, 1, 1, 60.0) == []
