"""A SLURM cluster of one node on this machine, all of it as one ordinary user.

munged, slurmctld and slurmd get a configuration, key, socket, folders and ports of their own: a
cluster that is there already is neither read nor touched.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.waiting import wait_for

PACKAGES = {
    "munged": "munge",
    "sbatch": "slurm-client",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
}
"""Debian's package for each program that has to be here."""

PATH = f"{os.environ['PATH']}:/usr/sbin"

# More cores than there are, for worker.sbatch asks for four and several tasks are to run at once.
# A requeued job waits for as long as a credential lasts (cred_expire): two minutes by default.
CONFIGURATION = """
ClusterName=one
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmdTimeout=20
ReturnToService=2
NodeName={node} NodeAddr=127.0.0.1 CPUs=12 RealMemory=64000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the packages whose programs are not here."""
    return [package for name, package in PACKAGES.items() if not shutil.which(name, path=PATH)]


@dataclass(frozen=True)
class Task:
    """What became of a task of an array so far."""

    state: str
    restarts: int
    exit_code: str


@dataclass
class Slurm:
    """A cluster that runs."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]]

    def run(self, *command: str, folder: Path | None = None, **environment: str) -> str:
        """Run one of SLURM's commands; return what it printed."""
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def task(self, name: str) -> Task:
        """Ask for a task by its name, such as 7_0."""
        shown = self.run("scontrol", "show", "job", name).split()
        told = dict(word.split("=", 1) for word in shown if "=" in word)
        return Task(told["JobState"], int(told["Restarts"]), told["ExitCode"])

    def node_state(self) -> str:
        return self.run("sinfo", "--noheader", "--format=%T").strip()

    def start(self, name: str, *arguments: str) -> None:
        """Start a daemon, which stays in the foreground."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [name, *arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start_node(self) -> None:
        self.start("slurmd", "-D", "-c")
        wait_for(lambda: self.node_state() == "idle")

    def crash_node(self) -> None:
        """End all that runs on the node without a word, as a power failure does."""
        node = self.daemons.pop("slurmd")
        node.kill()
        node.wait()
        _kill_jobs(self.folder)


def _kill_jobs(folder: Path) -> None:
    """Kill the batch scripts, with the sessions that slurmd has started them in."""
    spool = str(folder / "spool").encode()
    found = dict(_processes())
    sessions = {session for session, command in found.values() if spool in command}
    for pid, (session, _) in found.items():
        if session in sessions:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, tuple[int, bytes]]]:
    """Yield the processes of this machine, with their sessions and command lines."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            yield int(path.name), (os.getsid(int(path.name)), (path / "cmdline").read_bytes())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Start a cluster in an empty folder that everybody may pass; end it with all its jobs."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
        (folder / name).chmod(0o711)  # munged wants its socket to be within everybody's reach
    munge = folder / "munge"
    (munge / "key").touch(0o600)
    (munge / "key").write_bytes(os.urandom(128))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            node=socket.gethostname().split(".")[0],
            port=_free_port(),
            node_port=_free_port(),
            user=getpass.getuser(),
        )
    )
    made = Slurm(folder, {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}, {})
    with ExitStack() as stack:
        stack.callback(_end, made)
        own = [f"--{name}-file={munge / name}" for name in ("key", "log", "pid", "seed")]
        made.start("munged", "--foreground", f"--socket={munge / 'socket'}", *own)
        wait_for((munge / "socket").exists, 20)
        made.start("slurmctld", "-D", "-c")
        made.start_node()
        yield made


def _end(made: Slurm) -> None:
    _kill_jobs(made.folder)
    for daemon in made.daemons.values():
        daemon.terminate()
    for daemon in made.daemons.values():
        daemon.wait(60)
