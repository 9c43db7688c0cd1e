"""The command line as a user meets it: real processes, real training, real PostgreSQL."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from support.checkout import ROOT
from support.shell import LEDGER, Here, command, environment, query, run, start, write_config
from support.synthetic import usual
from support.waiting import wait_for

from optimizer.cli import interruptions
from optimizer.presets import document, exports

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a study that takes some seconds: tiny.yaml."""
    write_config(tmp_path, "tiny")
    return tmp_path


VERDICTS = ("better", "scale_only", "step_only", "no_evidence", "worse", "dropped")


def test_from_config_to_preset_and_through_every_command(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    unhealthy = run(folder, database_url, "launch", "tiny.yaml", "--workers", "1")
    assert unhealthy.returncode == 1
    [line] = unhealthy.stderr.strip().splitlines()
    assert "is not above the linear 3 x 3 filter" in line
    assert "densitune resume tiny --force" in line
    assert here.run(folder, database_url, "launch", "tiny.yaml").returncode == 1

    searched = run(folder, database_url, "resume", "tiny", "--force", "--until", "search")
    assert searched.returncode == 0, searched.stderr
    assert "phase confirm" in searched.stdout
    assert not (folder / "presets").exists()
    assert len(query(database, LEDGER)) == 7 * 2 * 2
    assert (
        here.run(folder, database_url, "launch", "tiny.yaml", "--until", "search").returncode == 0
    )
    assert len(query(database, LEDGER)) == 7 * 2 * 2

    launched = run(folder, database_url, "launch", "tiny.yaml", "--workers", "2")
    assert launched.returncode == 0, launched.stderr
    assert "v2 README" in launched.stdout
    assert "confirmed with fresh seeds" in launched.stdout
    preset = document.load(folder / "presets" / "tiny.json")
    verdict = preset.evidence.verdict
    assert verdict in VERDICTS
    assert f"presets/tiny.json ({verdict}: " in launched.stdout
    first = query(database, LEDGER)
    # Identity and the finalist; its two controls are trained once identity is beaten.
    arms = 4 if verdict in ("better", "scale_only", "step_only") else 2
    assert len(first) == 7 * 2 * 2 + arms * 2

    again = here.run(folder, database_url, "launch", "tiny.yaml")
    assert again.returncode == 0
    assert query(database, LEDGER) == first
    assert "local workers" not in again.stdout
    assert document.load(folder / "presets" / "tiny.json").evidence == preset.evidence

    check_that_optuna_opens_it(database)

    listed = here.run(folder, database_url, "list")
    assert "tiny" in listed.stdout
    assert "finished" in listed.stdout

    status = json.loads(here.run(folder, database_url, "status", "tiny", "--json").stdout)
    assert status["trials"] == {
        "complete": 7,
        "running": 0,
        "pruned": 0,
        "failed": 0,
        "asked for": 7,
    }
    assert status["precision"] == preset.task.training["precision"]
    assert (status["phase"], status["verdict"]) == ("decided", verdict)
    assert status["verdicts"][0]["densities"] == preset.densities
    watched = here.run(folder, database_url, "status", "tiny", "--watch").stdout
    assert "7/7 trials done" in watched
    assert "confirmed with fresh seeds" in watched

    verified = here.run(folder, database_url, "verify", "presets/tiny.json")
    assert verified.returncode == 0, verified.stderr
    assert f"verdict {verdict}" in verified.stdout

    reported = here.run(folder, database_url, "report", "tiny", "-o", "out/tiny.html")
    assert reported.returncode == 0, reported.stderr
    assert verdict in (folder / "out" / "tiny.html").read_text()

    exported = here.run(folder, database_url, "export", "tiny", "-o", "out", "--trial", "0")
    assert exported.returncode == 0
    assert document.load(folder / "out" / "tiny.json").densities == {"3": [1.0]}
    table = here.run(folder, database_url, "export", "tiny", "-o", "out", "--format", "csv")
    assert table.stdout == f"measurements: out/tiny.csv ({len(first)} rows)\n"
    assert len((folder / "out" / "tiny.csv").read_text().splitlines()) == 1 + len(first)
    mixed = here.refused(
        folder, database_url, "export", "tiny", "--format", "csv", "--require", "better"
    )
    assert mixed[0] == 2
    assert "--trial and --require are about a preset" in mixed[1]
    required = here.run(
        folder, database_url, "export", "tiny", "-o", "other", "--trial", "0", "--require", "better"
    )
    assert required.returncode == 4
    assert len(required.stderr.strip().splitlines()) == 1
    assert not (folder / "other").exists()

    write_config(folder, "tiny", search={"trials": 9, "seeds": 2, "rungs": [1], "sampler": "qmc"})
    refused = here.run(folder, database_url, "launch", "tiny.yaml")
    assert refused.returncode == 2
    assert "search.trials: 7 -> 9" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert query(database, LEDGER) == first

    kept = here.run(folder, database_url, "delete", "tiny", answer="n\n")
    assert kept.returncode == 1
    assert len(query(database, LEDGER)) == len(first)
    assert here.run(folder, database_url, "delete", "tiny", "--yes").returncode == 0
    assert query(database, LEDGER) == []
    assert query(database, "SELECT study_name FROM public.studies") == []


def check_that_optuna_opens_it(database: Engine) -> None:
    """Optuna's own command line lists the densities of the search."""
    shown = subprocess.run(
        [
            str(Path(sys.executable).with_name("optuna")),
            *("trials", "--study-name", "tiny", "-f", "json", "--storage"),
            database.url.render_as_string(hide_password=False),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    trials = json.loads(shown.stdout)
    assert len(trials) == 7
    assert trials[0]["params"] == {"k3_den0": 1.0}
    assert all(trial["state"] == "COMPLETE" for trial in trials)


def test_the_same_study_twice_gives_the_same_bits_whatever_the_workers(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    search = {"trials": 12, "seeds": 2, "rungs": [1], "keep": 0.2, "in_flight": 3}
    training = {"budget": 2, "batch_size": 8}
    write_config(folder, "one", search=search, training=training)
    write_config(folder, "two", search=search, training=training)
    decided = "SELECT lr, verdicts FROM densitune.studies"
    launch = ("launch", "one.yaml", "--force", "--workers", "1")
    assert run(folder, database_url, *launch).returncode == 0
    first, verdicts = query(database, LEDGER), query(database, decided)
    assert here.run(folder, database_url, "delete", "one", "--yes").returncode == 0
    launch = ("launch", "two.yaml", "--force", "--workers", "3")
    assert run(folder, database_url, *launch).returncode == 0
    assert query(database, LEDGER) == first
    assert query(database, decided) == verdicts
    counted = "SELECT state, count(*) FROM densitune.trials WHERE phase = 'search' GROUP BY 1"
    states = dict(query(database, counted))
    assert set(states) == {"complete", "pruned"}
    searched = [row for row in first if row[0] == "search"]
    assert len(searched) == 4 * states["complete"] + states["pruned"]
    tried = query(database, "SELECT count(*) FROM densitune.trials WHERE phase = 'calibrate'")
    assert tried[0][0] >= 5
    # The calibration has the confirmation's budget, here one epoch, and two seeds a rate.
    assert len([row for row in first if row[0] == "calibrate"]) == tried[0][0] * 2
    assert verdicts[0][0]


def test_a_killed_worker_costs_nothing_and_the_budget_stays_exact(
    folder: Path, database: Engine, database_url: str
) -> None:
    """Two workers from other shells; one is killed with SIGKILL in mid-training."""
    write_config(
        folder,
        "attach",
        training={"budget": 12, "batch_size": 8, "lr": 0.003},
        search={"trials": 7, "seeds": 2, "sampler": "qmc"},
    )
    only_search = ("--workers", "0", "--force", "--until", "search")
    launch = start(folder, database_url, "launch", "attach.yaml", *only_search)
    workers = [start(folder, database_url, "worker", "attach", "--wait") for _ in range(2)]
    running = (
        "SELECT pid FROM densitune.jobs JOIN densitune.workers AS workers "
        "ON workers.id = worker_id WHERE state = 'running'"
    )
    doomed = workers[1]
    wait_for(lambda: (doomed.pid,) in query(database, running))
    doomed.kill()
    doomed.wait()
    # Its lease would run out by itself after a minute.
    with database.begin() as connection:
        connection.execute(
            text("""
                UPDATE densitune.jobs SET lease_until = now()
                WHERE state = 'running'
                  AND worker_id = (SELECT id FROM densitune.workers WHERE pid = :pid)
            """),
            {"pid": doomed.pid},
        )
    assert launch.wait(240) == 0
    assert workers[0].wait(60) == 0
    states = query(database, "SELECT state, count(*) FROM densitune.jobs GROUP BY state")
    assert states == [("done", 14)]
    assert query(database, "SELECT count(*), count(DISTINCT number) FROM densitune.trials") == [
        (7, 7)
    ]
    optuna_trials = query(database, "SELECT state::text, count(*) FROM public.trials GROUP BY 1")
    assert optuna_trials == [("COMPLETE", 7)]


def test_workers_finish_a_study_whose_launcher_is_gone(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    launch = start(folder, database_url, "launch", "tiny.yaml", "--workers", "0", "--force")
    wait_for(lambda: query(database, "SELECT id FROM densitune.jobs"))
    launch.kill()
    launch.wait()
    assert run(folder, database_url, "worker", "tiny").returncode == 0
    status = json.loads(here.run(folder, database_url, "status", "tiny", "--json").stdout)
    assert (status["state"], status["trials"]["complete"]) == ("finished", 7)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launch_hands_back_its_jobs_and_resumes(
    folder: Path, database: Engine, database_url: str, number: signal.Signals
) -> None:
    write_config(
        folder,
        "interrupted",
        training={"budget": 8, "batch_size": 8, "lr": 0.003},
        search={"trials": 5, "seeds": 1, "sampler": "qmc"},
    )
    forced = ("--workers", "1", "--force")
    launch = start(folder, database_url, "launch", "interrupted.yaml", *forced)
    wait_for(lambda: query(database, "SELECT id FROM densitune.jobs WHERE state = 'running'"))
    launch.send_signal(number)
    assert launch.wait(60) == 130
    assert query(database, "SELECT id FROM densitune.jobs WHERE state = 'running'") == []
    resumed = run(folder, database_url, "resume", "interrupted", "--workers", "1")
    assert resumed.returncode == 0
    assert query(database, "SELECT DISTINCT state FROM densitune.jobs") == [("done",)]


def test_stop_ends_all_processes_of_a_study(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    training = {"budget": 5000, "lr": 0.003}
    write_config(folder, "stopped", training=training, search={"trials": 5, "seeds": 1})
    launch = start(folder, database_url, "launch", "stopped.yaml", "--workers", "1")
    wait_for(lambda: query(database, "SELECT id FROM densitune.jobs WHERE state = 'running'"))
    assert run(folder, database_url, "stop", "stopped").returncode == 0
    assert launch.wait(60) == 0
    assert query(database, "SELECT id FROM densitune.jobs WHERE state = 'running'") == []
    refused = here.run(folder, database_url, "stop", "stopped")
    assert refused.returncode == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel_size": 4}, ["4", "odd"]),
        ({"tsak": "photos"}, ["tsak", "task"]),
        ({"density": {"low": 0, "high": 1}}, ["density.low", "0"]),
        ({"density": {"include": [[-1.0]]}}, ["-1.0"]),
        ({"task": "folder", "data": {"folder": "nowhere"}}, ["nowhere"]),
        ({"proxy": {"family": "vgg", "width": 8, "depth": 6}}, ["vgg", "dncnn or nafnet"]),
    ],
)
def test_a_bad_config_is_one_line_and_writes_nothing(
    folder: Path, empty_url: str, here: Here, changes: dict[str, object], words: list[str]
) -> None:
    write_config(folder, "bad", **changes)
    code, line = here.refused(folder, empty_url, "launch", "bad.yaml")
    assert code == 2, line
    assert len(line.splitlines()) == 1
    assert all(word in line for word in words), line
    assert not (folder / "presets").exists()
    engine = create_engine(empty_url)
    tables = (
        "SELECT table_name FROM information_schema.tables "
        "WHERE table_schema IN ('public', 'densitune')"
    )
    assert query(engine, tables) == []
    engine.dispose()


def altered(preset: dict[str, Any]) -> None:
    preset["provenance"]["config"]["training"]["budget"] = 99


def newer(preset: dict[str, Any]) -> None:
    preset["schema"] = "densitune/preset/2"


def too_short(preset: dict[str, Any]) -> None:
    preset["densities"]["5"] = [0.5]


@pytest.mark.parametrize(
    ("damage", "words"),
    [(altered, "altered"), (newer, "install a newer densitune"), (too_short, "takes 2")],
)
def test_a_preset_that_cannot_be_trusted_is_refused_by_verify(
    folder: Path, here: Here, damage: Callable[[dict[str, Any]], None], words: str
) -> None:
    known = usual()
    content = json.loads(exports.compose(known, known.results[-1]).text())
    damage(content)
    (folder / "given.json").write_text(json.dumps(content))
    code, line = here.refused(folder, "", "verify", "given.json")
    assert (code, len(line.splitlines())) == (2, 1)
    assert words in line


def test_a_gpu_where_none_is_is_refused(folder: Path, database_url: str, here: Here) -> None:
    code, line = here.refused(folder, database_url, "launch", "tiny.yaml", "--device", "cuda:99")
    assert (code, len(line.splitlines())) == (2, 1)
    assert "cuda:99" in line


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        ("0", "--pack 0 is no number of jobs; take auto, or a number from 1"),
        ("-3", "--pack -3 is no number of jobs"),
        ("2.5", "--pack 2.5 is no number of jobs"),
        ("all", "--pack all is no number of jobs"),
        ("auto", "config missing.yaml cannot be read"),
        ("16", "config missing.yaml cannot be read"),
    ],
)
def test_a_pack_is_auto_or_a_number(
    folder: Path, database_url: str, here: Here, pack: str, words: str
) -> None:
    code, line = here.refused(folder, database_url, "launch", "missing.yaml", "--pack", pack)
    assert (code, len(line.splitlines())) == (2, 1)
    assert words in line


@pytest.mark.parametrize(
    "arguments", [["list"], ["launch", "tiny.yaml"], ["worker", "tiny"], ["export", "tiny"]]
)
def test_unreachable_storage_ends_with_3_and_names_the_place_but_not_the_password(
    folder: Path, here: Here, arguments: list[str]
) -> None:
    code, line = here.refused(folder, "postgresql://someone:hunter2@127.0.0.1:1/none", *arguments)
    assert (code, len(line.splitlines())) == (3, 1)
    assert "127.0.0.1:1" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("name", ["worker", "status", "stop", "resume", "delete", "export"])
def test_an_unknown_study_is_refused_by_every_command(
    folder: Path, database_url: str, here: Here, name: str
) -> None:
    code, line = here.refused(folder, database_url, name, "nothing")
    assert (code, len(line.splitlines())) == (2, 1)
    assert "there is no study nothing" in line


def test_the_password_may_come_from_a_file(folder: Path, database: Engine) -> None:
    secret = folder / "password"
    secret.write_text("a secret\n")
    url = database.url.render_as_string(hide_password=False)
    listed = subprocess.run(
        command("list"),
        env={**environment(url), "DENSITUNE_STORAGE_PASSWORD_FILE": str(secret)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    missing = subprocess.run(
        command("list"),
        env={**environment(url), "DENSITUNE_STORAGE_PASSWORD_FILE": str(folder / "none")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert missing.returncode == 2


def test_a_locale_without_the_signs_of_a_name_or_table_ends_no_command(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    """Nothing is trained: a study that waits for workers has a report and a status as well."""
    search = ("--workers", "0", "--force")
    launch = start(folder, database_url, "launch", "tiny.yaml", *search)
    wait_for(lambda: query(database, "SELECT id FROM densitune.jobs"))
    launch.send_signal(signal.SIGINT)
    assert launch.wait(60) == 130
    ascii_only = {**environment(database_url), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for arguments in (("report", "tiny", "-o", "фото.html"), ("status", "tiny"), ("list",)):
        ended = subprocess.run(
            command(*arguments), cwd=folder, env=ascii_only, capture_output=True, timeout=60
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ended.stdout.isascii()
        if arguments[0] == "report":
            assert rb"\u0444\u043e\u0442\u043e.html" in ended.stdout
    assert (folder / "фото.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("schema",), ("--help",)])
def test_a_full_disk_is_one_line(
    folder: Path, database: Engine, database_url: str, arguments: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command(*arguments),
            cwd=folder,
            env=environment(database_url),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    [line] = ended.stderr.splitlines()
    assert "output cannot be written: No space left on device" in line
    assert ended.returncode == 2


def test_listing_studies_loads_none_of_the_large_packages(folder: Path, database_url: str) -> None:
    program = (
        "import sys\nfrom optimizer.cli.main import app\n"
        "try:\n    app(['list'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'optuna', 'scipy.stats'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], env=environment(database_url), check=True, timeout=60
    )


@pytest.mark.parametrize(
    ("number", "loading"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)],
)
def test_an_interrupted_process_ends_with_its_exit_code(
    tmp_path: Path, number: signal.Signals, loading: bool
) -> None:
    """CPython makes SIGINT of it if it comes out of a text that was evaluated, though caught."""
    context = "interruptions.loading()" if loading else "contextlib.nullcontext()"
    (tmp_path / "program.py").write_text(
        "import contextlib, signal, sys\n"
        "from optimizer.cli import interruptions\n"
        "interruptions.on_termination(interruptions.interrupt)\n"
        f"try:\n    with {context}:\n        exec('signal.raise_signal({number:d})')\n"
        "except KeyboardInterrupt:\n    print('left')\n    sys.exit(130)\n"
        "sys.exit(1)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "program"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (130, "")
    assert ended.stdout == ("" if loading else "left\n")


def test_signals_are_heard_as_before_once_libraries_are_loaded() -> None:
    before = [signal.getsignal(number) for number in interruptions.TERMINATIONS]
    with interruptions.loading():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in interruptions.TERMINATIONS] == before


def test_a_hangup_is_ignored_under_nohup_and_reacted_to_elsewhere() -> None:
    """nohup ignores SIGHUP before it starts a program."""
    for before, reactions in ((signal.SIG_IGN, 0), (signal.SIG_DFL, 1)):
        seen: list[str] = []
        earlier = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
        try:
            signal.signal(signal.SIGHUP, before)
            interruptions.on_termination(functools.partial(seen.append, "hangup"))
            signal.raise_signal(signal.SIGHUP)
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        assert len(seen) == reactions


def test_a_checkout_that_is_not_installed_is_one_line(folder: Path, database_url: str) -> None:
    """A study records the versions of what it needs, its own among them."""
    program = (
        "import sys\nfrom importlib import metadata\nfrom optimizer.cli.main import main\n"
        "find = metadata.Distribution.from_name\n"
        "def lacking(name):\n"
        "    if name == 'densitune': raise metadata.PackageNotFoundError(name)\n"
        "    return find(name)\n"
        "metadata.Distribution.from_name = lacking\n"
        "sys.argv = ['densitune', 'launch', 'tiny.yaml', '--workers', '0']\nmain()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment(database_url),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    [line] = ended.stderr.splitlines()
    assert "densitune is not installed; run pip install -e ." in line
    assert ended.returncode == 2
