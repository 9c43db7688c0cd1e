"""docker/slurm without SLURM: what the scripts say, and a study that runs through them.

The study has its storage on the recipe's server, by network and with a password, and afterwards
everything that it has written or shown is searched for that password.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from sqlalchemy import Engine, make_url, text
from support.checkout import ROOT
from support.loopback import RECIPE, Loopback, loopback, runs_python
from support.waiting import wait_for

from storage import programs
from storage.database import connect
from storage.errors import StorageUnreachableError
from storage.steps import may_propose
from workers.service.notice import LEAVE_SECONDS

pytestmark = pytest.mark.timeout(900)  # a busy machine takes minutes to start the study's processes

BATCH = ROOT / "docker" / "slurm" / "worker.sbatch"
SCRIPTS = [
    *(BATCH, RECIPE, ROOT / "docker" / "certificates.sh"),
    *sorted((ROOT / "tests" / "elsewhere").rglob("*.sh")),
]
KEPT = """
    SELECT jobs.id FROM densitune.jobs JOIN densitune.workers ON workers.id = worker_id
    WHERE state = 'running' AND stopped_at IS NOT NULL
"""
PATIENCE = 600.0
"""Seconds after which what should happen does not, on a busy machine."""
PASSWORD = "it's a p@ss/w:rd & 100%"
TINY = {
    "name": "tiny",
    "task": "photos",
    "data": {"patch": 16, "patches_per_image": 8, "crop": 32},
    "proxy": {"family": "nafnet", "width": 4, "depth": 1},
    "kernel_size": 3,
    "training": {"budget": 12, "batch_size": 8, "lr": 0.003},
    "search": {"trials": 5, "seeds": 1, "sampler": "qmc"},
    "confirm": {"finalists": 1, "seeds": 2, "batch": 2, "budget": 1},
}


# What the scripts say


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    checked = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == ""
    assert checked.returncode == 0
    assert os.access(script, os.X_OK)


def test_array_job_leaves_itself_time_to_leave() -> None:
    given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", BATCH.read_text(), re.MULTILINE))
    assert {"array", "requeue"} <= given.keys()
    shell, seconds = re.fullmatch(r"(B:)USR1@(\d+)", given["signal"]).groups()  # type: ignore[union-attr]
    assert shell  # the shell alone is told, and tells the worker
    assert int(seconds) >= 2 * LEAVE_SECONDS
    assert (given["ntasks"], given["gres"]) == ("1", "gpu:1")


# What the array job does with signals and exit codes, with stand-ins for worker and SLURM


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder for the PATH: scontrol that notes what it is told, and room for densitune."""
    shim(tmp_path / "scontrol", f'echo "$@" >>{tmp_path}/requeued')
    return tmp_path


def shim(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def submit(cluster: Path, **environment: str) -> subprocess.Popen[bytes]:
    with (cluster / "job.log").open("ab") as log:
        return subprocess.Popen(
            ["bash", BATCH, "tiny"],
            env={
                **os.environ,
                "PATH": f"{cluster}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "SLURM_JOB_ID": "77",
                **environment,
            },
            stdout=log,
            stderr=log,
        )


def requeued(cluster: Path) -> list[str]:
    record = cluster / "requeued"
    return record.read_text().splitlines() if record.exists() else []


@pytest.mark.parametrize("code", [0, 1, 3])
def test_job_ends_with_the_workers_code_and_is_not_requeued(cluster: Path, code: int) -> None:
    shim(cluster / "densitune", f"echo $@ >{cluster}/arguments; exit {code}")
    assert submit(cluster).wait(10) == code
    assert (cluster / "arguments").read_text() == "worker tiny --wait --idle-exit 10m\n"
    assert requeued(cluster) == []


@pytest.mark.parametrize(
    ("sent", "code", "again"),
    [
        (signal.SIGUSR1, 130, ["requeue 77"]),
        (signal.SIGUSR1, 0, []),  # the study was over anyway
        (signal.SIGTERM, 130, []),  # SLURM requeues what it preempts, and not what is cancelled
    ],
)
def test_job_passes_signals_on_and_waits_for_the_worker(
    cluster: Path, sent: signal.Signals, code: int, again: list[str]
) -> None:
    name = sent.name.removeprefix("SIG")
    leave = f"sleep 0.3; touch {cluster}/left; exit {code}"
    shim(
        cluster / "densitune",
        f"trap '{leave}' {name}; touch {cluster}/ready; while :; do sleep 0.02; done",
    )
    job = submit(cluster)
    wait_for((cluster / "ready").exists, PATIENCE)
    job.send_signal(sent)
    assert job.wait(10) == code
    assert (cluster / "left").exists()
    assert requeued(cluster) == again


# A study through both recipes


@dataclass
class Course:
    """What a study's course has left behind."""

    server: Loopback
    engine: Engine
    home: Path
    codes: dict[str, int] = field(default_factory=dict)
    requeued: list[str] = field(default_factory=list)
    kept: list[tuple[object, ...]] = field(default_factory=list)
    states: list[tuple[object, ...]] = field(default_factory=list)
    command_lines: set[str] = field(default_factory=set)
    dump: str = ""

    def query(self, statement: str) -> list[tuple[object, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]


@contextmanager
def watched_command_lines(seen: set[str]) -> Iterator[None]:
    """Collect the command lines of all processes that are there meanwhile."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    """Run a study: begun by an array job that has to leave, finished by the launcher's fleet."""
    cluster = tmp_path_factory.mktemp("cluster")
    with loopback(password=PASSWORD) as server:
        course = Course(server, connect(server.url_with_password), cluster)
        with watched_command_lines(course.command_lines):
            run(course, cluster)
        dumped = programs.run(
            "pg_dump",
            "--inserts",
            server.url_with_password.replace(" ", "%20"),
            owner=None,
            seconds=60,
        )
        assert dumped.returncode == 0, dumped.stderr
        course.dump = dumped.stdout
        yield course
        course.engine.dispose()


@contextmanager
def ended_in_any_case() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Collect processes, and end those that a failure leaves behind."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def run(course: Course, cluster: Path) -> None:
    (cluster / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    shim(cluster / "scontrol", f'echo "$@" >>{cluster}/requeued')
    common = {"DENSITUNE_HOME": str(cluster / "home"), "PYTHONPATH": str(ROOT)}
    by_file = {
        "DENSITUNE_STORAGE": course.server.url,
        "DENSITUNE_STORAGE_PASSWORD_FILE": str(course.server.password_file),
    }
    by_url = {"DENSITUNE_STORAGE": course.server.url_with_password}

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with (cluster / f"{arguments[0]}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "optimizer.cli", *arguments],
                cwd=cluster,
                env={**os.environ, **common, **by_url},
                stdout=log,
                stderr=log,
            )

    def working() -> bool:
        told = (cluster / "job.log").read_text()
        assert launch.poll() is None, (cluster / "launch.log").read_text()
        assert job.poll() is None, told
        return "pack of" in told  # the last line before a worker claims jobs

    with ended_in_any_case() as processes:
        processes += [launch := start("launch", "tiny.yaml", "--workers", "1", "--force")]
        processes += [job := submit(cluster, **common, **by_file)]
        wait_for(working, PATIENCE)
        job.send_signal(signal.SIGUSR1)
        course.codes["job"] = job.wait(240)
        course.requeued = requeued(cluster)
        course.kept = course.query(KEPT)
        course.codes["launch"] = launch.wait(240)
        course.codes["report"] = start("report", "tiny", "-o", "tiny.html").wait(60)
    course.states = course.query("SELECT DISTINCT state FROM densitune.jobs")


@pytest.mark.slow
def test_job_at_its_time_limit_hands_back_and_is_requeued(course: Course) -> None:
    assert (course.codes["job"], course.requeued) == (130, ["requeue 77"])
    assert course.kept == []


@pytest.mark.slow
def test_study_on_the_recipes_server_is_finished_by_others(course: Course) -> None:
    assert (course.codes["launch"], course.codes["report"]) == (0, 0)
    assert course.states == [("done",)]
    assert (course.home / "presets" / "tiny.json").exists()


def assert_without_password(content: str) -> None:
    for spelling in (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD, safe=" "), "p@ss/w:rd"):
        assert spelling not in content


@pytest.mark.slow
def test_no_command_line_shows_the_password(course: Course) -> None:
    assert any("optimizer.cli worker tiny --device" in line for line in course.command_lines)
    for line in course.command_lines:
        assert_without_password(line)


@pytest.mark.slow
def test_no_file_holds_the_password(course: Course) -> None:
    """Output, logs, presets, reports, caches and spool; the server's log too."""
    files = [path for path in course.home.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"job.log", "launch.log", "report.log", "tiny.json", "tiny.html"} <= names
    assert any(path.parent.name == "logs" for path in files)
    for path in [*files, course.server.folder / "server.log"]:
        assert_without_password(path.read_bytes().decode(errors="replace"))


@pytest.mark.slow
def test_the_database_does_not_hold_the_password(course: Course) -> None:
    assert "INSERT INTO densitune.measurements" in course.dump
    assert "INSERT INTO public.trials" in course.dump
    assert_without_password(course.dump)


@pytest.mark.slow
def test_wrong_password_is_refused_without_being_shown(course: Course) -> None:
    wrong = course.server.url.replace("densitune@", "densitune:hunter2@")
    done = subprocess.run(
        [sys.executable, "-m", "optimizer.cli", "list"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DENSITUNE_STORAGE": wrong},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert "password authentication failed" in line
    assert "hunter2" not in done.stdout + done.stderr


# The recipe's server


@pytest.mark.slow
def test_unless_told_the_recipe_takes_the_programs_that_come_with_densitune(course: Course) -> None:
    if not runs_python(course.server.owner):
        pytest.skip("the server's user may not execute this Python, which lies in a closed home")
    assert "PG_BIN" not in course.server.environment
    opened = (course.server.folder / "postgresql" / "postmaster.opts").read_text()
    assert opened.startswith(str(programs._folder()))


@pytest.mark.slow
def test_second_start_finds_the_server_and_changes_nothing(course: Course) -> None:
    pid = course.server.folder / "postgresql" / "postmaster.pid"
    before = pid.read_text()
    again = course.server.start()
    assert f"export DENSITUNE_STORAGE='{course.server.url}'" in again
    assert pid.read_text() == before


@pytest.mark.slow
def test_a_copy_of_the_servers_folder_does_not_touch_the_original(course: Course) -> None:
    original = course.server.folder
    copied = original.with_name("copy")
    subprocess.run(["cp", "-a", original, copied], check=True)
    for verb in ("start", "stop"):
        done = subprocess.run(
            ["bash", RECIPE, verb, copied],
            env=course.server.environment,
            user=course.server.owner[0] if course.server.owner else None,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "was copied or moved while its server ran" in done.stderr
    assert course.query("SELECT 1") == [(1,)]


@pytest.mark.slow
def test_variables_for_other_servers_do_not_reach_the_recipe(course: Course) -> None:
    diverted = {"PGHOSTADDR": "192.0.2.1", "PGOPTIONS": "--nonsense", "PGSERVICE": "other"}
    server = replace(course.server, environment={**course.server.environment, **diverted})
    assert f"export DENSITUNE_STORAGE='{server.url}'" in server.start()


@pytest.mark.slow
def test_only_the_one_role_comes_in_by_network(course: Course) -> None:
    given = make_url(course.server.url_with_password)
    for refused in (
        given.set(username="postgres"),
        given.set(username="postgres", database="postgres"),
        given.set(database="postgres"),
    ):
        with pytest.raises(StorageUnreachableError, match=r"no pg_hba\.conf entry"):
            connect(refused.render_as_string(hide_password=False))


@pytest.mark.slow
def test_roles_of_least_privilege_come_in_too(course: Course) -> None:
    password = course.home / "workers-password"
    password.write_text("for workers")
    subprocess.run(
        [sys.executable, "-m", "storage.roles", "--password", "densitune_worker", password],
        env={
            **os.environ,
            **{"PYTHONPATH": str(ROOT), "DENSITUNE_STORAGE": course.server.url},
            "PGPASSWORD": course.server.password,
        },
        check=True,
    )
    url = make_url(course.server.url).set(username="densitune_worker", password="for workers")
    engine = connect(url.render_as_string(hide_password=False))
    assert not may_propose(engine)
    engine.dispose()


def test_folder_with_odd_characters_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", RECIPE, "start", tmp_path / "it's"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("postgres.sh: plain names only, not: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_as_root_the_recipe_says_in_one_line_that_it_needs_another_user(
    tmp_path: Path, verb: str
) -> None:
    as_root = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*as_root, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no root here, nor user namespaces that would make one")
    done = subprocess.run(
        [*as_root, "bash", RECIPE, verb, tmp_path / "server"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line == "postgres.sh: PostgreSQL does not run as root; run this as an ordinary user"
    assert list(tmp_path.iterdir()) == []
