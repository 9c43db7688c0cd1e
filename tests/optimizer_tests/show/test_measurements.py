"""All measurements as a table: every one once, with documented columns, and nothing sealed."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from pyarrow import parquet
from sqlalchemy import Engine
from support.checkout import ROOT
from support.shell import query
from support.simulated import TESTED, noise, run, small

from optimizer.errors import UsageError
from optimizer.show import measurements
from optimizer.snapshot import Snapshot
from storage.jobs import ClaimedJob

FIRST = ["phase", "trial", "origin", "role", "label"]
MIDDLE = ["lr", "seed", "budget", "rung", "value"]
LAST = ["seconds", "worker", "host", "device"]
HIDDEN = 987.25
"""What the test split says in `told`: a number that nothing else has."""


def told(job: ClaimedJob) -> tuple[float, dict[str, Any]]:
    value = 30 - abs(job.densities[3][0] - 0.6) + noise(job, 0.1)
    beside = {"ssim": 0.5, "diverged": True, "learned": {"3": [0.5]}, "fingerprint": "abc"}
    if job.arm["split"] == "test":
        return HIDDEN, {"ssim": HIDDEN}
    return value, beside


@pytest.fixture
def decided(database: Engine) -> Snapshot:
    given = small(training={"lr": "auto"}, confirm={"seeds": 6, "batch": 6}, **TESTED)
    return run(database, given, told)


def test_every_measurement_is_one_row_with_what_it_is_of(
    database: Engine, decided: Snapshot
) -> None:
    table = measurements.read(database, decided.study.name)
    assert table.columns == [
        *FIRST, "density_3_1", *MIDDLE, "extra_diverged", "extra_ssim", *LAST
    ]  # fmt: skip
    assert all(list(row) == table.columns for row in table.rows)
    shown = [
        tuple(row[c] for c in ("phase", "trial", "seed", "rung", "value")) for row in table.rows
    ]
    stored = query(
        database,
        "SELECT phase, trial, seed, rung, value FROM densitune.measurements "
        "JOIN densitune.jobs ON jobs.id = job_id",
    )
    assert sorted(shown) == sorted(stored)
    phases = list(dict.fromkeys(row["phase"] for row in table.rows))
    assert phases == ["calibrate", "search", "confirm"]
    for row in table.rows:
        known = decided.phases[row["phase"]].trials[row["trial"]]
        assert (row["role"], row["label"], row["origin"]) == (known.role, known.label, known.origin)
        assert row["density_3_1"] == known.densities[3][0]
        assert row["lr"] == (known.arm["lr"] or decided.lr)
        assert (row["extra_ssim"], row["extra_diverged"]) == (0.5, 1.0)


def test_the_test_split_is_not_among_them_even_after_the_verdict(
    database: Engine, decided: Snapshot
) -> None:
    assert decided.holdout is not None
    assert decided.holdout.value == pytest.approx(HIDDEN)
    table = measurements.read(database, decided.study.name)
    for cell in (cell for row in table.rows for cell in row.values()):
        assert cell != HIDDEN
        assert not isinstance(cell, dict)


@pytest.mark.parametrize("form", ["csv", "parquet", "json"])
def test_a_file_has_the_table_to_the_last_bit(
    form: measurements.Form, database: Engine, decided: Snapshot, tmp_path: Path
) -> None:
    table = measurements.read(database, decided.study.name)
    path = measurements.write(table, form, tmp_path / "new" / f"study.{form}")
    assert READERS[form](path.read_bytes()) == table.rows


def from_csv(content: bytes) -> list[dict[str, Any]]:
    """By the standard library, whose cells are text; Python's floats come back from theirs."""
    cells = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return [{name: typed(name, cell) for name, cell in row.items()} for row in cells]


def typed(column: str, cell: str) -> Any:
    if column in ("phase", "role", "label", "host", "device"):
        return cell
    if not cell:
        return None
    whole = column in ("trial", "origin", "seed", "budget", "rung", "worker")
    return int(cell) if whole else float(cell)


def from_parquet(content: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(io.BytesIO(content)).to_pylist()
    return found


READERS: dict[measurements.Form, Callable[[bytes], list[dict[str, Any]]]] = {
    "csv": from_csv,
    "parquet": from_parquet,
    "json": json.loads,
}


def test_columns_and_types_are_there_before_the_first_measurement(tmp_path: Path) -> None:
    nothing = measurements.Table([*FIRST, *MIDDLE, *LAST], [])
    path = measurements.write(nothing, "csv", tmp_path / "a.csv")
    assert path.read_text().strip().split(",") == [*FIRST, *MIDDLE, *LAST]
    path = measurements.write(nothing, "parquet", tmp_path / "a.parquet")
    types = {name: str(kind) for name, kind in pandas.read_parquet(path).dtypes.items()}
    assert (types["value"], types["seed"]) == ("float64", "int64")


def test_without_pyarrow_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="run pip install pyarrow, or"):
        measurements.write(measurements.Table([], []), "parquet", tmp_path / "a.parquet")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"a\.csv cannot be written: .*; choose another folder"):
        measurements.write(measurements.Table([], []), "csv", tmp_path / "file" / "a.csv")


def test_every_column_is_documented() -> None:
    document = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    section = document.partition("## All measurements as a table")[2]
    for column in [*FIRST, "density_K_I", *MIDDLE, "extra_NAME", *LAST]:
        assert f"`{column}`" in section, column
