"""docker/slurm on a real SLURM cluster of one node, from the first task to the preset.

make slurm. A study is trained by an array job that reaches its time limit, whose node loses power,
and of which one task is cancelled. In the end it has to be what it is where nothing happens.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import audit, shell, slurm
from support.audit import Outcome
from support.checkout import ROOT
from support.loopback import Loopback, loopback
from support.slurm import Slurm, Task
from support.waiting import wait_for

from storage import database

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

PATIENCE = 900.0
"""Seconds after which what should happen does not, on a busy machine."""
LIMIT = "00:02:00"
STUDY: dict[str, Any] = {
    "data": {"patch": 16, "patches_per_image": 16, "crop": 32},
    "training": {"budget": 200, "batch_size": 8, "lr": 0.003},
    "search": {"trials": 8, "seeds": 1, "rungs": [100], "keep": 0.5, "in_flight": 4},
    "confirm": {"finalists": 1, "seeds": 2, "batch": 2, "budget": 100},
}
"""Several minutes of work, for several time limits."""
BATCH = ROOT / "docker" / "slurm" / "worker.sbatch"
HELD = """
    SELECT jobs.id FROM densitune.jobs JOIN densitune.workers ON workers.id = worker_id
    WHERE state = 'running' AND stopped_at IS NOT NULL
"""


@dataclass
class Course:
    """What happened, in its order, and what it has led to."""

    told: dict[str, Task] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    held_by_the_cancelled: list[Any] = field(default_factory=list)
    down: str = ""
    code: int = -1
    preset: Path = Path()
    outcome: Outcome | None = None
    undisturbed: Outcome | None = None


@dataclass
class Site:
    """A cluster, a server that its nodes reach, and a home of the user's on a shared disk."""

    slurm: Slurm
    server: Loopback
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{slurm.PATH}",
            "DENSITUNE_HOME": str(self.home / "densitune"),
            "DENSITUNE_STORAGE": self.server.url,
            "DENSITUNE_STORAGE_PASSWORD_FILE": str(self.server.password_file),
        }

    def launch(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        shell.write_config(self.home, name, **STUDY)
        with (self.home / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                ["densitune", "launch", f"{name}.yaml", "--force", *options],
                cwd=self.home,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )

    def log(self, task: str) -> str:
        path = self.home / f"densitune-{task}.log"
        return path.read_text() if path.exists() else ""


@contextmanager
def site() -> Iterator[Site]:
    """Start all three in a folder with a short name, for the sockets."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dt-")))
        for path in (folder, folder / "slurm", folder / "home"):
            path.mkdir(exist_ok=True)
            path.chmod(0o711)
        server = stack.enter_context(loopback())
        yield Site(stack.enter_context(slurm.cluster(folder / "slurm")), server, folder / "home")


def run(site: Site, course: Course) -> None:
    launch = site.launch("array", "--workers", "0")
    submitted = site.slurm.run(
        *("sbatch", "--parsable", "--array=0-2", "--gres=none", f"--time={LIMIT}"),
        *(str(BATCH), "array"),
        folder=site.home,
        **site.environment,
    )
    tasks = [f"{submitted.strip()}_{number}" for number in range(3)]
    *kept, cancelled = tasks

    def after(state: str, restarts: int) -> bool:
        assert launch.poll() is None, (site.home / "array.log").read_text()
        found = [site.slurm.task(task) for task in kept]
        return all(task.state == state and task.restarts >= restarts for task in found)

    wait_for(lambda: all("pack of" in site.log(task) for task in tasks), PATIENCE)
    site.slurm.run("scancel", cancelled)
    wait_for(lambda: "COMPLETING" not in site.slurm.task(cancelled).state, PATIENCE)
    wait_for(lambda: site.slurm.task(cancelled).state == "CANCELLED", PATIENCE)
    engine = database.connect(site.server.url_with_password)
    with engine.connect() as connection:
        course.held_by_the_cancelled = list(connection.exec_driver_sql(HELD))
    wait_for(lambda: after("RUNNING", 1), PATIENCE)
    wait_for(lambda: all("from its checkpoint" in site.log(task) for task in kept), PATIENCE)
    course.resumed = [task for task in kept if "SIGUSR1: leaving" in site.log(task)]
    site.slurm.crash_node()
    wait_for(lambda: site.slurm.node_state().startswith("down"), PATIENCE)
    course.down = site.slurm.node_state()
    site.slurm.start_node()
    wait_for(lambda: after("RUNNING", 2), PATIENCE)
    for task in kept:  # to be done sooner: limit after limit would work as well
        site.slurm.run("scontrol", "update", f"JobId={task}", "TimeLimit=01:00:00")
    course.code = launch.wait(PATIENCE)
    wait_for(lambda: all(site.slurm.task(t).state == "COMPLETED" for t in kept), PATIENCE)
    course.told = {task: site.slurm.task(task) for task in tasks}
    course.preset = site.home / "presets" / "array.json"
    assert site.launch("undisturbed", "--workers", "2").wait(PATIENCE) == 0
    course.outcome = audit.outcome(engine, "array")
    course.undisturbed = audit.outcome(engine, "undisturbed")
    engine.dispose()


@pytest.fixture(scope="module")
def course() -> Iterator[Course]:
    if os.geteuid() == 0:
        pytest.exit("make slurm runs this as an ordinary user", 2)
    if packages := slurm.missing():
        pytest.exit(f"not installed here: apt-get install {' '.join(packages)}", 2)
    made = Course()
    with site() as started:
        try:
            run(started, made)
        except BaseException:
            for path in [*started.home.glob("*.log"), *started.slurm.folder.glob("*.log")]:
                print(f"--- {path.name}\n{path.read_text()[-3000:]}")
            raise
        yield made


def test_a_task_at_its_time_limit_saves_and_is_requeued_and_goes_on(course: Course) -> None:
    assert [name[-2:] for name in course.resumed] == ["_0", "_1"]


def test_a_cancelled_task_hands_its_jobs_back_and_stays_cancelled(course: Course) -> None:
    [cancelled] = [task for name, task in course.told.items() if name.endswith("_2")]
    assert (cancelled.state, cancelled.restarts) == ("CANCELLED", 0)
    assert course.held_by_the_cancelled == []


def test_tasks_of_a_node_that_crashed_run_again_and_end_well(course: Course) -> None:
    assert course.down.startswith("down")
    ended = [task for name, task in course.told.items() if not name.endswith("_2")]
    assert [(task.state, task.exit_code) for task in ended] == [("COMPLETED", "0:0")] * 2
    assert all(task.restarts >= 2 for task in ended)


def test_the_study_ends_as_it_does_where_nothing_happens(course: Course) -> None:
    assert course.code == 0
    assert course.outcome is not None
    assert course.undisturbed is not None
    audit.check_equal(course.outcome, course.undisturbed)
    assert course.preset.exists()
