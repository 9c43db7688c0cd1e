"""A worker's process on one device: it trains, and takes the proposer's role while it is idle."""

import faulthandler
import functools
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer
from sqlalchemy import Engine

from optimizer import snapshot
from optimizer.cli import data, environment, networks, origin
from optimizer.cli.terms import Terms
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import baseline
from optimizer.show import printing
from storage import steps
from storage.studies import Study

if TYPE_CHECKING:
    from optimizer.phases.proposer import Proposer


def work(engine: Engine, study: Study, config: StudyConfig, device_name: str, terms: Terms) -> None:
    """Work for a study in this process until it ends or a signal comes."""
    from workers.service import checkpoint, loop
    from workers.service.notice import INTERRUPTED, Notice
    from workers.service.shift import Shift
    from workers.training import devices

    printing.log("%(asctime)s %(message)s", logging.INFO, force=True)
    if sys.stderr is not None:
        faulthandler.enable()  # a native crash tells its place in the log
    device = devices.resolve(device_name)
    devices.make_repeatable(device)
    with Shift(engine, study, device, environment.home() / "spool") as shift:
        origin.check_code(study, networks.code(config))
        bank = data.prepare(config)
        origin.check_fingerprint(study, bank.source, bank.fingerprint)
        networks.tried(config, bank)  # what only this machine cannot train must fail no job
        precision, floors = snapshot.precision(study), baseline.floors(study, config)
        bench, larger = networks.benches(config, bank, precision, device_name, floors)
        with Notice(shift.hand_back) as notice:
            done = loop.work(
                shift,
                bench,
                checkpoint.Checkpoints(terms.checkpoints, study),
                audit=larger,
                pack=terms.pack,
                packs=environment.home() / "packs",
                stop=notice.stop,
                when_idle=_take_role_when_idle(engine, study, config),
                idle_exit=terms.idle_exit,
                outage_limit=terms.outage_limit,
            )
    printing.say(f"worker for {study.name} ends after {done} jobs")
    if notice.stop.is_set():
        raise typer.Exit(INTERRUPTED)


def _take_role_when_idle(engine: Engine, study: Study, config: StudyConfig) -> Callable[[], None]:
    """Return what an idle worker does: propose and tell, so that no process is indispensable.

    Nothing, if the storage does not let it (storage.roles).
    """

    @functools.cache
    def proposer() -> "Proposer | None":
        if not steps.may_propose(engine):
            return None
        from optimizer.phases.proposer import Proposer

        return Proposer(engine, study.id, config, creates=False)

    def advance() -> None:
        taken = proposer()
        if taken is not None:
            taken.advance()

    return advance
