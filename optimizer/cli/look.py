"""The commands that look at studies and presets, stop and delete."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Group, RenderableType
from rich.live import Live

from optimizer import snapshot
from optimizer.cli import display, environment, interruptions
from optimizer.cli.options import Code, Device, Storage, StudyName
from optimizer.errors import UsageError
from optimizer.presets import document, exports, recheck, reruns
from optimizer.presets.document import Preset
from optimizer.show import measurements, overview, printing, programs, terminal, words
from optimizer.show.confirmation_table import arms_table
from optimizer.show.measurements import Form
from optimizer.snapshot import Snapshot
from storage import inspection, printable, studies

WATCH_SECONDS = 1.0
"""Between two refreshes of a watched study; ten times as long where there is no terminal."""


def list_studies(
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List all studies."""
    entries = overview.read(environment.open_storage(storage))
    if as_json:
        print(printable.json(json.dumps([entry.document() for entry in entries], indent=2)))
    elif entries:
        printing.console().print(overview.table(entries))
    else:
        printing.say("no studies yet; start one with: densitune launch CONFIG")


def status(
    name: StudyName,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing until it ends.")] = False,
) -> None:
    """Show how far a study is and what it found."""
    engine = environment.open_storage(storage)
    console = printing.console()
    if as_json:
        print(printable.json(json.dumps(programs.document(snapshot.of(engine, name)), indent=2)))
        return
    now = snapshot.of(engine, name)
    if watch and not console.is_terminal:
        show = display.lines(console)
        while now.study.state == "running":
            show(now)
            time.sleep(10 * WATCH_SECONDS)
            now = snapshot.of(engine, name)
    if watch and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while now.study.state == "running":
                live.update(_status(now), refresh=True)
                time.sleep(WATCH_SECONDS)
                now = snapshot.of(engine, name)
            live.update(_status(now), refresh=True)
        return
    console.print(_status(now))


def _status(now: Snapshot) -> RenderableType:
    if now.study.verdicts is None:
        return terminal.status(now)
    return Group(terminal.status(now), arms_table(now))


def stop(name: StudyName, storage: Storage = None) -> None:
    """Stop a study; its workers hand back their jobs."""
    engine = environment.open_storage(storage)
    study = snapshot.stored(engine, name)
    if not studies.stop(engine, study.id):
        now = snapshot.stored(engine, name).state
        raise UsageError(f"study {name} is {now}; only a running study can be stopped")
    printing.say(f"{name} is stopped; continue with: densitune resume {name}")


def delete(
    name: StudyName,
    storage: Storage = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a study with all its measurements."""
    from optimizer.cli import session

    engine = environment.open_storage(storage)
    study = snapshot.stored(engine, name)
    if not yes:
        measured = inspection.measurements(engine, study.id)
        typer.confirm(f"Delete study {name} with {measured} measurements?", abort=True)
    session.delete(engine, study)
    printing.say(f"{name} is deleted")


def export(
    name: StudyName,
    storage: Storage = None,
    form: Annotated[
        Literal["preset", Form],
        typer.Option(
            "--format",
            help="What is written: the preset of a density, or STUDY.csv, .parquet or .json with "
            "all measurements, one row each (docs/method.md has the columns).",
        ),
    ] = "preset",
    folder: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that it is written to.")
    ] = Path("presets"),
    trial: Annotated[
        int | None,
        typer.Option(help="Number of the trial.", show_default="the best confirmed one"),
    ] = None,
    require: Annotated[
        Literal["better"] | None,
        typer.Option(help="Write nothing and end with 4 unless this is the verdict."),
    ] = None,
) -> None:
    """Write a density as a JSON preset, or all measurements as a table."""
    if form != "preset" and (trial is not None or require is not None):
        raise UsageError(
            f"--trial and --require are about a preset; leave them out with --format {form}"
        )
    engine = environment.open_storage(storage)
    if form != "preset":
        table = measurements.read(engine, name)
        file = measurements.write(table, form, folder / f"{name}.{form}")
        printing.say(f"measurements: {file} ({len(table.rows)} rows)")
        return
    now = snapshot.of(engine, name)
    path, preset = exports.export(now, folder, trial, require_better=require is not None)
    printing.say(f"preset: {path} ({words.preset_verdict(preset)})")


def report(
    name: StudyName,
    storage: Storage = None,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file.", show_default="STUDY.html"),
    ] = None,
) -> None:
    """Write all that a study found as one HTML file, which opens offline."""
    from optimizer.show.report import render, write

    now = snapshot.of(environment.open_storage(storage), name)
    path = write(render(now), file or Path(f"{name}.html"))
    printing.say(f"report: {path}")


def doctor(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the study.", metavar="STUDY", show_default="all studies"),
    ] = None,
    storage: Storage = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is found.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Find what is wrong with studies, database and this machine; exit with 1 if anything is."""
    from optimizer.cli.doctor import embedded, examine, mend, to_document, to_lines

    home = environment.home()
    diagnoses = list(embedded(home)) if storage is None else []
    engine = environment.connect(storage)
    mended, failed = mend(engine, home, name) if fix else ([], [])
    diagnoses += examine(engine, home, name)
    if as_json:
        print(printable.json(json.dumps(to_document(diagnoses, mended, failed), indent=2)))
    else:
        for line in to_lines(diagnoses, mended, failed):
            printing.say(line)
    if not all(diagnosis.note for diagnosis in diagnoses):
        raise typer.Exit(1)


def verify(
    path: Annotated[Path, typer.Argument(help="The preset's JSON file.", metavar="PRESET")],
    rerun: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train N of its recorded seeds again and compare."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data, for --rerun.", metavar="FOLDER")
    ] = None,
    code: Code = None,
    device: Device = "auto",
) -> None:
    """Check a preset: does it agree with itself, and, if asked, do its numbers come back?"""
    content = document.content(path)
    preset = document.parse(content, path)
    recheck.check(preset, content)
    if rerun is not None:  # what comes next is slow to import, and slower the first time
        printing.say(f"{path}: training {rerun} of its seeds again")
    with interruptions.loading():
        from workers import verification

    for kernel_size, den in preset.by_kernel_size().items():
        verification.check_folding(kernel_size, den)
        verification.check_equivalence(kernel_size, den)
    printing.say(
        f"{path}: schema, {recheck.hashes(preset)}, numbers, verdict, folding and equal training "
        f"are in order; densities {words.densities(preset.by_kernel_size())}; verdict "
        f"{preset.evidence.verdict}; the file is not signed: --rerun trains recorded seeds again"
    )
    environment.tell_code(code)
    if rerun is not None:
        _rerun(preset, rerun, data, device)


def _rerun(preset: Preset, count: int, data: Path | None, device: str) -> None:
    """Train recorded seeds again, with a line for each; StudyFailedError if one differs."""
    from workers import verification
    from workers.training import devices

    told = reruns.recorded(preset, data)
    seeds = told.seeds(count)
    bench = verification.prepare(
        told.config,
        environment.home(),
        fingerprint=preset.task.fingerprint,
        precision=told.precision,
        device=device,
        versions=preset.provenance.versions,
        floors=preset.evidence.floors or {told.config.floor_name: preset.evidence.floor},
    )
    kind = devices.describe(bench.device)
    limits = reruns.limits(preset, told.differences, kind)
    repeated = []
    for seed in seeds:
        metrics = verification.metrics(bench, told.arms, seed, told.budget)
        repeated.append(reruns.compare(told, seed, metrics, limits))
        printing.say(repeated[-1].line(preset.task.unit))
    printing.say(reruns.summary(repeated, preset, kind))


def schema() -> None:
    """Print the JSON Schema of a study's file, for editors."""
    from optimizer.config import schema

    print(schema.text(), end="")


def dashboard(
    storage: Storage = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is for other machines too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Let the page write, and delete studies.")
    ] = False,
) -> None:
    """Show all studies in a browser, with optuna-dashboard; open the address that it prints."""
    import optuna_dashboard

    from optimizer.cli import serving
    from optimizer.cli.gate import Gate, own_names
    from optimizer.phases import optuna_tables

    engine = environment.open_storage(storage)
    shown = optuna_dashboard.wsgi(optuna_tables.alone(engine))
    gate = Gate(shown, names={host, *own_names()}, changes=allow_changes)
    with serving.listening(gate, host, port) as server:
        print(f"{serving.url(host, port)}?token={gate.token}  (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
