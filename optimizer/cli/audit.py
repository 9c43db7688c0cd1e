"""The command `audit`: whether a decided study's ranking carries over to a larger network.

It asks for the audit, as a launch of the study with that section in its config does, and runs it.
"""

from pathlib import Path
from typing import Annotated

import typer

from optimizer import snapshot
from optimizer.cli import data, environment, interruptions, networks, origin, train
from optimizer.cli.options import Code, Device, LocalWorkers, Pack, PresetFolder, Storage, StudyName
from optimizer.config import study_file
from optimizer.errors import UsageError
from optimizer.show import printing


def audit(
    name: StudyName,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with a section audit; nothing else in it counts.",
            show_default="the study's own section",
        ),
    ] = None,
    storage: Storage = None,
    workers: LocalWorkers = None,
    device: Device = "auto",
    pack: Pack = None,
    code: Code = None,
    folder: PresetFolder = Path("presets"),
) -> None:
    """Train densities of a decided study on a larger network, and say whether they rank as here."""
    printing.say(f"{name}: starting")
    with interruptions.loading():
        from optimizer.cli import session
        from workers.training import devices

    engine = environment.open_storage(storage)
    study, stored = snapshot.find(engine, name)
    asked = stored if config is None else study_file.with_audit(stored, config)
    if asked.audit is None:
        raise UsageError(
            f"study {name} has no section audit; write one (docs/config.md has its keys) into a "
            f"file, then: densitune audit {name} --config FILE"
        )
    local = devices.spread(device, workers)
    environment.tell_code(code)
    origin.check_code(study, networks.code(stored))
    bank = data.prepare(asked)
    for line in networks.tried(asked, bank):
        printing.say(line)
    devices.check_precision(snapshot.precision(study), local)
    study = session.create(
        engine,
        asked,
        bank.source,
        bank.fingerprint,
        precision=snapshot.precision(study),
        facts=lambda: networks.facts(asked, bank),
    )
    fleet = train.fleet_of(study, local, pack, storage)
    train.run_study(engine, study, asked, fleet, folder, until=None, force=False)
