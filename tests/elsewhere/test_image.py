"""docker/ in a Docker engine: the image built, and a study from `up` to its preset.

make image. Where no engine runs, root gets one made of Debian's packages (engine.sh), with
stand-ins for the two images that are pulled otherwise: Debian's Python and PostgreSQL.
"""

import json
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import shell
from support.checkout import ROOT
from support.engine import Engine, engine
from support.waiting import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

PATIENCE = 900.0
"""Seconds after which what should happen does not, on a busy machine."""
OWN = ("roles", "launch", "worker", "dashboard")
RUNNING = ("postgres-1", "launch-1", "worker-1", "worker-2")
INSIDE = "id -u; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; touch /new 2>&1; ls /run/secrets"
STUDY: dict[str, Any] = {
    "data": {"patch": 16, "patches_per_image": 16, "crop": 32},
    "training": {"budget": 60, "batch_size": 8, "lr": 0.003},
    "search": {"trials": 5, "seeds": 1, "rungs": [20], "sampler": "qmc"},
    "confirm": {"finalists": 1, "seeds": 2, "batch": 2, "budget": 20},
}
"""Work that goes on for some time after the first measurement."""
LAUNCH: list[str] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"][
    "launch"
]["command"]
PROJECT = "densitune-try"
"""Not `densitune`: on an engine that others use, that one may be somebody's study."""


@dataclass
class Course:
    """A study in containers, and what was seen on its way."""

    engine: Engine
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    inside: str = ""
    users: list[str] = field(default_factory=list)
    stopped: dict[str, int] = field(default_factory=dict)
    held: str = ""
    ended: dict[str, int] = field(default_factory=dict)
    said: str = ""

    def compose(self, *arguments: str, seconds: float = 1800) -> str:
        return self.engine.run("compose", *arguments, folder=self.folder, seconds=seconds)

    def query(self, statement: str) -> str:
        psql = ("exec", "--no-TTY", "postgres", "psql", "--username=densitune", "-AXqt")
        return self.compose(*psql, "--dbname=densitune", f"--command={statement}").strip()

    def state(self, name: str) -> dict[str, Any]:
        return dict(self.engine.inspect(f"{PROJECT}-{name}")["State"])

    def wait_for_health(self, *names: str) -> None:
        def healthy() -> bool:
            return all(self.state(name)["Health"]["Status"] == "healthy" for name in names)

        wait_for(healthy, PATIENCE)

    def codes(self) -> dict[str, int]:
        return {name: self.state(name)["ExitCode"] for name in RUNNING}


def prepare(found: Engine) -> Course:
    """Lay out what docker/README.md asks for, in a copy of the checkout."""
    checkout = found.context / "densitune"
    listed = (ROOT / ".dockerignore").read_text().splitlines()
    for name in ["docker", ".dockerignore", *(n[1:] for n in listed if n.startswith("!"))]:
        source, target = ROOT / name, checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
        else:
            shutil.copy(source, target)
    folder = checkout / "docker"
    (folder / "secrets").mkdir(mode=0o700)
    for who in ("postgres", "proposer", "worker", "reader"):
        (folder / "secrets" / f"{who}_password").write_text(secrets.token_hex(24))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shell.write_config(folder, "small", **STUDY)
    (folder / "try.yaml").write_text(yaml.safe_dump({"services": changes(found)}))
    told = {
        "CONFIG": "./small.yaml",
        "STUDY": "small",
        "DASHBOARD_PORT": port,
        "COMPOSE_PROJECT_NAME": PROJECT,
        "COMPOSE_FILE": "compose.yaml:try.yaml",
    }
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in told.items()))
    return Course(found, folder)


def changes(found: Engine) -> dict[str, Any]:
    """Return what differs from compose.yaml: names, the build's network, and haste."""
    own: dict[str, Any] = {"image": PROJECT, "healthcheck": {"interval": "15s"}}
    if found.own:
        own["build"] = {"network": "host"}
    services = {name: dict(own) for name in OWN}
    # The network of a minute is not above the floor.
    services["launch"]["command"] = [*LAUNCH, "--force"]
    return services


def run(course: Course) -> None:
    up = ("up", "--detach", "--scale", "worker=2")
    course.compose(*up, "--build", "worker")  # which wait for the study
    course.wait_for_health("postgres-1", "worker-1", "worker-2")
    course.settings = course.engine.inspect(f"{PROJECT}-worker-1")
    course.inside = course.compose("exec", "--no-TTY", "worker", "sh", "-c", INSIDE)
    course.compose("stop", "worker")
    course.compose("up", "--detach", "launch")
    course.wait_for_health("launch-1")
    course.compose(*up)
    wait_for(lambda: course.query("SELECT 1 FROM densitune.measurements LIMIT 1"), PATIENCE)
    course.users = course.query("SELECT DISTINCT usename FROM pg_stat_activity").split()
    course.compose("stop")
    course.stopped = course.codes()
    course.compose("start", "postgres")
    course.wait_for_health("postgres-1")
    course.held = course.query("SELECT count(*) FROM densitune.jobs WHERE state = 'running'")
    course.compose(*up)
    wait_for(lambda: not any(course.state(name)["Running"] for name in RUNNING[1:]), PATIENCE)
    course.ended = course.codes()
    course.said = course.compose("logs", "worker")
    course.compose("cp", "launch:/data/presets", ".")
    course.compose("up", "--detach", "dashboard")
    course.wait_for_health("dashboard-1")


@pytest.fixture(scope="module")
def course() -> Iterator[Course]:
    with engine() as found:
        made = prepare(found)
        try:
            run(made)
            yield made
        except BaseException:
            print(made.engine.ask("compose", "logs", folder=made.folder).stdout[-8000:])
            raise
        finally:
            made.engine.ask("compose", "--profile=*", "down", "--volumes", folder=made.folder)


def test_a_container_has_no_rights_and_writes_to_its_volume_only(course: Course) -> None:
    user, capabilities, privileges, refused, *mounted = course.inside.splitlines()
    assert user == "10001"
    assert capabilities.split() == ["CapEff:", "0000000000000000"]
    assert privileges.split() == ["NoNewPrivs:", "1"]
    assert refused.endswith("Read-only file system")
    assert mounted == ["worker_password"]
    variables = "".join(course.settings["Config"]["Env"])
    assert not [f for f in (course.folder / "secrets").iterdir() if f.read_text() in variables]


def test_no_service_works_as_the_owner_of_the_database(course: Course) -> None:
    assert {"densitune_proposer", "densitune_worker"} <= set(course.users)


def test_told_to_stop_all_leave_in_time_and_hand_their_jobs_back(course: Course) -> None:
    # 137 would be the engine's patience at an end.
    told = {"launch-1": 130, "worker-1": 130, "worker-2": 130}
    assert course.stopped == {"postgres-1": 0, **told}
    assert course.held == "0"


def test_a_second_start_goes_on_from_checkpoints_to_the_end(course: Course) -> None:
    assert "goes on from its checkpoint" in course.said
    assert course.ended == dict.fromkeys(RUNNING, 0)


def test_the_preset_is_in_order(course: Course) -> None:
    preset = course.folder / "presets" / "small.json"
    assert json.loads(preset.read_text())["evidence"]["verdict"]
    checked = [sys.executable, "-m", "optimizer.cli", "verify", str(preset)]
    assert subprocess.run(checked, cwd=ROOT, check=False).returncode == 0
