"""How much of a phase is left."""

from collections.abc import Iterable

from optimizer.config.study_file import StudyConfig
from storage.states import Phase
from storage.trials import TrialRow


def jobs(phase: Phase, config: StudyConfig, trials: Iterable[TrialRow]) -> int:
    """Return how many jobs of a phase are left, given its trials so far.

    Trials may be cut, and finalists judged early or dropped, so it is often less. Of a calibration
    they are those that are queued, for its grid may grow; of a confirmation those of the arms that
    it has so far, for controls are added once a finalist beats identity. What checks and an
    audit are still to queue is theirs to say (optimizer.phases.checks, audit).
    """
    begun = [trial for trial in trials if trial.state == "running"]
    ended = sum(trial.state != "running" for trial in trials)
    match phase:
        case "search":
            seeds = config.search.seeds
            return (config.search.trials - ended) * seeds - sum(_ended(trial) for trial in begun)
        case "confirm":
            learning = [trial for trial in begun if trial.role == "trainable"]
            arms = [trial for trial in begun if trial.role != "trainable"]
            most = config.confirm.seeds * len(arms) + sum(trial.jobs for trial in learning)
            return most - sum(_ended(trial) for trial in begun)
        case "calibrate" | "check" | "audit" | "decided":
            return sum(trial.waiting + trial.running for trial in trials)


def _ended(trial: TrialRow) -> int:
    return trial.done + trial.cut + trial.failed
