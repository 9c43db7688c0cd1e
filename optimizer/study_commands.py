"""The commands that look at studies and presets, stop and delete."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from optimizer import display, environment, presets, snapshot
from optimizer.errors import UsageError
from optimizer.options import Storage, StudyName
from storage import studies

WATCH_SECONDS = 1.0
"""Between two refreshes of a watched study; ten times as long where there is no terminal."""


def list_studies(storage: Storage = None) -> None:
    """List all studies."""
    engine = environment.open_storage(storage)
    overview = studies.overview(engine)
    if overview:
        display.console().print(display.study_table(overview))
    else:
        display.console().print("no studies yet; start one with: densitune launch CONFIG")


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
        print(json.dumps(snapshot.of(engine, name).document(), indent=2))
        return
    now = snapshot.of(engine, name)
    if watch and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while now.study.state == "running":
                live.update(display.status(now), refresh=True)
                time.sleep(WATCH_SECONDS)
                now = snapshot.of(engine, name)
            live.update(display.status(now), refresh=True)
        return
    while watch and now.study.state == "running":
        console.print(display.plain_line(now), soft_wrap=True)
        time.sleep(10 * WATCH_SECONDS)
        now = snapshot.of(engine, name)
    console.print(display.status(now))


def stop(name: StudyName, storage: Storage = None) -> None:
    """Stop a study; its workers hand back their jobs."""
    engine = environment.open_storage(storage)
    study, _ = snapshot.find(engine, name)
    if study.state != "running":
        raise UsageError(f"study {name} is {study.state}; only a running study can be stopped")
    studies.set_state(engine, study.id, "stopped")
    display.console().print(f"{name} is stopped; continue with: densitune resume {name}")


def delete(
    name: StudyName,
    storage: Storage = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a study with all its measurements."""
    from optimizer import study as optuna_study

    engine = environment.open_storage(storage)
    study, _ = snapshot.find(engine, name)
    measured = len(snapshot.of(engine, name).rows)
    if not yes:
        typer.confirm(f"Delete study {name} with {measured} measurements?", abort=True)
    studies.set_state(engine, study.id, "stopped")
    optuna_study.delete(engine, name)
    studies.delete(engine, study.id)
    display.console().print(f"{name} is deleted")


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
    path = presets.export(snapshot.of(engine, name), folder, trial)
    display.console().print(f"preset: {path} (unconfirmed)", soft_wrap=True)


def verify(
    path: Annotated[Path, typer.Argument(help="The preset's JSON file.", metavar="PRESET")],
) -> None:
    """Check a preset: schema, hash, exact folding."""
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
