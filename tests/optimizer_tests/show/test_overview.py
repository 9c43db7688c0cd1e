"""The list of studies."""

import io
import json
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine
from support.synthetic import WHEN, configured, decided

from optimizer.show import overview
from optimizer.show.overview import Entry
from storage import studies
from storage.studies import StudyOverview


def listed(**changes: Any) -> StudyOverview:
    fields: dict[str, Any] = {
        "name": "cifar100-resnet-k3",
        "state": "running",
        "phase": "calibrate",
        "failure": None,
        "created_at": WHEN,
        "verdicts": None,
        "asked_for": 200,
        "trials": 200,
        "running": 0,
        "complete": 37,
        "pruned": 150,
        "failed": 13,
        "workers": 12,
    }
    return StudyOverview(**{**fields, **changes})


def shown(entries: list[Entry], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(overview.table(entries))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_no_word_is_broken_at_80_columns() -> None:
    entries = [
        Entry(listed(), 12 * 3600 + 59 * 60),
        Entry(listed(state="finished", phase="decided", verdicts=decided().study.verdicts), None),
        Entry(listed(name="div2k-nafnet-mixed", state="stopped", phase="confirm"), None),
    ]
    lines = shown(entries, 80)
    words = " ".join(lines).split()
    for word in (
        *("study", "state", "phase", "verdict", "trials", "now", "created", "(UTC)"),
        *("cifar100-resnet-k3", "div2k-nafnet-mixed", "running", "finished", "stopped"),
        *("calibrate", "confirm", "better", "200/200", "13", "failed", "12", "workers,"),
        *("12", "h", "59", "min", "left", "2026-03-04", "05:06"),
    ):
        assert word in words
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_name_is_whole(width: int) -> None:
    name = "n" * 63
    lines = shown([Entry(listed(name=name), None)], width)
    cells = [line.split()[0] for line in lines if line.strip().startswith("n")]
    assert "".join(cells) == name


def test_programs_get_the_verdict_and_the_time_left() -> None:
    finished = Entry(listed(state="finished", verdicts=decided().study.verdicts), None)
    nobody = Entry(listed(state="finished", verdicts=[]), None)
    running = Entry(listed(), 90.5)
    found = json.loads(json.dumps([one.document() for one in (finished, nobody, running)]))
    assert [one["verdict"] for one in found] == ["better", "unconfirmed", None]
    assert [one["seconds_left"] for one in found] == [None, None, 90.5]
    assert found[0]["trials"]["asked for"] == sum(
        found[0]["trials"][state] for state in ("complete", "running", "pruned", "failed")
    )


def test_studies_that_cannot_be_read_are_listed_all_the_same(database: Engine) -> None:
    given = configured()
    studies.create(database, given.name, given.document(), "", {"source": ""}, "search")
    studies.create(database, "of-tomorrow", {"search": {"trials": 7}}, "", {}, "search")
    entries = overview.read(database)
    assert [(one.study.name, one.study.asked_for) for one in entries] == [
        (given.name, given.search.trials),
        ("of-tomorrow", 7),
    ]
    assert [one.seconds_left for one in entries] == [None, None]
