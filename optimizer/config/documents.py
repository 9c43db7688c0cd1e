"""Documents from anywhere: one limit for their size and shape, and one line for what is beyond it.

Whoever reads YAML, a preset or a spooled measurement asks here, and turns ValueError into a line.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_BYTES = 2**20
"""Of a document, with YAML's aliases written out: more than the largest preset by far."""
MOST_LEVELS = 50
"""Of lists and mappings within each other."""
MOST_DIGITS = 100
"""Of a whole number."""


def read(path: Path) -> bytes:
    """Return a document's bytes, those of standard input for `-`.

    OSError if it cannot be read, ValueError if it is too large.
    """
    standard_input = path == Path("-")
    with open(0 if standard_input else path, "rb", closefd=not standard_input) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise too_large("bytes")
    return content


def from_json(stored: str | bytes, *, any_text: bool = False) -> Any:
    """Return the value of a JSON document; ValueError if it is none, or beyond the limits.

    any_text: texts are not looked at (see `checked`).
    """
    if len(stored) > MOST_BYTES:
        raise too_large("bytes")
    try:
        value = json.loads(stored, parse_int=whole, object_pairs_hook=_mapping)
    except RecursionError:
        raise too_deep() from None
    return checked(value, any_text=any_text)


def whole(digits: str, base: int = 10) -> int:
    """Return a whole number; ValueError if nobody can mean one of so many digits."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits; at most {MOST_DIGITS} are read")
    return int(digits, base)


def checked(value: Any, *, any_text: bool = False) -> Any:
    """Return a document's value; ValueError if it is nested too deep or a text has no use.

    Neither paths nor the database can hold the character NUL, nor half a surrogate pair.
    """
    parts, levels = [value], 0
    while parts:
        for part in parts:
            if isinstance(part, str) and not any_text:
                _check_text(part)
        collections = [part for part in parts if isinstance(part, dict | list | tuple | set)]
        levels += bool(collections)
        if levels > MOST_LEVELS:
            raise too_deep()
        parts = [inner for part in collections for inner in _inside(part)]
    return value


def too_large(unit: str) -> ValueError:
    """Return the error of a document with too many bytes or characters."""
    return ValueError(f"it has more than {MOST_BYTES:,} {unit}; make it smaller")


def too_deep() -> ValueError:
    """Return the error of a document with too many levels."""
    return ValueError(f"it is nested deeper than {MOST_LEVELS} levels; make it flatter")


def _inside(collection: Any) -> Iterable[Any]:
    if isinstance(collection, dict):
        return (*collection.keys(), *collection.values())
    return collection  # type: ignore[no-any-return]


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError(f"the text {text[:40]!r} has the character NUL; remove it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the text {text[:40]!r} has half a surrogate pair; remove it")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping; ValueError if a key is given twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:40]!r} is given twice")
        found[key] = value
    return found
