"""Training scripts that behave, and those that do not: each costs its own job and no more."""

import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.waiting import wait_for

from optimizer import arms
from optimizer.arms import Arm
from optimizer.errors import StudyFailedError
from workers import entries
from workers.scripts import stage as stages
from workers.scripts.process import ScriptError
from workers.scripts.script import Script
from workers.scripts.stage import Stage
from workers.training.loop import StoppedError
from workers.training.member import DivergedError, State
from workers.training.recipe import Job, Measurement

CPU = torch.device("cpu")
IDENTITY = arms.identity([3], None, "model")
SCRIPT = """
import ctypes, os, pathlib, random, resource, signal, subprocess, sys, threading, time
import numpy, torch, densitune

HERE = pathlib.Path(__file__).parent
held = []

def train(run):
    model = run.apply(torch.nn.Conv2d(1, 1, 3))
    if (HERE / "again").exists():
        state = run.resume() or {"sum": 0.0}
    else:
        state = {"sum": 0.0}
    total = state["sum"]
    for epoch in run.epochs():
        total += random.random() + float(numpy.random.rand()) + float(torch.rand(()))
        total += model(torch.ones(1, 1, 4, 4)).float().abs().sum().item()
        BEHAVIOUR.get(run.seed, lambda run: None)(run)
        run.checkpoint({"sum": total})
        value = {5: float("nan"), 18: 2e6, 23: -2e6}.get(run.seed, total)
        run.report(epoch, value, test=lambda: float("nan") if run.seed == 20 else -total)
    if run.seed == 21:
        time.sleep(1000)

def prints(run):
    line = b"x" * 2**20
    for _ in range(2**10):
        os.write(1, line)

def starts(run):
    started = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    (HERE / "started").write_text(f"{os.getpid()} {started.pid}")

def hangs(run):
    starts(run)
    time.sleep(1000)

def raises(run):
    raise KeyError("a fault\\nof mine")

def ends(run):
    raise densitune.link.Ended

def data(run):
    open("/nowhere/at/all")

def sets(run):
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    torch.set_autocast_enabled("cpu", True)
    torch.set_anomaly_enabled(True)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 2)
    os.environ["LEFT"] = "1"
    sys.path.insert(0, "/left")
    run.report(1, -5.0)

def leaves(run):
    threading.Thread(target=time.sleep, args=(1000,), name="mine", daemon=True).start()

def full(run):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))

def pretends(run):
    for number in range(3, 20):
        try:
            os.write(number, b'{"memory": 5, "behind": ""}\\n')
        except OSError:
            pass

def unleashed(run):
    starts(run)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)

BEHAVIOUR = {
    1: raises,
    2: lambda run: ctypes.string_at(0),
    3: lambda run: os._exit(3),
    4: hangs,
    6: prints,
    7: lambda run: torch.empty(2**60),
    8: lambda run: os.kill(os.getpid(), signal.SIGKILL),
    9: lambda run: held.append(bytearray(os.urandom(2**20) * 64)),
    10: lambda run: sys.exit(0),
    11: data,
    12: lambda run: run.report(1, "much"),
    13: hangs,
    14: sets,
    15: leaves,
    16: lambda run: os.fork(),
    17: pretends,
    19: full,
    22: unleashed,
    24: ends,
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = tmp_path_factory.mktemp("script")
    (chosen / "ill.py").write_text(SCRIPT)
    return chosen


@pytest.fixture(scope="module")
def make(folder: Path) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def one(**changes: Any) -> Stage:
        found = entries.find("ill:train", folder)
        script = Script(
            name=found.name, fingerprint=found.fingerprint, init="model", lr=None, rungs=(1, 2),
            is_lower_better=False, floor=-1.0, warm=True, patience=60.0,
        )  # fmt: skip
        every = changes.pop("every", 0.0)
        made.append(Stage(replace(script, **changes), found, CPU, every=every))
        return made[-1]

    yield one
    for stage in made:
        stage.close()


@dataclass
class Told:
    """What a stage has told of its jobs, by number."""

    made: dict[int, list[Measurement]] = field(default_factory=dict)
    failed: dict[int, Exception] = field(default_factory=dict)
    saved: dict[int, State] = field(default_factory=dict)

    def values(self, number: int) -> list[float]:
        return [one.score.value for one in self.made[number]]


def trained(stage: Stage, *jobs: Job, **callbacks: Any) -> Told:
    told = Told()
    stage.train(
        jobs,
        on_rung=lambda number, one: told.made.setdefault(number, []).append(one),
        on_failure=lambda number, error: told.failed.update({number: error}),
        **callbacks,
    )
    return told


def job(seed: int, arm: Arm = IDENTITY, **changes: Any) -> Job:
    return replace(Job(arm, seed, 2), **changes)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


SEEDS = (100, 1, 2, 3, 5, 6, 7, 8, 8, 10, 11, 12, 23, 24, 17, 18, 100)


@pytest.fixture(scope="module")
def ordeal(make: Callable[..., Stage]) -> Told:
    """A healthy job, then one after another of those that are not, and the first one again."""
    return trained(make(), *map(job, SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kind", "said"),
    [
        (1, ScriptError, r"^KeyError: .*a fault.*of mine.* \(ill.py, line \d+\)$"),
        (2, ScriptError, r"^its process ended by signal 11 \(SIGSEGV\)$"),
        (3, ScriptError, r"^its process ended with exit code 3$"),
        (5, DivergedError, r"^diverged: reported nan after 1 epochs$"),
        (7, MemoryError, r"^RuntimeError: .*DefaultCPUAllocator"),
        (10, ScriptError, r"^SystemExit: 0; a script has no command .* \(ill.py, line \d+\)$"),
        (11, OSError, r"^FileNotFoundError: .*/nowhere/at/all"),
        (12, ScriptError, r"^ValueError: run.report takes a number, not 'much' \(ill.py"),
        (17, ScriptError, r"^its process said b.*behind"),
        (18, ScriptError, r"^reported 2e\+06 after 1 epochs; a metric lies between"),
        (23, DivergedError, r"^diverged: reported -2e\+06 after 1 epochs$"),
        (24, ScriptError, r"^its process was done with a job that had not ended$"),
    ],
)
def test_a_script_that_fails_costs_its_job(
    ordeal: Told, seed: int, kind: type[Exception], said: str
) -> None:
    number = SEEDS.index(seed)
    failure = ordeal.failed[number]
    assert type(failure) is kind
    assert number not in ordeal.made
    with pytest.raises(kind, match=said):
        raise failure


@pytest.mark.slow
def test_the_next_job_is_trained_as_if_nothing_had_been(ordeal: Told) -> None:
    last = len(SEEDS) - 1
    assert len(ordeal.values(0)) == 2
    assert ordeal.values(last) == ordeal.values(0)


@pytest.mark.slow
def test_a_gigabyte_of_prints_is_no_more_than_prints(ordeal: Told) -> None:
    assert len(ordeal.values(SEEDS.index(6))) == 2


@pytest.mark.slow
def test_what_the_kernel_kills_lacked_memory_and_twice_it_is_the_job_s_own_fault(
    ordeal: Told,
) -> None:
    first = SEEDS.index(8)
    assert type(ordeal.failed[first]) is MemoryError
    assert type(ordeal.failed[first + 1]) is ScriptError
    assert "memory is full" in str(ordeal.failed[first + 1])


@pytest.mark.slow
def test_a_script_that_hangs_is_ended_with_all_that_it_has_started(
    make: Callable[..., Stage], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed, said in (
        (4, "the script was silent for 8 s"),
        (22, "what watches over its process was killed"),
    ):
        told = trained(make(patience=8.0), job(seed))
        assert str(told.failed[0]).startswith(said)
        pids = [int(pid) for pid in (folder / "started").read_text().split()]
        wait_for(lambda: not any(map(is_alive, pids)), 20)  # noqa: B023


@pytest.mark.slow
def test_what_a_job_leaves_behind_does_not_reach_the_next(
    make: Callable[..., Stage], ordeal: Told, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings are put back in the same process; threads and processes end with theirs."""
    stage = make()
    usual = ordeal.values(0)
    process: Any = None
    cut = trained(stage, job(14, bars={1: 0.0}))
    assert [one.ending for one in cut.made[0]] == ["cut"]
    process = stage._process
    assert trained(stage, job(100)).values(0) == usual
    assert stage._process is process
    full = trained(stage, job(19))
    assert len(full.values(0)) == 2
    assert "a checkpoint could not be written: [Errno 27] File too large" in caplog.text
    for seed, left in ((15, "thread mine"), (16, None)):
        told = trained(stage, job(seed), job(100))
        assert len(told.values(0)) == 2
        assert told.values(1) == usual
        assert left is None or f"leaves behind {left}, thread mine: a new process" in caplog.text


@pytest.mark.slow
def test_a_job_that_has_ended_holds_nobody(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, made = make(), Told()
    monkeypatch.setattr(stages, "AFTER_SECONDS", 0.5)
    told = trained(stage, job(21), job(100))
    assert told.failed == {}
    assert [len(told.values(number)) for number in (0, 1)] == [2, 2]
    monkeypatch.undo()
    with pytest.raises(StoppedError):
        stage.train(
            [job(21)],
            on_rung=lambda number, one: made.made.setdefault(number, []).append(one),
            on_failure=lambda number, error: made.failed.update({number: error}),
            stopping=lambda: len(made.made.get(0, ())) == 2,
            save=lambda number, state: made.saved.update({number: state}),
        )
    assert not made.failed
    assert not made.saved


@pytest.mark.slow
def test_a_process_is_warm_until_it_has_grown(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make()
    process: Any = None

    def kept() -> bool:
        return stage._process is process

    monkeypatch.setattr(stages, "GROWTH", 2**25)
    first = trained(stage, job(100)).values(0)
    process = stage._process
    # Its own random numbers, not what the job before has left of them.
    assert trained(stage, job(100)).values(0) == first != trained(stage, job(101)).values(0)
    assert kept()
    with caplog.at_level(logging.WARNING):
        assert len(trained(stage, job(9)).values(0)) == 2
    assert "more than at first" in caplog.text
    assert stage._process is None


@pytest.mark.slow
def test_bars_floors_tests_and_the_way_that_is_better(make: Callable[..., Stage]) -> None:
    stage = make(is_lower_better=True)
    both = replace(IDENTITY, split="both", floored=True)
    told = trained(
        stage, job(100, both), job(5, both), job(100, bars={1: 0.0}), job(100, bars={1: -99.0}),
        job(20, both),
    )  # fmt: skip
    first, last = told.made[0]
    assert first.sealed is None
    assert last.ending == "done"
    assert last.score.value < first.score.value < 0  # what grows is negated
    assert last.sealed is not None
    assert last.sealed.value == -last.score.value
    assert last.sealed.extra == {"test": stage.recipe.fingerprint}
    [lost] = told.made[1]
    assert (lost.rung, lost.score.value, lost.ending) == (2, -1.0, "done")
    assert lost.score.extra == {"diverged": True}
    assert [(one.rung, one.ending) for one in told.made[2]] == [(1, "cut")]
    assert [one.ending for one in told.made[3]] == [None, "done"]
    # What the test split said changes nothing, and waits for the verdict as it is.
    sealed = told.made[4][-1]
    assert (sealed.ending, sealed.score.extra) == ("done", {})
    assert sealed.sealed is not None
    assert math.isnan(sealed.sealed.value)


@pytest.mark.slow
def test_a_job_that_is_stopped_goes_on_elsewhere_as_if_undisturbed(
    make: Callable[..., Stage], folder: Path
) -> None:
    stage = make()
    (folder / "again").touch()
    try:
        whole = trained(stage, job(100)).values(0)
        saved: dict[int, State] = {}
        told = Told()
        with pytest.raises(StoppedError):
            stage.train(
                [job(100)],
                on_rung=lambda number, one: told.made.setdefault(number, []).append(one),
                on_failure=lambda number, error: None,
                stopping=lambda: stage.has_checkpoint,
                save=lambda number, state: saved.update({number: state}),
            )
        rest = trained(stage, job(100), restore=lambda number: saved[0])
        assert stage.first_epoch == 2
        assert told.values(0) + rest.values(0) == whole
        assert rest.made[0][-1].seconds > saved[0]["seconds"] > 0
    finally:
        (folder / "again").unlink()


@pytest.mark.slow
def test_a_job_that_is_another_s_is_dropped_at_once(make: Callable[..., Stage]) -> None:
    told = trained(make(), job(13), job(100), leaving=lambda: [0])
    assert told.failed == {}
    assert list(told.made) == [1]


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_nothing_running(folder: Path) -> None:
    (folder / "started").unlink(missing_ok=True)
    program = textwrap.dedent(f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parents[2]), str(Path.cwd())]!r}
        import pathlib, torch
        from optimizer import arms
        from workers import entries
        from workers.scripts.script import Script
        from workers.scripts.stage import Stage
        from workers.training.recipe import Job
        found = entries.find("ill:train", pathlib.Path({str(folder)!r}))
        script = Script("ill:train", "", "model", None, (1,), False, 0.0, True, 600.0)
        Stage(script, found, torch.device("cpu")).train(
            [Job(arms.identity([3], None, "model"), 13, 1)], on_rung=print, on_failure=print)
    """)
    worker = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(lambda: (folder / "started").exists() and (folder / "started").read_text(), 60)
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    pids = [int(pid) for pid in (folder / "started").read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(map(is_alive, pids)), 20)


def test_code_that_is_edited_meanwhile_is_not_run_and_costs_no_job(tmp_path: Path) -> None:
    code = tmp_path / "edited.py"
    code.write_text("def train(run):\n    raise RuntimeError('as it was')\n")
    found = entries.find("edited:train", tmp_path)
    script = Script(
        name=found.name, fingerprint=found.fingerprint, init="model", lr=None, rungs=(1,),
        is_lower_better=False, floor=-1.0, warm=True, patience=60.0,
    )  # fmt: skip
    stage, edited = Stage(script, found, CPU), Job(arms.identity([3], None, "model"), 1, 1)
    assert "as it was" in str(trained(stage, edited).failed[0])
    code.write_text("def train(run):\n    raise RuntimeError('edited')\n")
    with pytest.raises(StudyFailedError, match=r"is not the study's .*the worker leaves"):
        trained(stage, edited)
    assert not stage.has_checkpoint
