"""The command line: parses, calls, prints. It alone brings optimizer, workers and storage together.

Exit codes: 0 done, 1 the study cannot go on, 2 bad usage or config, 3 storage unreachable,
130 interrupted. What is slow to import (torch, Optuna) is imported by the commands that need it.
"""

import functools
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from optimizer import config, display, environment, presets, snapshot
from optimizer.config import StudyConfig
from optimizer.errors import StudyFailedError, UsageError
from optimizer.snapshot import Snapshot
from storage import studies
from storage.errors import StorageError
from storage.studies import Study

if TYPE_CHECKING:
    from optimizer.proposer import Proposer
    from workers.bank import Bank

app = typer.Typer(
    help="Tune the density function of weighted convolutions.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="DENSITUNE_STORAGE",
        show_envvar=True,
        help="PostgreSQL server, postgresql://user@host:port/database; without it, an embedded "
        "one is started. A password belongs into DENSITUNE_STORAGE_PASSWORD_FILE or PGPASSWORD.",
    ),
]
StudyName = Annotated[str, typer.Argument(help="Name of the study.", metavar="STUDY")]
PresetFolder = Annotated[
    Path, typer.Option("--presets", help="Folder that the preset is written to.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Pack = Annotated[int, typer.Option(min=1, help="Jobs that a worker trains side by side.")]
LocalWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Local worker processes; 0 only proposes.",
        show_default="one per GPU, else per CPU core",
    ),
]
POLL_SECONDS = 1.0


@app.command()
def launch(
    path: Annotated[Path, typer.Argument(help="The study's YAML file.", metavar="CONFIG")],
    storage: Storage = None,
    workers: LocalWorkers = None,
    device: Device = "auto",
    pack: Pack = 1,
    folder: PresetFolder = Path("presets"),
) -> None:
    """Run a study from its config to a preset; continues it if it exists."""
    given = config.load(path)
    from optimizer import session
    from workers import devices, preparation

    local = devices.spread(device, workers)
    bank = _prepare(given)  # before anything is written
    engine = environment.open_storage(storage)
    study = session.create(
        engine,
        given,
        bank.source,
        bank.fingerprint,
        floor=lambda: preparation.floor(given, bank),
    )
    _run(engine, study, given, storage, local, pack, folder)


@app.command()
def resume(
    name: StudyName,
    storage: Storage = None,
    workers: LocalWorkers = None,
    device: Device = "auto",
    pack: Pack = 1,
    folder: PresetFolder = Path("presets"),
) -> None:
    """Continue a study that was stopped or interrupted."""
    from optimizer import session
    from workers import devices

    local = devices.spread(device, workers)
    engine = environment.open_storage(storage)
    study, stored = _find(engine, name)
    bank = _prepare(stored)
    session.check_fingerprint(study, bank.source, bank.fingerprint)
    _run(engine, study, stored, storage, local, pack, folder)


@app.command()
def worker(
    name: StudyName,
    storage: Storage = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    device: Device = "auto",
    all_gpus: Annotated[bool, typer.Option("--all-gpus", help="One process per GPU.")] = False,
    pack: Pack = 1,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the study exists.")] = False,
) -> None:
    """Attach workers to a study; they end when it does."""
    from workers import devices

    local = devices.all_gpus() if all_gpus else devices.spread(device, workers)
    engine = environment.open_storage(storage)
    while wait and studies.find(engine, name) is None:
        time.sleep(POLL_SECONDS)
    study, stored = _find(engine, name)
    if len(local) == 1:
        _work(engine, study, stored, local[0], pack)
        return
    from optimizer.fleet import Fleet

    _interrupt_on_termination()
    with Fleet(name, local, pack=pack, storage=storage, logs=_logs()) as fleet:
        display.console().print(f"{len(local)} workers for {name}; logs in {_logs()}")
        code = fleet.wait()
    if code:
        raise typer.Exit(code)


@app.command("list")
def list_studies(storage: Storage = None) -> None:
    """List all studies."""
    engine = environment.open_storage(storage)
    overview = studies.overview(engine)
    if overview:
        display.console().print(display.study_table(overview))
    else:
        display.console().print("no studies yet; start one with: densitune launch CONFIG")


@app.command()
def status(
    name: StudyName,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing until it ends.")] = False,
) -> None:
    """Show how far a study is and what it found."""
    engine = environment.open_storage(storage)
    console = display.console()
    if as_json:
        print(json.dumps(_snapshot(engine, name).document(), indent=2))
        return
    now = _snapshot(engine, name)
    if watch and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while now.study.state == "running":
                live.update(display.status(now), refresh=True)
                time.sleep(POLL_SECONDS)
                now = _snapshot(engine, name)
            live.update(display.status(now), refresh=True)
        return
    while watch and now.study.state == "running":
        console.print(display.plain_line(now), soft_wrap=True)
        time.sleep(10 * POLL_SECONDS)
        now = _snapshot(engine, name)
    console.print(display.status(now))


@app.command()
def stop(name: StudyName, storage: Storage = None) -> None:
    """Stop a study; its workers hand back what they have not finished."""
    engine = environment.open_storage(storage)
    study, _ = _find(engine, name)
    if study.state != "running":
        raise UsageError(f"study {name} is {study.state}; only a running study can be stopped")
    studies.set_state(engine, study.id, "stopped")
    display.console().print(f"{name} is stopped; continue with: densitune resume {name}")


@app.command()
def delete(
    name: StudyName,
    storage: Storage = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a study with all its measurements, here and in Optuna's tables."""
    from optimizer import study as optuna_study

    engine = environment.open_storage(storage)
    study, _ = _find(engine, name)
    measured = len(_snapshot(engine, name).rows)
    if not yes:
        typer.confirm(f"Delete study {name} with {measured} measurements?", abort=True)
    studies.set_state(engine, study.id, "stopped")
    optuna_study.delete(engine, name)
    studies.delete(engine, study.id)
    display.console().print(f"{name} is deleted")


@app.command()
def export(
    name: StudyName,
    storage: Storage = None,
    folder: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that the preset is written to.")
    ] = Path("presets"),
    trial: Annotated[
        int | None,
        typer.Option(help="Number of the trial.", show_default="the largest difference"),
    ] = None,
) -> None:
    """Write a density as a JSON preset."""
    engine = environment.open_storage(storage)
    path = presets.export(_snapshot(engine, name), folder, trial)
    display.console().print(f"preset: {path} (unconfirmed)", soft_wrap=True)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="The preset's JSON file.", metavar="PRESET")],
) -> None:
    """Check a preset: its schema, its config's hash, and that its layers fold exactly."""
    preset = presets.load(path)
    presets.check_hash(preset)
    from workers import verification

    for kernel_size, den in preset.by_kernel_size().items():
        verification.check_folding(kernel_size, den)
    display.console().print(
        f"{path}: schema, hash and folding are in order; densities "
        f"{display.density_text(preset.by_kernel_size())}; verdict {preset.evidence.verdict}",
        soft_wrap=True,
    )


@app.command()
def dashboard(
    storage: Storage = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. There is no login: whoever gets in may delete."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
) -> None:
    """Show all studies in a browser, with optuna-dashboard."""
    import optuna_dashboard

    from optimizer import study as optuna_study

    engine = environment.open_storage(storage)
    print(f"http://{host}:{port}/  (Ctrl-C ends it)", flush=True)
    optuna_dashboard.run_server(optuna_study.optuna_storage(engine), host=host, port=port)


def _prepare(given: StudyConfig) -> "Bank":
    """Prepare the study's data, with a progress bar where there is something to download."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from workers import preparation

    columns = ("downloading", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with ExitStack() as shown:
        progress = Progress(*columns, transient=True, console=display.console())
        bar = progress.add_task("download", total=None)

        def show(done: int, total: int) -> None:
            if not progress.live.is_started:
                shown.enter_context(progress)
            progress.update(bar, completed=done, total=total)

        return preparation.bank(given.data, environment.home(), show)


def _run(
    engine: Engine,
    study: Study,
    given: StudyConfig,
    storage: str | None,
    local: list[str],
    pack: int,
    folder: Path,
) -> None:
    """Run a study to its end with local workers, print the table and write the preset."""
    from optimizer import session
    from optimizer.fleet import Fleet

    console = display.console()
    _interrupt_on_termination()
    if study.state != "finished":
        fleet = Fleet(study.name, local, pack=pack, storage=storage, logs=_logs())
        session.run(engine, study, given, fleet, console)
    now = _snapshot(engine, study.name)
    if now.study.state == "stopped":
        console.print(f"{study.name} was stopped; continue with: densitune resume {study.name}")
        return
    console.print(display.final_table(now))
    console.print(f"preset: {presets.export(now, folder)} (unconfirmed)", soft_wrap=True)


def _work(engine: Engine, study: Study, given: StudyConfig, device_name: str, pack: int) -> None:
    """Work for a study in this process until it ends or a signal comes."""
    from optimizer import session
    from workers import devices, preparation
    from workers import worker as loop

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    device = devices.resolve(device_name)
    devices.make_repeatable(device)
    bank = _prepare(given)
    session.check_fingerprint(study, bank.source, bank.fingerprint)
    bench = loop.Bench(
        study.id, preparation.task(given, bank, device), preparation.recipe(given, bank), device
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    done = loop.work(
        engine, bench, pack=pack, stop=stop, when_idle=_take_role_when_idle(engine, study, given)
    )
    display.console().print(f"worker for {study.name} ends after {done} jobs")
    if stop.is_set():
        raise typer.Exit(130)


def _take_role_when_idle(engine: Engine, study: Study, given: StudyConfig) -> Callable[[], None]:
    """Return what an idle worker does: propose and tell, so that no process is indispensable."""

    @functools.cache
    def proposer() -> "Proposer":
        from optimizer.proposer import Proposer

        return Proposer(engine, study.id, given)

    return lambda: proposer().advance()


def _find(engine: Engine, name: str) -> tuple[Study, StudyConfig]:
    study = studies.find(engine, name)
    if study is None:
        names = ", ".join(found.name for found in studies.overview(engine)) or "none"
        raise UsageError(f"there is no study {name} here; there are: {names}")
    return study, config.parse(study.config, origin=f"of study {name}")


def _snapshot(engine: Engine, name: str) -> Snapshot:
    study, stored = _find(engine, name)
    return snapshot.take(engine, study, stored)


def _logs() -> Path:
    return environment.home() / "logs"


def _interrupt_on_termination() -> None:
    """Make SIGTERM and a closed terminal end a command as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def main() -> None:
    """Run the command line; errors of our own end it with one line and their exit code."""
    try:
        app()
    except (UsageError, StudyFailedError, StorageError) as error:
        code, message = error.exit_code, str(error)
    except DBAPIError as error:
        code, message = StorageError.exit_code, f"PostgreSQL: {str(error.orig).splitlines()[0]}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    finally:
        # What is left is short and must not be cut: the embedded server is released at exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"densitune: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
