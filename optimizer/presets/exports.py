"""From a study to its preset: which density is handed over, and what is said about it."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from densitune.density import Densities
from optimizer.config.study_file import StudyConfig
from optimizer.errors import EvidenceError, UsageError
from optimizer.evidence import advice
from optimizer.evidence.audit import Audit
from optimizer.evidence.cautions import UNCOUNTED, UNMASKED
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import (
    MEANING,
    Control,
    FinalistVerdict,
    Found,
    Holdout,
    PairedDifference,
    PresetVerdict,
)
from optimizer.phases import extension, own_rates
from optimizer.presets import notes
from optimizer.presets.document import (
    CONVENTION,
    SCHEMA,
    Confirmation,
    Evidence,
    Preset,
    PresetTask,
    Provenance,
    sealed,
    sha256,
    write,
)
from optimizer.snapshot import Snapshot, precision
from storage.ledger import LedgerRow
from storage.studies import Study


def compose(snapshot: Snapshot, chosen: TrialResult) -> Preset:
    """Return the preset of one trial of a study's search, with its verdict if it has one."""
    preset = Preset(
        schema=SCHEMA,
        name=snapshot.config.name,
        densities={str(k): list(den) for k, den in chosen.densities.items()},
        convention=CONVENTION,
        use="; ".join(_use(k, list(den)) for k, den in chosen.densities.items()),
        task=_task(snapshot),
        evidence=_evidence(snapshot, chosen),
        provenance=_provenance(snapshot, chosen),
    )
    return sealed(preset)


def export(
    snapshot: Snapshot, folder: Path, trial: int | None = None, *, require_better: bool = False
) -> tuple[Path, Preset]:
    """Write the preset of a trial, or else of the study's winner; return its path and contents.

    UsageError if there is no such result yet, or the folder cannot be written; EvidenceError, with
    nothing written, if the verdict has to be `better` and is not, by the rules of this version, or
    the baseline is not healthy, or the rate check that the study asks for does not say yes.
    """
    preset = compose(snapshot, chosen(snapshot, trial))
    complaint = snapshot.complaint
    if require_better and complaint is None and preset.evidence.note.startswith(notes.EARLIER):
        complaint = next(line for line in (UNMASKED, UNCOUNTED) if line in preset.evidence.note)
    if require_better and complaint is not None:
        raise EvidenceError(
            f"study {preset.name}: {complaint} A sound `better` was required; nothing was written"
        )
    if require_better and preset.evidence.verdict != "better":
        raise EvidenceError(
            f"study {preset.name}: trial {preset.provenance.trial} is {preset.evidence.verdict} "
            f"({MEANING[preset.evidence.verdict]}), and better was required; nothing was written"
        )
    unshown = _unshown(snapshot, preset)
    if require_better and unshown is not None:
        raise EvidenceError(
            f"study {preset.name}: trial {preset.provenance.trial} is better, and {unshown}; a "
            "`better` that passes the check that its study asks for was required; nothing was "
            "written"
        )
    return write(preset, folder), preset


def _unshown(snapshot: Snapshot, preset: Preset) -> str | None:
    """Return what a rate check that was asked for leaves open of a `better`; None if nothing."""
    checked, trial = preset.evidence.own_rates, preset.provenance.trial
    if checked is not None and checked.holds is False:
        return "not shown to hold with each arm at a learning rate of its own"
    finalist = next((one for one in snapshot.verdicts if one.trial == trial), None)
    if finalist is None or not own_rates.wanted(snapshot.study, snapshot.config, finalist):
        return None
    if checked is None:
        return "whether it holds with each arm at a learning rate of its own was not checked"
    reason = f"whether it holds at each arm's own rate could not be checked: {checked.reason}"
    return None if checked.holds else reason


def chosen(snapshot: Snapshot, trial: int | None = None) -> TrialResult:
    """Return the trial that is handed over: the one asked for, or the study's winner.

    The winner is the best finalist that is `better`, else the one with the largest difference of
    those that were not dropped, else of those (verdicts.best); without finalists, the trial with
    the largest difference in the search. UsageError if there is no such result yet.
    """
    if trial is None and snapshot.winner is not None:
        trial = snapshot.winner.trial
    result = snapshot.best
    if trial is not None:
        results = [*snapshot.results, *filter(None, [snapshot.learned])]
        result = next((other for other in results if other.number == trial), None)
    if result is None:
        which = "no trial" if trial is None else f"no result of trial {trial}"
        raise UsageError(
            f"study {snapshot.study.name} has {which} to export yet; "
            f"look at: densitune status {snapshot.study.name}"
        )
    return result


def _task(snapshot: Snapshot) -> PresetTask:
    config, study = snapshot.config, snapshot.study
    document = shareable(config)
    return PresetTask(
        source=source(study),
        split="validation",
        fingerprint=study.data_fingerprint,
        proxy=document["proxy"] or {},
        kernel_size=list(config.kernel_size),
        init=config.init,
        training=_training(snapshot),
        metric=config.metric,
        unit=config.unit,
    )


def _training(snapshot: Snapshot) -> dict[str, Any]:
    """Return how jobs were trained, as far as the study says it and not a script."""
    config, by_script = snapshot.config, snapshot.config.proxy is None
    told = {
        **config.training.model_dump(exclude_none=True),
        "lr": snapshot.lr or config.training.lr,
        "precision": precision(snapshot.study),
    }
    return {
        key: value
        for key, value in told.items()
        if not (by_script and key in ("batch_size", "precision"))
    }


def _evidence(snapshot: Snapshot, chosen: TrialResult) -> Evidence:
    finalist = next((one for one in snapshot.verdicts if one.trial == chosen.number), None)
    verdict: PresetVerdict = "unconfirmed" if finalist is None else finalist.verdict
    checked = snapshot.own_rates
    rates = checked if checked is not None and checked.trial == chosen.number else None
    audited = _audit(snapshot, chosen.number)
    return Evidence(
        verdict=verdict,
        advice=advised(
            verdict,
            chosen.densities,
            snapshot.config,
            finalist,
            snapshot.controls,
            rates,
            audited,
            healthy=snapshot.healthy,
        ),
        note=notes.of(verdict, finalist, rates, snapshot.controls, healthy=snapshot.healthy),
        own_rates=rates,
        audit=audited,
        confirmation=None if finalist is None else _confirmation(snapshot, finalist),
        test=_test(snapshot, chosen.number),
        seeds=sorted(chosen.values),
        value=chosen.mean,
        identity=snapshot.results[0].mean,
        floor=max(snapshot.floors.values()),
        floors=snapshot.floors,
        difference_to_identity=PairedDifference.of(chosen.difference),
        searched_by=snapshot.searched_by,
        trials_compared=snapshot.counts["complete"] + snapshot.counts["pruned"],
        cautions=snapshot.cautions,
    )


def _provenance(snapshot: Snapshot, chosen: TrialResult) -> Provenance:
    study, document = snapshot.study, shareable(snapshot.config)
    return Provenance(
        study=snapshot.config.name,
        trial=chosen.number,
        label=chosen.label,
        optuna_trial=chosen.optuna_number,
        config=document,
        versions=study.provenance["versions"] | study.provenance.get("code", {}),
        devices=sorted({worker.device for worker in snapshot.workers}),
        device_hours=round(
            sum(_seconds(phase.rows) for phase in snapshot.phases.values()) / 3600, 4
        ),
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config_sha256=sha256(document),
        ledger_sha256=sha256(
            [
                [name, row.trial, row.seed, row.rung, row.value]
                for name, phase in snapshot.phases.items()
                for row in phase.rows
            ]
        ),
    )


def advised(
    verdict: PresetVerdict,
    densities: Densities,
    config: StudyConfig,
    found: Found | None,
    wanted: Collection[Control],
    rates: RateCheck | None = None,
    audited: Audit | None = None,
    *,
    healthy: bool,
) -> str:
    """Return what to do where a density has this verdict, and identity was healthy or not."""
    if not healthy:
        return advice.UNHEALTHY
    return advice.line(verdict, densities, config, found, wanted, rates, audited)


def _confirmation(snapshot: Snapshot, finalist: FinalistVerdict) -> Confirmation:
    trained = finalist.to_identity
    return Confirmation(
        seeds=0 if trained is None else len(trained.by_seed),
        budget=snapshot.config.confirm_budget,
        finalists=len(snapshot.verdicts),
        to_identity=finalist.to_identity,
        to_control=finalist.to_control,
        to_uniform=finalist.to_uniform,
        uniform_is_identity=snapshot.uniform_is_identity,
        failures=finalist.failures,
        diverged=finalist.diverged,
        identity=snapshot.confirmed_identity,
        compensated=finalist.compensated,
        seeds_to_settle=finalist.seeds_to_settle,
        reason=finalist.reason,
        extended_from=extension.seeds_before(snapshot.study),
    )


def _test(snapshot: Snapshot, trial: int) -> Holdout | None:
    found = snapshot.holdout
    return found if found is not None and found.trial == trial else None


def _audit(snapshot: Snapshot, trial: int) -> Audit | None:
    found = snapshot.carried_over
    return found if found is not None and found.trial == trial else None


def source(study: Study) -> str:
    """Return what the data are; where they lay on somebody's machine is nobody's business."""
    told: str = study.provenance["source"]
    folder = study.config["data"].get("folder")
    return told if folder is None else told.replace(folder, Path(folder).name)


def shareable(config: StudyConfig) -> dict[str, Any]:
    """Return the config as a document, without where the data lie on somebody's machine."""
    document = config.document()
    for place in ("folder", "test"):
        if not isinstance(document["data"].get(place), bool):  # whether there is a test split
            document["data"].pop(place, None)
    return document


def _use(kernel_size: int, den: list[float]) -> str:
    """Return a call of the authors' layer; its padding is 1, whatever the kernel, unless given."""
    size = f"kernel_size={kernel_size}, den={den}, padding={kernel_size // 2}"
    return f"wConv2d(in_channels, out_channels, {size})"


def _seconds(rows: Sequence[LedgerRow]) -> float:
    """Return the training time of all jobs: the time at each job's last rung."""
    last: dict[tuple[int, int], float] = {}
    for row in rows:
        key = (row.trial, row.seed)
        last[key] = max(row.seconds, last.get(key, 0.0))
    return sum(last.values())
