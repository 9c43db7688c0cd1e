"""The speed benchmarks: what is timed goes on as long as they ask; dead processes are seen."""

import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import precision
import pytest
import throughput
import torch
from helpers import cases
from helpers.cases import Case

from optimizer.config import study_file
from workers.training import capture, packing
from workers.training.slots import Slots

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Case:
    """A case of two steps an epoch and two epochs."""
    monkeypatch.setitem(cases._SHAPES, "dncnn", (2, 3, 8))
    monkeypatch.setattr(packing, "SECONDS", 0.01)
    return Case("dncnn", 3, images=16, epochs=2)


def test_the_engine_is_timed_for_longer_than_a_job_takes(small: Case) -> None:
    step = throughput.densitune_step(small, CPU)
    assert [step() for _ in range(23)] == [1] * 23


def test_the_rival_trains_with_the_loaders_that_it_is_told(small: Case) -> None:
    problem = throughput.plain_problem(small, CPU)
    for workers in (1, 0):
        step = throughput.plain_loop(problem, small, workers)
        assert problem.loader_workers == workers
        assert [step() for _ in range(5)] == [1] * 5


def test_the_rival_is_timed_with_the_loaders_that_are_fastest(
    small: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    speeds = {2: 1.0, 8: 3.0, 15: 2.0}
    monkeypatch.setattr(throughput, "loader_workers", lambda device: list(speeds))

    problems: list[Any] = []

    def loop(problem: Any, case: Case, workers: int) -> int:
        problems.append(problem)
        asked.append(workers)
        return workers

    monkeypatch.setattr(throughput, "plain_loop", loop)
    monkeypatch.setattr(throughput, "_rate", lambda step, seconds: speeds[step])
    chosen: Any = throughput.plain_step(small, CPU)
    assert chosen == 8
    assert asked == [2, 8, 15, 8]
    assert all(problem is problems[0] for problem in problems)  # its data are prepared once


@pytest.mark.parametrize(
    ("kind", "cores", "expected"),
    [("cpu", 2, [0, 1, 2]), ("cuda", 16, [2, 8, 15]), ("cuda", 12, [2, 8]), ("cuda", 2, [2])],
)
def test_a_gpu_s_rival_has_loaders_for_the_cores_there_are(
    monkeypatch: pytest.MonkeyPatch, kind: str, cores: int, expected: list[int]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert throughput.loader_workers(torch.device(kind)) == expected


def test_a_process_that_dies_ends_the_benchmark_and_leaves_none_behind() -> None:
    make: Any = operator.truediv  # of a case and a device: a TypeError
    with throughput.Crew(make, "cpu", 1) as crew:
        with pytest.raises(SystemExit, match="a process has died"):
            crew.load(Case("dncnn", 3))
        [process] = crew._processes
    assert not process.is_alive()


def test_float32_is_trained_without_capture_and_the_rest_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, as a pool has it: what one job sets must not last."""
    monkeypatch.setenv("DENSITUNE_HOME", str(tmp_path))
    given = study_file.parse(
        {
            "name": "small", "task": "photos",
            "data": {"patch": 8, "patches_per_image": 1, "crop": 16},
            "proxy": {"family": "dncnn", "width": 2, "depth": 3},
            "kernel_size": 3, "training": {"budget": 1, "batch_size": 4, "lr": 0.001},
            "search": {"trials": 5},
        },
        origin="test",
    )  # fmt: skip
    seen: list[bool] = []

    def slots(*args: Any, captured: bool) -> Slots:
        seen.append(captured)
        return Slots(*args, captured=captured)

    monkeypatch.setattr(precision, "Slots", slots)
    for kind in ("full", "bfloat16"):
        precision.trained(given, "cpu", (kind, {3: (0.5,)}, 0))
    assert seen == [False, True]
    assert capture.EAGER_STEPS == 3
