"""All measurements of a study as a table: one row each, for spreadsheets and data frames.

The columns, in this order; a cell without a value is empty:

phase, trial        of which trial of which phase; numbers begin anew with each phase
origin              of a confirmation's trial: the trial of the search that it belongs to
role, label         what the trial is for, and its name
density_K_I         number I, outermost first, of the density of kernel size K
lr                  peak learning rate
seed, budget, rung  of the job, and the epochs after which it was measured
value               the study's metric
extra_NAME          numbers measured beside it, such as top5, cross_entropy and ssim; yes is 1
seconds             of training so far
worker, host, device  who measured

What the test split said is not among them (storage.ledger), nor is what came late.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import Engine

from optimizer import snapshot
from optimizer.errors import UsageError
from storage import durable, ledger, studies
from storage.ledger import Measured
from storage.states import Phase

Form = Literal["csv", "parquet", "json"]

_TEXTS = ("phase", "role", "label", "host", "device")
_WHOLE_NUMBERS = ("trial", "origin", "seed", "budget", "rung", "worker")


@dataclass(frozen=True)
class Table:
    """Measurements by column; all columns that are no text and no whole numbers are floats."""

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    """Each has all the columns, in their order; None where there is no value."""


def read(engine: Engine, name: str) -> Table:
    """Return the measurements of a study, as far as it is; UsageError if there is no such study."""
    now = snapshot.of(engine, name)
    with studies.named(name), engine.connect() as connection:
        measured = ledger.everything(connection, now.study.id)
    measured.sort(key=lambda one: get_args(Phase).index(one.phase))  # stable: the rest is in order
    rows = [_named(one, now.lr) for one in measured]
    found = {column for row in rows for column in row}
    columns = [
        *("phase", "trial", "origin", "role", "label"),
        *sorted((c for c in found if c.startswith("density_")), key=_place),
        *("lr", "seed", "budget", "rung", "value"),
        *sorted(c for c in found if c.startswith("extra_")),
        *("seconds", "worker", "host", "device"),
    ]
    return Table(columns, [{column: row.get(column) for column in columns} for row in rows])


def write(table: Table, form: Form, path: Path) -> Path:
    """Write a table to a file, whole or not at all, and return its path; UsageError if it fails."""
    content = _WRITERS[form](table)
    try:
        durable.write(path, content)
    except OSError as error:
        raise UsageError(
            f"measurements {path} cannot be written: {error.strerror or error}; "
            f"choose another folder"
        ) from error
    return path


def _named(one: Measured, usual: float | None) -> dict[str, Any]:
    """Return what there is of a measurement, by column."""
    cells = {name: value for name, value in vars(one).items() if name not in ("densities", "arm")}
    extra = cells.pop("extra")
    given = one.arm.get("lr")
    densities = {
        f"density_{size}_{place}": value
        for size, den in one.densities.items()
        for place, value in enumerate(den, start=1)
    }
    numbers = {
        f"extra_{name}": float(value)
        for name, value in extra.items()
        if isinstance(value, bool | int | float)
    }
    return {**cells, "lr": usual if given is None else given, **densities, **numbers}


def _place(column: str) -> tuple[int, ...]:
    return tuple(map(int, column.split("_")[1:]))


def _csv(table: Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=table.columns)
    writer.writeheader()
    writer.writerows(table.rows)
    return text.getvalue().encode()


def _json(table: Table) -> bytes:
    return json.dumps(table.rows, indent=1).encode()


def _parquet(table: Table) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed; run pip install pyarrow, or take "
            "--format csv"
        ) from error
    types = {column: pyarrow.float64() for column in table.columns}
    types |= dict.fromkeys(_WHOLE_NUMBERS, pyarrow.int64()) | dict.fromkeys(_TEXTS, pyarrow.utf8())
    file = io.BytesIO()
    rows = pyarrow.Table.from_pylist(list(table.rows), pyarrow.schema(types))
    parquet.write_table(rows.select(list(table.columns)), file)
    return file.getvalue()


_WRITERS: Mapping[Form, Callable[[Table], bytes]] = {
    "csv": _csv,
    "parquet": _parquet,
    "json": _json,
}
