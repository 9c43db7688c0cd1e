"""Studies made by hand, as the database would give them: known numbers for tests of what is shown
and exported."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from densitune.density import Densities
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences
from optimizer.evidence.verdicts import Comparison, FinalistVerdict, PairedDifference, Verdict
from optimizer.snapshot import PhaseRows, Snapshot
from storage.ledger import LedgerRow
from storage.roster import WorkerRow
from storage.studies import Study
from storage.trials import TrialRow

WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
BUDGET, RUNG = 4, 2
NOTHING = PhaseRows()


def configured(**changes: Any) -> StudyConfig:
    """A valid config; sections given are merged into it, None takes a key out."""
    raw: dict[str, Any] = {
        "name": "a-study",
        "task": "photos",
        "proxy": {"family": "nafnet", "width": 8, "depth": 3},
        "kernel_size": 5,
        "training": {"budget": BUDGET, "lr": 0.01},
        "search": {"trials": 24, "seeds": 2, "rungs": [RUNG]},
    }
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict):
            raw[key] = {**raw[key], **value}
        else:
            raw[key] = value
    return study_file.parse({k: v for k, v in raw.items() if v is not None}, "by hand")


def trial(number: int, densities: Densities, **changes: Any) -> TrialRow:
    """A complete trial."""
    fields: dict[str, Any] = {
        "number": number,
        "optuna_number": number + 100,
        "origin": None,
        "role": "identity" if number == 0 else "candidate",
        "label": "identity" if number == 0 else f"trial {number}",
        "densities": densities,
        "arm": {},
        "state": "complete",
        "reason": None,
        "jobs": 2,
        "waiting": 0,
        "running": 0,
        "done": 2,
        "cut": 0,
        "failed": 0,
        "error_text": None,
    }
    return TrialRow(**{**fields, **changes})


def measured(number: int, by_seed: Mapping[int, float]) -> list[LedgerRow]:
    """What a trial's jobs leave in the ledger: a value at the rung, the final one at the budget."""
    return [
        LedgerRow(
            trial=number,
            seed=seed,
            budget=BUDGET,
            rung=rung,
            value=value - (BUDGET - rung),
            extra={},
            seconds=30.0 * rung,
        )
        for seed, value in by_seed.items()
        for rung in (RUNG, BUDGET)
    ]


def worker(number: int, **changes: Any) -> WorkerRow:
    """A worker that lives."""
    fields: dict[str, Any] = {
        "id": number,
        "host": "node7",
        "pid": 4000 + number,
        "device": "NVIDIA H200",
        "versions": {},
        "started_at": WHEN,
        "seen_at": WHEN,
        "stopped_at": None,
        "live": True,
        "jobs_done": 6,
        "jobs_per_hour": 60.0,
    }
    return WorkerRow(**{**fields, **changes})


def snapshot(
    trials: Sequence[TrialRow],
    rows: Sequence[LedgerRow],
    *,
    given: StudyConfig | None = None,
    workers: Sequence[WorkerRow] = (),
    jobs_per_hour: float = 0.0,
    calibrate: PhaseRows = NOTHING,
    confirm: PhaseRows = NOTHING,
    **study: Any,
) -> Snapshot:
    """A study at one moment."""
    given = given or configured()
    fields: dict[str, Any] = {
        "id": 1,
        "name": given.name,
        "config": given.document(),
        "data_fingerprint": "0123abcd" * 8,
        "provenance": {
            "source": "photographs",
            "floors": {"noisy input": 20.25},
            "versions": {"torch": "2.11.0"},
        },
        "state": "running",
        "failure": None,
        "created_at": WHEN,
        "finished_at": None,
        "phase": "search",
        "until": None,
        "forced": False,
        "lr": None,
        "verdicts": None,
    }
    return Snapshot(
        study=Study(**{**fields, **study}),
        config=given,
        trials=list(trials),
        rows=list(rows),
        results=differences.results(trials, rows),
        workers=list(workers),
        jobs_per_hour=jobs_per_hour,
        calibrate=calibrate,
        confirm=confirm,
    )


def usual(**changes: Any) -> Snapshot:
    """Identity, the published densities and six candidates; one failed, one running."""
    published = {
        1: ((0.2, 0.8), "v2 README"),
        2: ((0.3, 1.5), "v1 README"),
        3: ((1.5, 0.75), "v2 learning_2D.py"),
    }
    trials = [trial(0, {5: (1.0, 1.0)})]
    trials += [
        trial(number, {5: den}, role="published", label=source)
        for number, (den, source) in published.items()
    ]
    trials += [trial(n, {5: (0.1 * n + 0.1 / 3, 1.0 + n / 7)}) for n in range(4, 10)]
    trials.append(
        trial(10, {5: (0.05, 2.0)}, state="failed", reason="loss is not finite", done=0, failed=2)
    )
    trials.append(trial(11, {5: (0.5, 0.6)}, state="running", done=0, waiting=1, running=1))
    rows = [
        row
        for number in range(10)
        for row in measured(number, {0: 24.0 + 0.11 * number, 1: 25.0 + 0.13 * (number % 7)})
    ]
    workers = [worker(1), worker(2), worker(3, live=False, device="cpu")]
    return snapshot(trials, rows, **{"workers": workers, "jobs_per_hour": 120.0, **changes})


def decided() -> Snapshot:
    """The usual study after a confirmation: trial 6 better, trial 9 a matter of scale."""
    known = usual()
    fresh = [1_000_000_000 + n for n in range(4)]
    effects = {0: 0.0, 1: 0.5, 2: 0.1, 3: 0.2, 4: 0.4, 5: 0.3, 6: 0.29, 7: 0.3, 8: 0.0}
    noise = {0: 0.0, 1: 0.01, 2: -0.01, 3: 0.02}
    arms = [trial(0, {5: (1.0, 1.0)}, optuna_number=None)]
    for number, origin in ((1, 6), (5, 9)):
        found, label = known.trials[origin].densities, f"trial {origin}"
        built: list[tuple[str, str, Densities]] = [
            ("finalist", label, found),
            ("control", f"scale control of {label}", {5: (1.0, 1.0)}),
            ("uniform", f"uniform mask of {label}", found),
            ("compensated", f"{label}, compensated", found),
        ]
        for place, (role, name, densities) in enumerate(built):
            changed = {"origin": origin, "role": role, "label": name, "optuna_number": None}
            arms.append(trial(number + place, densities, **changed))
    values = {
        arm.number: {
            seed: 26.0 + n + effects[arm.number] + noise[(n * (arm.number + 1)) % 4]
            for n, seed in enumerate(fresh)
        }
        for arm in arms
    }
    rows = [
        dataclasses.replace(row, budget=2 * BUDGET, rung=2 * BUDGET)
        for number, by_seed in values.items()
        for row in measured(number, by_seed)
        if row.rung == BUDGET
    ]
    reached: list[tuple[int, int, Verdict]] = [(1, 6, "better"), (5, 9, "scale_only")]
    stored = [
        _finalist(known.trials[origin], verdict, values, number).model_dump()
        for number, origin, verdict in reached
    ]
    return dataclasses.replace(
        usual(state="finished", phase="decided", verdicts=stored, finished_at=WHEN),
        confirm=PhaseRows(arms, rows),
    )


def _finalist(
    origin: TrialRow, verdict: Verdict, values: Mapping[int, Mapping[int, float]], number: int
) -> FinalistVerdict:
    def comparison(arm: int, against: int) -> Comparison:
        found = differences.paired(values[arm], values[against])
        by_seed = {str(seed): value for seed, value in found.by_seed.items()}
        reach = 0.05
        return Comparison(
            mean=found.mean, low=found.mean - reach, high=found.mean + reach, by_seed=by_seed
        )

    compensated = differences.paired(values[number + 3], values[0])
    return FinalistVerdict(
        trial=origin.number,
        label=origin.label,
        densities={str(k): list(den) for k, den in origin.densities.items()},
        verdict=verdict,
        to_identity=comparison(number, 0),
        to_control=comparison(number, number + 1),
        to_uniform=comparison(number, number + 2),
        compensated=PairedDifference(
            mean=compensated.mean,
            standard_error=compensated.standard_error,
            by_seed={str(seed): value for seed, value in compensated.by_seed.items()},
        ),
        seeds_to_settle=40 if verdict == "scale_only" else None,
    )
