"""A study from its creation to its end, as the process that launches it sees it.

It takes the proposer's role, looks after the local workers and shows how far the study is.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from optimizer import snapshot
from optimizer.cli import display, origin
from optimizer.cli.display import Show
from optimizer.cli.fleet import Death, Fleet
from optimizer.config import changes
from optimizer.config.study_file import StudyConfig, parse
from optimizer.errors import StudyFailedError, UsageError
from optimizer.evidence import ranking
from optimizer.phases import extension, optuna_study, upkeep
from optimizer.phases.proposer import Proposer
from optimizer.show import printing
from optimizer.snapshot import Snapshot
from storage import jobs, retry, studies
from storage.states import Phase
from storage.studies import Study

STEP_SECONDS = 0.2
"""Between two looks at the ledger."""
REFRESH_SECONDS = 1.0
"""Between two refreshes of the display."""
LAST_WORD_SECONDS = 30.0
"""How long to wait for a storage that has yet to hear how the last worker ended, or to delete."""

Result = TypeVar("Result")


def create(
    engine: Engine,
    config: StudyConfig,
    source: str,
    fingerprint: str,
    precision: str,
    facts: Callable[[], Mapping[str, Any]],
) -> Study:
    """Store a new study, or return the existing one of this name if it is the same.

    `source` and `fingerprint` say what the data are, `precision` in what arithmetic a new study
    is trained; `facts` computes what else a new study keeps (workers.preparation.facts).
    UsageError, with nothing written, if the name is taken by a study with another config or other
    data, or by an Optuna study of somebody else.
    """
    # Before ours is looked for: whoever launches the same at this moment stores that one first.
    taken = config.name in upkeep.names(engine)
    study = studies.find(engine, config.name)
    if study is None:
        if taken:
            raise UsageError(
                f"study name {config.name} is taken by an Optuna study; choose another name, or, "
                f"if it is left of a deleted study of ours, remove it: densitune doctor --fix"
            )
        provenance = {
            "source": source,
            **facts(),
            "precision": precision,
            ranking.KEPT: ranking.of_new(config),
            "versions": optuna_study.versions(),
        }
        first: Phase = "calibrate" if config.training.lr == "auto" else "search"
        study, created = studies.create(
            engine, config.name, config.document(), fingerprint, provenance, first
        )
        if created:
            return study
    origin.check_fingerprint(study, source, fingerprint)
    stored = parse(study.config, origin=f"of study {study.name}")  # with defaults newer than it
    changed = changes.between(stored.document(), config.document())
    if extension.is_asked_for(stored, config):
        return extension.extend(engine, study, config)
    if extension.checks_are_asked_for(study, stored, config):
        return extension.check(engine, study, stored, config, facts)
    if changed:
        raise UsageError(
            f"study {config.name} exists with another config ({'; '.join(changed)}); to go on with "
            f"the stored one: densitune resume {config.name}; else choose another name (and "
            f"search.seed, or it has the same seeds), or delete it: densitune delete {config.name}"
        )
    return study


def clear(engine: Engine, name: str) -> None:
    """Delete a study that cannot go on, so that its name is free; nothing if there is none.

    UsageError for any other study: what it has measured may be worth something.
    """
    study = studies.find(engine, name)
    if study is None:
        return
    if study.failure is None:
        raise UsageError(
            f"study {name} is {study.state} and can go on; --again is for one that cannot. To "
            f"throw its measurements away: densitune delete {name}"
        )
    delete(engine, study)


def delete(engine: Engine, study: Study) -> None:
    """Delete a study with all its measurements, here and in Optuna's tables."""

    def attempt() -> None:  # again is harmless
        studies.stop(engine, study.id)
        upkeep.delete(engine, study)

    retry.persist(attempt, LAST_WORD_SECONDS)


def run(
    engine: Engine,
    study: Study,
    config: StudyConfig,
    fleet: Fleet,
    console: Console,
    *,
    until: Phase | None = None,
    force: bool = False,
) -> None:
    """Advance a study with local workers until it is finished or stopped.

    It stops after the phase `until`. StudyFailedError if it cannot go on: identity failed, or is no
    healthy baseline and nobody ever said `force`, or all local workers ended with an error and no
    other worker is attached. UsageError if somebody deletes it, StorageUnreachableError if the
    storage stays away for retry.OUTAGE_SECONDS.
    """
    if study.failure and not force:
        raise StudyFailedError(
            f"study {study.name} cannot go on: {study.failure}; "
            f"to begin it anew: densitune launch CONFIG --again"
        )
    studies.go_on(engine, study.id, until, force=force)
    printing.say(
        f"{study.name}: {len(fleet.devices)} local workers; attach more from any shell with: "
        f"densitune worker {study.name}",
        console,
    )
    try:
        with fleet, display.live(console) as show:
            _advance(engine, study, config, fleet, show, console)
    except KeyboardInterrupt:
        printing.say(f"nothing is lost; continue with: densitune resume {study.name}", console)
        raise


def _advance(
    engine: Engine,
    study: Study,
    config: StudyConfig,
    fleet: Fleet,
    show: Show,
    console: Console,
) -> None:
    proposer = Proposer(engine, study.id, config)
    refreshed = 0.0
    said: set[Death] = set()

    def turn() -> Study:
        """Take every step that is possible now, show how far the study is and return it."""
        nonlocal refreshed
        now = _again(engine, study)
        if now.state == "running":
            proposer.advance()
            if time.monotonic() - refreshed > REFRESH_SECONDS:
                refreshed = time.monotonic()
                shown = snapshot.take(engine, now, config)
                show(shown)
                _note_deaths(engine, study, fleet)
                _say_deaths(fleet, said, console)
                _check_workers(fleet, shown)
        return now

    while (now := patiently(turn, study)).state == "running":
        time.sleep(STEP_SECONDS)
    if now.failure:
        raise StudyFailedError(f"study {study.name} has stopped: {now.failure}")


def patiently(attempt: Callable[[], Result], study: Study) -> Result:
    """Return an attempt's result for a study that is under way, trying again without the storage.

    Every step of the proposer begins with what is stored, so it may be repeated.
    StorageUnreachableError after retry.OUTAGE_SECONDS.
    """
    advice = f"once it is back, continue with: densitune resume {study.name}"
    return retry.patiently(attempt, retry.OUTAGE_SECONDS, advice)


def attend(engine: Engine, study: Study, fleet: Fleet) -> int:
    """Wait until the workers of a fleet have ended, say how; return the worst exit code."""

    def look() -> None:
        with suppress(SQLAlchemyError):  # the database may be away; a later look tells it again
            _note_deaths(engine, study, fleet)

    code = fleet.wait(look)
    for complaint in fleet.complaints():
        printing.say(complaint)
    if fleet.deaths():
        retry.patiently(
            lambda: _note_deaths(engine, study, fleet),
            LAST_WORD_SECONDS,
            "the jobs of workers that died wait for their leases to run out",
        )
    return code


def _note_deaths(engine: Engine, study: Study, fleet: Fleet) -> None:
    """Store which workers a signal has ended, so that others get their jobs at once."""
    for death in fleet.deaths():
        jobs.lose(engine, study.id, death.token, f"{death} in training")


def _say_deaths(fleet: Fleet, said: set[Death], console: Console) -> None:
    """Say once of each worker that a signal has ended that it is gone."""
    for death in fleet.deaths():
        if death not in said:
            said.add(death)
            left = fleet.running()
            line = f"a local worker is gone: {death}; its jobs are back in the queue, {left} left"
            printing.say(line, console)


def _check_workers(fleet: Fleet, now: Snapshot) -> None:
    complaints = fleet.complaints()
    if complaints and not fleet.running() and not now.live_workers:
        raise StudyFailedError(
            f"all local workers of study {now.study.name} have ended: {complaints[0]}; "
            f"continue with: densitune resume {now.study.name}"
        )


def _again(engine: Engine, study: Study) -> Study:
    now = studies.find(engine, study.name)
    if now is None or now.id != study.id:
        raise UsageError(f"study {study.name} has been deleted by another process")
    return now
