"""The commands that train: launch, resume, worker.

Here optimizer, workers and storage meet. What is slow to import (torch, Optuna) is imported by the
commands that need it.
"""

import functools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sqlalchemy import Engine

from optimizer import snapshot
from optimizer.cli import data, environment, interruptions, networks, origin, working
from optimizer.cli.options import (
    Again,
    Announce,
    Checkpoints,
    Code,
    Device,
    Force,
    IdleExit,
    LocalWorkers,
    OutageLimit,
    Pack,
    PresetFolder,
    Storage,
    StudyName,
    Until,
)
from optimizer.cli.terms import Terms
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError, UsageError
from optimizer.presets import exports
from optimizer.show import printing, terminal, words
from optimizer.show.confirmation_table import arms_table
from storage import durable, retry, studies
from storage.states import Phase
from storage.studies import Study

if TYPE_CHECKING:
    from optimizer.cli.fleet import Fleet

POLL_SECONDS = 1.0
"""Between two looks for a study that a worker waits for."""


def launch(
    path: Annotated[
        Path,
        typer.Argument(help="The study's YAML file; - is standard input.", metavar="CONFIG"),
    ],
    storage: Storage = None,
    workers: LocalWorkers = None,
    device: Device = "auto",
    pack: Pack = None,
    code: Code = None,
    folder: PresetFolder = Path("presets"),
    until: Until = None,
    force: Force = False,
    again: Again = False,
    announce: Announce = None,
) -> None:
    """Run a study from config to preset, or continue it."""
    config = study_file.load(path)
    printing.say(f"{config.name}: starting")
    with interruptions.loading():
        from optimizer.cli import session
        from workers.training import devices

    local = devices.spread(device, workers)
    environment.tell_code(code)
    bank = data.prepare(config)  # before anything is written
    for line in networks.tried(config, bank):
        printing.say(line)
    engine = environment.open_storage(storage)
    if again:
        session.clear(engine, config.name)
    else:
        origin.check_existing(engine, config, networks.code)
    asked = "full" if config.proxy is None else config.training.precision  # a script has its own
    precision = devices.precision(asked, devices.resolve(device))
    found = studies.find(engine, config.name)
    if found is None or found.config != config.document():  # new, or to be extended
        devices.check_precision(snapshot.precision(found) if found else precision, local)
    study = session.create(
        engine,
        config,
        bank.source,
        bank.fingerprint,
        precision=precision,
        facts=lambda: networks.facts(config, bank),
    )
    if announce is not None:
        durable.write(announce, study.name.encode())
    fleet = fleet_of(study, local, pack, storage)
    run_study(engine, study, config, fleet, folder, until=until, force=force)


def check(
    path: Annotated[Path, typer.Argument(help="The study's YAML file.", metavar="CONFIG")],
    device: Device = "auto",
    code: Code = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="Epochs of each training of a script; 3 show its resuming.")
    ] = 3,
    seconds: Annotated[
        int, typer.Option(min=1, help="Time for all of them; what is left over is not tried.")
    ] = 900,
) -> None:
    """Try a study's data, network and script before there is one, without a database."""
    config = study_file.load(path)
    with interruptions.loading():
        from workers import preparation
        from workers.entries import Entry
        from workers.training import devices

    environment.tell_code(code)
    found = data.prepare(config)
    used = devices.resolve(device)
    if not isinstance(found, Entry):
        for line in networks.tried(config, found):
            printing.say(line)
        printing.say(f"{config.name}: the config, its data and its network are in order")
        return
    devices.make_repeatable(used)
    printing.say(f"{found.name}: {found.file}, fingerprint {found.fingerprint[:12]}")
    floor = preparation.script_floor(config, found, used)
    printing.say(f"floor of {config.metric}: {floor:g} {config.unit}")
    contract = preparation.contract(config, found, used, epochs=epochs, seconds=seconds)
    broken = 0
    for finding in contract.findings():
        sign = {True: "holds", False: "DOES NOT HOLD", None: "note"}[finding.holds]
        printing.say(f"{sign}: {finding.line}")
        broken += finding.holds is False
    if broken:
        raise UsageError(f"{config.name}: {broken} of what a study relies on does not hold")
    printing.say(f"{config.name}: start the study with: densitune launch {path}")


def resume(
    name: StudyName,
    storage: Storage = None,
    workers: LocalWorkers = None,
    device: Device = "auto",
    pack: Pack = None,
    code: Code = None,
    folder: PresetFolder = Path("presets"),
    until: Until = None,
    force: Force = False,
) -> None:
    """Continue a study that was stopped or interrupted."""
    printing.say(f"{name}: starting")
    with interruptions.loading():
        from workers.training import devices

    local = devices.spread(device, workers)
    environment.tell_code(code)
    engine = environment.open_storage(storage)
    study, stored = snapshot.find(engine, name)
    origin.check_code(study, networks.code(stored))
    bank = data.prepare(stored)
    origin.check_fingerprint(study, bank.source, bank.fingerprint)
    fleet = fleet_of(study, local, pack, storage)
    run_study(engine, study, stored, fleet, folder, until=until, force=force)


def worker(
    name: StudyName,
    storage: Storage = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    device: Device = "auto",
    all_gpus: Annotated[bool, typer.Option("--all-gpus", help="One process per GPU.")] = False,
    pack: Pack = None,
    code: Code = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for server and study.")] = False,
    checkpoints: Checkpoints = None,
    idle_exit: IdleExit = None,
    outage_limit: OutageLimit = None,
) -> None:
    """Attach workers to a study; they end when it does."""
    printing.say(f"worker for {name}: starting")
    # Nothing is in training yet. As process 1 of a container, SIGTERM would be ignored unhandled.
    interruptions.on_termination(interruptions.interrupt)
    with interruptions.loading():
        from workers.training import devices

    local = devices.all_gpus() if all_gpus else devices.spread(device, workers)
    environment.tell_code(code)
    terms = Terms(
        pack,
        checkpoints or environment.home() / "checkpoints",
        math.inf if idle_exit is None else idle_exit,
        retry.OUTAGE_SECONDS if outage_limit is None else outage_limit,
    )
    patience = terms.outage_limit if wait else 0.0
    engine = retry.persist(functools.partial(environment.open_storage, storage), patience)
    while wait and retry.persist(functools.partial(studies.find, engine, name), patience) is None:
        time.sleep(POLL_SECONDS)
    study, stored = retry.persist(functools.partial(snapshot.find, engine, name), patience)
    _check_precision(study, local)
    if len(local) == 1:
        working.work(engine, study, stored, local[0], terms)
        return
    from optimizer.cli import session
    from optimizer.cli.fleet import Fleet

    with Fleet(
        name, local, pack=pack, storage=storage, logs=_logs(), options=terms.options()
    ) as fleet:
        printing.say(f"{len(local)} workers for {name}; logs in {_logs()}")
        worst = session.attend(engine, study, fleet)
    if worst:
        raise typer.Exit(worst)


def _check_precision(study: Study, local: list[str]) -> None:
    """Check that the devices can train in a study's precision; StudyFailedError if one cannot.

    It depends on the machine: a cluster should try another one, not give the study up.
    """
    from workers.training import devices

    try:
        devices.check_precision(snapshot.precision(study), local)
    except UsageError as error:
        raise StudyFailedError(str(error)) from error


def fleet_of(study: Study, local: list[str], pack: int | None, storage: str | None) -> "Fleet":
    """Return the local workers of a study, which begin when they are entered."""
    from optimizer.cli.fleet import Fleet

    return Fleet(study.name, local, pack=pack, storage=storage, logs=_logs())


def run_study(
    engine: Engine,
    study: Study,
    config: StudyConfig,
    fleet: "Fleet",
    folder: Path,
    *,
    until: Phase | None,
    force: bool,
) -> None:
    """Run a study with local workers to its end, print what it found and write the preset.

    With `until`, run it to the end of that phase and write nothing.
    """
    from optimizer.cli import session
    from workers.training import devices

    console = printing.console()
    interruptions.on_termination(interruptions.interrupt)
    if study.state != "finished" and not studies.is_over(study, until):
        devices.check_precision(snapshot.precision(study), fleet.devices)
        session.run(engine, study, config, fleet, console, until=until, force=force)
    now = session.patiently(lambda: snapshot.of(engine, study.name), study)
    if now.results:
        console.print(printing.text(now.advice), terminal.final_table(now), sep="\n")
    if now.study.state != "finished":
        printing.say(
            f"{study.name} is stopped, phase {now.study.phase} is next or has begun; continue "
            f"with: densitune resume {study.name}"
        )
        return
    if now.study.phase == "decided":
        console.print(arms_table(now))
    path, preset = exports.export(now, folder)
    printing.say(f"preset: {path} ({words.preset_verdict(preset)})")


def _logs() -> Path:
    return environment.home() / "logs"
