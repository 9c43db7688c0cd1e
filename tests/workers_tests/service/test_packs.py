"""Packs on a device: kept sizes, free places, and what a failed capture means for jobs."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sqlalchemy import Engine
from support.stations import Station, add, contents, make_bench, make_config, work

from optimizer.errors import StudyFailedError
from storage.jobs import ClaimedJob
from workers.service import pack
from workers.service.packs import PackSizes
from workers.training import packing
from workers.training.capture import CaptureError
from workers.training.packing import Calibration
from workers.training.slots import Slots
from workers.training.tasks import Draws


def slots_of(station: Station) -> Slots:
    bench = station.bench
    return Slots(bench.task, bench.recipe, bench.device)


# Sizes


def test_a_size_is_kept_for_what_it_was_measured_with(
    database: Engine, cache: Path, tmp_path: Path
) -> None:
    station = make_bench(database, make_config(), cache)
    slots, sizes = slots_of(station), PackSizes(tmp_path / "packs")
    assert sizes.find(slots) is None
    sizes.note(slots, 8)
    sizes.note(slots, 4)
    assert PackSizes(tmp_path / "packs").find(slots_of(station)) == 4
    others = replace(slots.recipe, batch_size=5), replace(slots.recipe, precision="bfloat16")
    for recipe in others:
        assert sizes.find(Slots(slots.task, recipe, slots.device)) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"size": 0}', '{"size": 999}', '{"size": 1.5}']
)
def test_a_size_that_makes_no_sense_is_measured_again(
    database: Engine, cache: Path, tmp_path: Path, content: str
) -> None:
    slots, sizes = slots_of(make_bench(database, make_config(), cache)), PackSizes(tmp_path)
    sizes.note(slots, 8)
    [path] = tmp_path.iterdir()
    path.write_text(content)
    assert sizes.find(slots) is None


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_the_measurement(
    database: Engine, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "packs").write_text("a file")
    slots, sizes = (
        slots_of(make_bench(database, make_config(), cache)),
        PackSizes(tmp_path / "packs"),
    )
    sizes.note(slots, 8)
    assert "the size of the pack is not kept" in caplog.text
    assert sizes.find(slots) is None


def test_the_next_worker_takes_the_size_that_is_known(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    station = make_bench(database, make_config(), cache)
    PackSizes(station.folder / "packs").note(slots_of(station), 2)
    monkeypatch.setattr(packing, "best_size", lambda slots: pytest.fail("it is known"))
    caplog.set_level("INFO", "densitune")
    add(database, station, [1.0])
    assert work(database, station, pack=None) == 2
    assert "pack of 2, as measured on this device before" in caplog.text


# Captures that fail; on a CPU there are none, so a task raises what they would


@dataclass
class Spoiling:
    """A task in whose first batch a capture fails."""

    inner: Any
    error: Exception | None

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batch(self, chosen: torch.Tensor, draws: Draws) -> Any:
        raise CaptureError("a capture could not be ended: invalidated") from self.error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), None])
def test_a_capture_that_fails_ends_the_worker_and_blames_no_job(
    database: Engine, cache: Path, error: Exception | None
) -> None:
    whole = make_bench(database, make_config(), cache)
    add(database, whole, [1.0, 0.5])
    station = whole.with_task(Spoiling(whole.bench.task, error))
    with pytest.raises(StudyFailedError, match="cannot be used by this process any longer"):
        work(database, station, pack=4)
    trials, rows = contents(database, whole)
    assert [(trial.waiting, trial.failed) for trial in trials] == [(2, 0), (2, 0)]
    assert rows == []
    # What did not fit would not fit into the next worker's memory either.
    assert PackSizes(whole.folder / "packs").find(slots_of(station)) == (2 if error else None)


def test_a_calibration_that_spoils_the_device_leaves_its_size_to_the_next_worker(
    database: Engine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make_bench(database, make_config(), cache)
    add(database, station, [1.0])
    error = CaptureError("a capture could not be ended")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory")

    def rate(slots: Slots, size: int) -> float:
        if size == 8:
            raise error
        return float(size)

    monkeypatch.setattr(packing, "step_rate", rate)
    found = packing.calibrate(lambda size: packing.step_rate(slots_of(station), size))
    assert found == Calibration(4, {1: 1.0, 2: 2.0, 4: 4.0}, full=8, error=error)
    monkeypatch.setattr(packing, "best_size", lambda slots: found)
    monkeypatch.setattr(PackSizes, "note", lambda sizes, slots, size: noted.append(size))
    noted: list[int] = []
    with pytest.raises(StudyFailedError, match="the next worker takes 4"):
        work(database, station, pack=None)
    assert contents(database, station)[0][0].waiting == 2


# Free places


def test_a_free_place_is_offered_soon_and_then_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, looks = 0.0, list[float]()
    monkeypatch.setattr(pack, "time", SimpleNamespace(monotonic=lambda: clock))

    def claim_more(count: int, phase: str) -> list[Any]:
        assert (count, phase) == (2, "search")  # a pack is of one phase
        looks.append(clock)
        return []

    shift = SimpleNamespace(claim_more=claim_more)
    place: Any = SimpleNamespace(shift=shift, stop=threading.Event())
    held = ClaimedJob(
        id=1, fence=1, phase="search", trial=0, densities={3: (1.0,)}, arm={}, seed=0, budget=1,
        bars={},
    )  # fmt: skip
    waiting = pack._Pack(place, [held], places=3)
    for tick in range(400):
        clock = tick / 100
        assert waiting._refill() == []
    assert looks == [0.05, 0.10, 0.20, 0.40, 0.80, 1.60, 2.60, 3.60]
    place.stop.set()
    clock = 100.0
    waiting._refill()
    assert len(looks) == 8
