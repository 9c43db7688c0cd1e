"""How far a study is, in words: counts, time left, and what its confirmation has found so far."""

from optimizer.evidence import differences
from optimizer.phases import comparisons
from optimizer.phases.comparisons import IDENTITY
from optimizer.show import words
from optimizer.snapshot import PhaseRows, Snapshot
from storage.states import Phase

_CALLED: dict[Phase, str] = {
    "calibrate": "about {} left of the calibration",
    "search": "about {} left of the search",
    "confirm": "{} left of the confirmation, if no arm ends early or is added",
    "check": "about {} left of the check, if no arm asks for further rates",
    "audit": "about {} left of the audit, if its rate needs no more",
    "decided": "about {} left of the test split",
}


def progress(snapshot: Snapshot) -> str:
    """Return the phase of a study and how far that is."""
    match snapshot.study.phase:
        case "calibrate":
            return f"calibrating the learning rate: {_job_counts(snapshot, snapshot.calibrate)}"
        case "confirm":
            seeds = max((trial.jobs for trial in snapshot.confirm.trials), default=0)
            most = snapshot.config.confirm.seeds
            finalists = [t for t in snapshot.confirm.trials if t.role == "finalist"]
            undecided = sum(trial.state == "running" for trial in finalists)
            return (
                f"confirming: {undecided} of {len(finalists)} finalists open, seed {seeds} of at "
                f"most {most}, {_job_counts(snapshot, snapshot.confirm)}"
            )
        case "check":
            return f"checking the winner: {_job_counts(snapshot, snapshot.check)}"
        case "audit":
            return f"auditing on the larger network: {_job_counts(snapshot, snapshot.audit)}"
        case "search" | "decided":
            return trial_counts(snapshot)


def trial_counts(snapshot: Snapshot) -> str:
    """Return how many trials are done, running, cut and failed."""
    counts = snapshot.counts
    return (
        f"{snapshot.ended}/{counts['asked for']} trials done, {counts['running']} "
        f"{_open(snapshot)}, {counts['pruned']} cut, {counts['failed']} failed"
    )


def _job_counts(snapshot: Snapshot, phase: PhaseRows) -> str:
    jobs = phase.jobs
    still = jobs["running"] + (0 if snapshot.study.state == "running" else jobs["waiting"])
    return (
        f"{jobs['done']}/{jobs['queued']} jobs done, {still} {_open(snapshot)}, "
        f"{jobs['failed']} failed"
    )


def _open(snapshot: Snapshot) -> str:
    """Return how that is called which has begun and not ended: nothing runs in a stopped study."""
    return "running" if snapshot.study.state == "running" else "open"


def running_result(snapshot: Snapshot) -> str:
    """Return what a confirmation has found so far: the largest difference of an open finalist.

    Over the seeds of whole batches only, at which the test has looked as well.
    """
    config, values = snapshot.config, differences.final_values(snapshot.confirm.rows)
    found = []
    for group in comparisons.groups(snapshot.confirm.trials):
        own, identity = values.get(group.finalist.number, {}), values.get(IDENTITY, {})
        both = [seed for seed in config.fresh_seeds if seed in own and seed in identity]
        looked_at = both[: len(both) // config.confirm.batch * config.confirm.batch]
        if looked_at:
            so_far = differences.paired({seed: own[seed] for seed in looked_at}, identity)
            found.append((so_far.mean, group.finalist, so_far))
    if not found:
        return f"confirmation: the first look comes after {config.confirm.batch} fresh seeds"
    _, finalist, so_far = max(found, key=lambda entry: entry[0])
    return (
        f"confirmation so far: {words.densities(finalist.densities)} "
        f"{words.signed(so_far.mean, so_far.standard_error)} {config.unit} to identity over "
        f"{len(so_far.by_seed)} fresh seeds, no verdict yet"
    )


def worker_line(snapshot: Snapshot) -> str:
    """Return the live workers, their rate and the time left; or that nothing is trained."""
    live = len(snapshot.live_workers)
    workers = f"{live} worker{'s' if live != 1 else ''}"
    study = snapshot.study
    if study.state != "running":
        leaving = f"; {workers} about to leave" if live else ""
        by_hand = study.state == "stopped" and study.failure is None
        going_on = f"; continue with: densitune resume {study.name}" if by_hand else ""
        return f"{study.state}, nothing is trained{leaving}{going_on}"
    rate, left = words.per_hour(snapshot.jobs_per_hour), snapshot.seconds_left
    ending = "" if not left else ", " + _CALLED[study.phase].format(words.duration(left))
    return f"{workers}, {rate} jobs/hour{ending}"
