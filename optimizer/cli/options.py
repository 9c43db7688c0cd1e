"""Arguments and options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from optimizer.errors import UsageError


def _pack(text: str) -> int | None:
    """Return a number of jobs, None for auto; UsageError if it is neither."""
    if text == "auto":
        return None
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise UsageError(f"--pack {text} is no number of jobs; take auto, or a number from 1")
    return int(text)


def _duration(text: str) -> float:
    """Return the seconds of a duration such as 30s, 10m or 2h; UsageError if it is none."""
    parts = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh])", text)
    if parts is None:
        raise UsageError(f"{text} is no duration; take a number with s, m or h, such as 30s or 10m")
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2]]


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
Code = Annotated[
    str | None,
    typer.Option(
        "--code",
        metavar="FOLDER|PACKAGE",
        envvar="DENSITUNE_CODE",
        show_envvar=True,
        help="The folder where code of your own is looked for, or an installed package of yours.",
        show_default="the current folder",
    ),
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
        show_default="one per GPU, else per CPU core that may be used",
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
Again = Annotated[
    bool,
    typer.Option(
        "--again",
        help="Begin a study that cannot go on anew, with this config: what it measured is deleted.",
    ),
]
Announce = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write the study's name to this file once it is stored, for programs."
    ),
]
Checkpoints = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where jobs in training are kept when a worker is told to leave; workers that share "
        "it go on from there.",
        show_default="DENSITUNE_HOME/checkpoints",
    ),
]
IdleExit = Annotated[
    float | None,
    typer.Option(
        parser=_duration,
        metavar="DURATION",
        help="End after so long without a job: 30s, 10m, 2h.",
        show_default="wait until the study ends",
    ),
]
OutageLimit = Annotated[
    float | None,
    typer.Option(
        parser=_duration,
        metavar="DURATION",
        help="How long to wait for a storage that is away when there is nothing to train.",
        show_default="1h",
    ),
]
