"""A study whose processes are killed in every phase ends as an undisturbed one does."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from support.queued import EXPIRE
from support.shell import Here, command, environment, query, run, write_config
from support.waiting import wait_for

pytestmark = pytest.mark.slow

PHASES = ("calibrate", "search", "confirm")
TRAINING = {"budget": 2, "batch_size": 8}


def preset(folder: Path) -> dict[str, Any]:
    """What was exported, without the times (when, and how long the devices took) and their hash."""
    content: dict[str, Any] = json.loads((folder / "presets" / "killed.json").read_text())
    for changing in ("exported_at", "device_hours", "content_sha256"):
        del content["provenance"][changing]
    return content


def kill_in(phase: str, folder: Path, url: str, database: Engine) -> None:
    """Launch the study, and kill it and its workers at once while it trains in the phase.

    They are stopped before the last look, so that no job can end between the look and the kill.
    """
    launch = subprocess.Popen(
        command("launch", "killed.yaml", "--force", "--workers", "2"),
        cwd=folder,
        env=environment(url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    training = f"SELECT 1 FROM densitune.jobs WHERE phase = '{phase}' AND state = 'running'"
    done = f"SELECT 1 FROM densitune.jobs WHERE phase = '{phase}' AND state = 'done'"
    wait_for(lambda: query(database, done))
    # Workers have sessions of their own, so there is no process group to send a signal to.
    workers = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
    assert len(workers) == 2

    def send(number: signal.Signals) -> None:
        for pid in (launch.pid, *map(int, workers)):
            os.kill(pid, number)

    def caught() -> bool:
        send(signal.SIGSTOP)
        if query(database, training):
            return True
        send(signal.SIGCONT)
        return False

    wait_for(caught)
    send(signal.SIGKILL)
    launch.wait()
    with database.begin() as connection:  # leases would run out by themselves after a minute
        connection.execute(text(EXPIRE))


def test_a_study_killed_in_every_phase_gives_the_verdict_and_preset_of_an_undisturbed_one(
    tmp_path: Path, database: Engine, database_url: str, here: Here
) -> None:
    confirm = {"finalists": 1, "seeds": 6, "batch": 3, "budget": 3}
    write_config(tmp_path, "killed", training=TRAINING, confirm=confirm)
    calm = run(tmp_path, database_url, "launch", "killed.yaml", "--force", "--workers", "1")
    assert calm.returncode == 0, calm.stderr
    expected = preset(tmp_path)
    (tmp_path / "presets" / "killed.json").unlink()
    assert here.run(tmp_path, database_url, "delete", "killed", "--yes").returncode == 0

    for phase in PHASES:
        kill_in(phase, tmp_path, database_url, database)
    ended = run(tmp_path, database_url, "launch", "killed.yaml", "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    assert preset(tmp_path) == expected
    losses = query(database, "SELECT sum(losses) FROM densitune.jobs")
    assert losses[0][0] >= len(PHASES)
