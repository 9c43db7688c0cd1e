"""How many workers one PostgreSQL serves: simulated ones that sleep instead of training.

Each simulated worker does over TCP what a real one does, with the same code: it claims one job at a
time, heartbeats from a thread of its own, records a measurement at a rung and one at the end, and
has an engine with two connections of its own. Not simulated: the data, the proposer (all jobs are
queued beforehand), packs (which would claim and record less often), and processes: workers are
threads of a few processes, which share the cores with the server. What is measured as the server's
time therefore includes waiting for those threads, and a server with cores of its own does better.

The number of workers is doubled until a claim's 99th percentile or the share of a job's time that
goes into storage is over its limit.

    python benchmarks/storage_load.py                       # from 200 workers: some minutes
    python benchmarks/storage_load.py --workers 50 --most 50 --seconds 20
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers.cluster import Cluster
from helpers.simulated_workers import BUDGET, RUNG, SETUP_SECONDS, Load, Times, simulate
from sqlalchemy import Engine, text

from storage import database, studies, trials

CLAIM_LIMIT = 0.250
"""Seconds that 99 of 100 claims may take at most."""
SHARE_LIMIT = 0.02
"""Of the time of a job's worker, for claims and records."""
THREADS = 100
"""Simulated workers in one process."""
SEEDS = 10
"""Jobs of one trial."""


@dataclass(frozen=True)
class Found:
    """What a number of workers met with; times in seconds."""

    workers: int
    jobs: int
    jobs_per_second: float
    claim_median: float
    claim_p99: float
    claim_most: float
    record_p99: float
    heartbeat_p99: float
    share: float
    """Of a worker's time that claims and records took."""
    server_cores: float
    """How many cores the server kept busy."""
    client_cores: float
    errors: int

    @property
    def saturated(self) -> bool:
        """Tell whether a limit was passed."""
        return self.claim_p99 > CLAIM_LIMIT or self.share > SHARE_LIMIT or self.errors > 0


def measure(url: str, server: int, load: Load) -> Found:
    """Put a load on the server with this process id; return what the workers met with."""
    engine = database.connect(url)
    database.prepare(engine)
    name = f"load-{load.workers}-{time.time_ns()}"
    study_id = studies.create(engine, name, {}, "none", {}, "search")[0].id
    _queue(engine, study_id, round(load.workers * (load.seconds / load.job_seconds + 2)))
    processes = -(-load.workers // THREADS)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        ready = manager.Barrier(processes + 1)
        shares = [len(range(n, load.workers, processes)) for n in range(processes)]
        parts = pool.starmap_async(
            simulate, [(url, study_id, share, load, ready) for share in shares]
        )
        ready.wait(SETUP_SECONDS)
        before = cpu_seconds(server)
        time.sleep(load.seconds)
        server_seconds = cpu_seconds(server) - before
        simulated = parts.get()
    times = Times()
    for part, _ in simulated:
        times.add(part)
    for error in sorted({said.partition("\n")[0] for said in times.errors})[:3]:
        print(f"  error: {error}")
    done, rate = _done(engine, study_id)
    engine.dispose()
    return Found(
        workers=load.workers,
        jobs=done,
        jobs_per_second=rate,
        claim_median=statistics.median(times.claim),
        claim_p99=percentile(times.claim, 99),
        claim_most=max(times.claim),
        record_p99=percentile(times.record, 99),
        heartbeat_p99=percentile(times.heartbeat, 99),
        share=share_of_storage(times, load.job_seconds),
        server_cores=server_seconds / load.seconds,
        client_cores=sum(seconds for _, seconds in simulated) / load.seconds,
        errors=len(times.errors),
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the least value that `percent` of 100 do not exceed, 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0.0


def share_of_storage(times: Times, job_seconds: float) -> float:
    """Return the share of the workers' time that claims and records took."""
    storage = sum(times.claim) + sum(times.record)
    trained = len(times.record) * job_seconds * RUNG / BUDGET
    return storage / (storage + trained)


def main() -> None:
    arguments = _arguments()
    found: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="dt-load-") as folder:
        cluster = Cluster(Path(folder), max_connections=2 * arguments.most + 20)
        try:
            workers = arguments.workers
            while workers <= arguments.most and not (found and found[-1].saturated):
                load = Load(workers, arguments.job_seconds, arguments.seconds)
                found.append(measure(cluster.url, cluster.pid, load))
                print(_line(found[-1]), flush=True)
                workers *= 2
        finally:
            cluster.stop("fast")
    about = {"cores": os.cpu_count(), "job seconds": arguments.job_seconds, "PostgreSQL": 18}
    print(about)
    if arguments.json:
        report = {"environment": about, "found": [asdict(one) for one in found]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _queue(engine: Engine, study_id: int, count: int) -> None:
    with engine.begin() as connection:
        for number in range(-(-count // SEEDS)):
            trials.add(
                connection, study_id, "search", number=number, role="candidate", label="",
                densities={}, seeds=range(SEEDS), budget=BUDGET,
            )  # fmt: skip
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE densitune.jobs"))


def _done(engine: Engine, study_id: int) -> tuple[int, float]:
    """Return how many jobs are done, and how many that is per second."""
    query = text("""
        SELECT count(*), count(*) / extract(epoch FROM max(finished_at) - min(started_at))
        FROM densitune.jobs WHERE study_id = :study AND state = 'done'
    """)
    with engine.connect() as connection:
        done, rate = connection.execute(query, {"study": study_id}).one()
        return int(done), float(rate or 0)


def cpu_seconds(server: int) -> float:
    """Return the CPU time of a process and of its children, those that ended included."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    seconds = 0.0
    for pid in (server, *children):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            # After the name in parentheses comes field 3; 14 to 17 are user and system time of the
            # process and of its children that ended (proc_pid_stat(5)).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _line(found: Found) -> str:
    return (
        f"{found.workers:5d} workers: {found.jobs_per_second:6.1f} jobs/s, claim "
        f"{1000 * found.claim_median:.1f} ms median, {1000 * found.claim_p99:.1f} ms p99, "
        f"{1000 * found.claim_most:.0f} ms most; record p99 {1000 * found.record_p99:.1f} ms; "
        f"heartbeat p99 {1000 * found.heartbeat_p99:.1f} ms; storage {found.share:.2%} of a job; "
        f"server {found.server_cores:.2f} cores, clients {found.client_cores:.2f}; "
        f"{found.errors} errors"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=200, help="to begin with")
    parser.add_argument("--most", type=int, default=3200)
    parser.add_argument("--job-seconds", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of workers")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
