"""All studies at a glance: what `list` shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from sqlalchemy import Engine

from optimizer import snapshot
from optimizer.errors import UsageError
from optimizer.evidence import verdicts
from optimizer.evidence.verdicts import PresetVerdict
from optimizer.show import words
from storage import printable, studies
from storage.errors import UnreadableError
from storage.studies import StudyOverview

_WIDTHS = {"state": 8, "phase or verdict": 11, "trials": 9, "now": 12, "created (UTC)": 10}
"""In which no usual word is broken; beside the names of studies they fit into 80 columns."""


@dataclass(frozen=True)
class Entry:
    """A study in the list."""

    study: StudyOverview
    seconds_left: float | None
    """Of the phase, at most; None if that is not known, and unless the study runs."""

    @property
    def verdict(self) -> PresetVerdict | None:
        """Return the verdict on what is exported; None before the study is decided.

        None as well if it cannot be read, which `status` says: no study hides the others.
        """
        if self.study.verdicts is None:
            return None
        try:
            winner = verdicts.best(verdicts.of_study(self.study.verdicts))
        except UnreadableError:
            return None
        return "unconfirmed" if winner is None else winner.verdict

    def document(self) -> dict[str, Any]:
        """Return the entry for programs: plain JSON values."""
        study = self.study
        return {
            "study": study.name,
            "state": study.state,
            "phase": study.phase,
            "failure": study.failure,
            "verdict": self.verdict,
            "trials": {
                "asked for": study.asked_for,
                "complete": study.complete,
                "running": study.running,
                "pruned": study.pruned,
                "failed": study.failed,
            },
            "workers": study.workers,
            "seconds_left": self.seconds_left,
            "created_at": study.created_at.isoformat(timespec="seconds"),
        }


def read(engine: Engine) -> list[Entry]:
    """Return all studies, oldest first."""
    return [Entry(study, _seconds_left(engine, study)) for study in studies.overview(engine)]


def _seconds_left(engine: Engine, study: StudyOverview) -> float | None:
    if study.state != "running":
        return None
    try:
        return snapshot.of(engine, study.name).seconds_left
    except (UsageError, UnreadableError):  # deleted just now, or begun by another version
        return None


def table(entries: Sequence[Entry]) -> Table:
    """Return the list; at 80 columns no word is broken, of names with up to 20 characters."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown.add_column("study", overflow="fold")
    for heading, most in _WIDTHS.items():
        shown.add_column(heading, overflow="fold", max_width=most)
    for entry in entries:
        study = entry.study
        ended = study.complete + study.pruned + study.failed
        trials = f"{ended}/{study.asked_for}" + (f" {study.failed} failed" if study.failed else "")
        shown.add_row(
            printable.line(study.name),
            study.state,
            entry.verdict or study.phase,
            trials,
            _now(entry),
            f"{study.created_at:%Y-%m-%d %H:%M}",
        )
    return shown


def _now(entry: Entry) -> str:
    """Return what a running study is at: its workers, and how long its phase takes."""
    if entry.study.state != "running":
        return ""
    workers = f"{entry.study.workers} worker{'s' if entry.study.workers != 1 else ''}"
    left = entry.seconds_left
    return f"{workers}, {words.duration(left)} left" if left else workers
