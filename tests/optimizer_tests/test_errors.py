"""Errors: all of them are in one picture, and a driver that says nothing breaks no line."""

import ast
import gc
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError
from support.checkout import ROOT

from optimizer import errors
from optimizer.cli import main
from storage.errors import StorageError
from storage.retry import first_line

PACKAGES = ("densitune", "optimizer", "workers", "storage")
SOURCES = [
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    # What begins a process when it is imported, or a migration.
    if path.name != "__main__.py" and "migrations" not in path.parts
]

Place = tuple[str, int | None]
"""Its parent, and the code with which a command ends that it ends."""


def drawn(picture: str) -> dict[str, Place]:
    """The classes of a picture, whose branches are four characters wide."""
    found: dict[str, Place] = {}
    path: list[str] = []
    for line in picture.splitlines():
        branch = re.match(r" {4}([│ ]*)(?:[├└]── )?([A-Z]\w+)(?: +exit code (\d))?", line)
        if branch is None:
            continue
        depth = len(branch[1]) // 4 + ("── " in line)
        path[depth:] = [branch[2]]
        if depth:
            found[branch[2]] = path[depth - 1], int(branch[3]) if branch[3] else None
    return found


def defined(parent: type[BaseException] = BaseException) -> Iterator[tuple[str, Place]]:
    """Our own classes of errors, among all that are loaded."""
    for error in parent.__subclasses__():
        if error.__module__.partition(".")[0] in PACKAGES:
            yield error.__name__, (parent.__name__, getattr(error, "exit_code", None))
        yield from defined(error)


def test_every_error_is_in_the_picture_under_its_parent_and_with_its_exit_code() -> None:
    for path in SOURCES:
        parts = path.with_suffix("").parts
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert drawn(errors.__doc__ or "") == dict(defined())


def test_a_class_that_is_not_drawn_is_noticed() -> None:
    class ForgottenError(errors.UsageError):
        __module__ = "optimizer.attic"

    try:
        missing = dict(defined()).items() - drawn(errors.__doc__ or "").items()
        assert missing == {("ForgottenError", ("UsageError", 2))}
    finally:
        del ForgottenError
        gc.collect()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "PostgreSQL: OperationalError"),
        ("\n \n", "PostgreSQL: OperationalError"),
        ("\nno space left\nDETAIL: none", "PostgreSQL: no space left"),
    ],
)
def test_what_the_driver_says_is_one_line_also_when_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    told: str,
    wrapped: bool,
) -> None:
    """Optuna wraps it, in an error that blames what was to be stored."""

    def fail() -> None:
        error = OperationalError("SELECT 1", {}, psycopg2.OperationalError(said))
        if wrapped:
            raise StorageInternalError("invalid data") from error
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == StorageError.exit_code
    assert capsys.readouterr().err == f"densitune: {told}\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("  \n  one  \ntwo"), "one"),
        (ValueError(), "ValueError"),
        (KeyError("x"), "'x'"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_line_is_taken_from_a_text_that_may_have_none(path: Path) -> None:
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        match node:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(attr="splitlines")),
                slice=ast.Constant() | ast.UnaryOp(),
            ):
                raise AssertionError(f"{path}:{node.lineno}: splitlines() of nothing is empty")
