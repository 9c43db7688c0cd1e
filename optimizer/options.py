"""Arguments and options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from optimizer.errors import UsageError


def _pack(given: str) -> int | None:
    """Return a number of jobs, None for auto; UsageError if it is neither."""
    if given == "auto":
        return None
    if not re.fullmatch("[1-9][0-9]{0,5}", given):
        raise UsageError(f"--pack {given} is no number of jobs; take auto, or a number from 1")
    return int(given)


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
Pack = Annotated[
    int | None,
    typer.Option(
        parser=_pack,
        metavar="auto|N",
        help="Jobs trained together on one device; auto measures what is fastest.",
        show_default="auto",
    ),
]
LocalWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Local worker processes; 0 only proposes.",
        show_default="one per GPU, else per CPU core",
    ),
]
Until = Annotated[
    Literal["calibrate", "search"] | None,
    typer.Option(help="Stop after this phase.", show_default="to the verdict"),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Go on although identity is no healthy baseline."),
]
