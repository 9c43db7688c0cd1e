"""Studies from Python: the real command line, in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from support.shell import query
from support.simulated import noise, run, small

from densitune import Study, StudyError
from optimizer.show import measurements
from storage.jobs import ClaimedJob

pytestmark = pytest.mark.slow


def tiny(**changes: Any) -> dict[str, Any]:
    """A config as one writes it in Python: with tuples, numbers for keys, and a path."""
    return {
        "name": "tiny",
        "task": "photos",
        "data": {"patch": 16, "patches_per_image": 8, "crop": 32},
        "proxy": {"family": "nafnet", "width": 4, "depth": 1},
        "kernel_size": 3,
        "density": {"include": [{3: (0.45,)}]},
        "training": {"budget": 1, "batch_size": 8, "lr": 1e-5},
        "search": {"trials": 7, "seeds": 1, "rungs": [], "sampler": "qmc"},
        **changes,
    }


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a project with names like ours."""
    (tmp_path / "optimizer").mkdir()
    for name in ("optimizer/__init__.py", "workers.py", "storage.py"):
        (tmp_path / name).write_text("raise RuntimeError('this is not densitune')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def helps(job: ClaimedJob) -> float:
    return 30 - abs(job.densities[3][0] - 0.6) + noise(job, 0.1)


def test_a_study_is_read_as_the_command_line_reads_it(
    database: Engine, database_url: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = run(database, small(confirm={"seeds": 6, "batch": 6}), helps)
    found = Study.open(now.study.name, storage=database_url)
    assert found.verdict == now.verdict != "unconfirmed"
    rows = found.table()
    assert rows == measurements.read(database, now.study.name).rows
    assert now.winner is not None
    assert found.preset.densities == {3: tuple(now.winner.densities["3"])}
    assert found.preset.verdict == now.verdict
    report = found.report("out/all.html")
    assert now.verdict in (project / report).read_text(encoding="utf-8")

    monkeypatch.setattr(found, "table", lambda: rows)
    frame = found.frame()
    assert list(frame.columns) == list(rows[0])
    assert frame["value"].tolist() == [row["value"] for row in rows]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="run pip install pandas, or take Study"):
        found.frame()


def test_a_study_goes_on_while_nobody_waits_until_it_is_stopped(
    database: Engine, database_url: str
) -> None:
    launched = Study.launch(tiny(), workers=0, storage=database_url)
    try:
        assert launched.name == "tiny"
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            launched.wait()
        assert state(database) == "running"
    finally:
        launched.stop()
    assert state(database) == "stopped"


def state(engine: Engine) -> str:
    [(found,)] = query(engine, "SELECT state FROM densitune.studies")
    return str(found)


def test_what_was_launched_ends_with_its_python(database_url: str) -> None:
    program = (
        "import densitune, json, sys\n"
        "study = densitune.Study.launch(json.loads(sys.argv[1]), workers=0)\n"
        "print(study._launched._process.pid)"
    )
    arguments = ["-c", program, json.dumps(tiny())]
    ended = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "DENSITUNE_STORAGE": database_url},
        capture_output=True,
        text=True,
        check=True,
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(ended.stdout), 0)


def test_a_bad_config_is_one_line(database_url: str) -> None:
    line = "config -: unknown key kernel; did you mean kernel_size?"
    with pytest.raises(StudyError, match=f"^{re.escape(line)}$") as refused:
        Study.launch(tiny(kernel=3), storage=database_url)
    assert refused.value.exit_code == 2


def test_a_study_that_cannot_go_on_says_so_to_whoever_waits(
    database: Engine, database_url: str
) -> None:
    now = run(database, small(), helps, floor=100.0)
    assert now.study.failure is not None
    with pytest.raises(StudyError, match=re.escape(now.study.failure)) as failed:
        Study(now.study.name, storage=database_url).wait(quiet=True)
    assert failed.value.exit_code == 1


def test_without_the_service_one_line_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(project))
    monkeypatch.setenv("PATH", str(project))
    needed = "^densitune.Study needs the packages of the service; install densitune with its "
    with pytest.raises(StudyError, match=f"{needed}.*there is no command densitune"):
        Study.open("tiny")
    # As `pip install --no-deps` leaves it: a command whose packages are not there.
    command = project / "densitune"
    command.write_text(f"#!{sys.executable} -IS\nimport typer\n")
    command.chmod(0o755)
    with pytest.raises(StudyError, match=f"{needed}.*No module named 'typer'"):
        Study.open("tiny")
