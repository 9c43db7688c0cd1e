"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
