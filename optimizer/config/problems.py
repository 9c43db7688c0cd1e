"""What is wrong with a file, in one line: pydantic's errors for people who write YAML or JSON."""

import difflib
from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_MAPPING = "input should be a mapping of keys to values"
# What pydantic says with the names of Python types.
_WORDS = {
    "tuple_type": "input should be a list",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "path_type": "input should be a path",
}


def first(error: ValidationError, keys: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the first problem: where, the value, and what is expected there.

    keys: those of each section, "" for the whole file; an unknown key is named with the nearest of
    them.
    """
    details = error.errors(include_url=False)
    # An unknown key explains a missing one, so it comes first.
    problem = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    where, value = _path(problem), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key {where}{_hint(problem['loc'], keys or {})}"
        case "invalid_key":  # not even a text
            return f"unknown key {value!r}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            message = str(problem["ctx"]["error"])
            # What concerns a whole section names its keys itself.
            return message if isinstance(value, dict) else _line(where, value, message)
        case _:
            # A value that may be of several kinds has a problem with each of them.
            messages = [_in_words(detail) for detail in details if _path(detail) == where]
            return _line(where, value, ", or ".join(messages))


def _line(where: str, value: object, message: str) -> str:
    return f"{where} = {value!r}: {message}"


def _in_words(problem: ErrorDetails) -> str:
    message = problem["msg"]
    return _WORDS.get(problem["type"], message[:1].lower() + message[1:])


def _path(problem: ErrorDetails) -> str:
    """Return where a problem is as the file has it: keys, and places in lists from 0.

    Pydantic's names for the members of unions are left out; no key of ours looks like them.
    """
    parts = problem["loc"]
    path = ""
    for place, part in enumerate(parts, start=1):
        unknown = problem["type"] == "extra_forbidden" and place == len(parts)
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() or part.isdecimal() or unknown:
            path += f".{part}"
    return path.removeprefix(".")


def _hint(location: tuple[int | str, ...], keys: Mapping[str, Sequence[str]]) -> str:
    """Return the key that the unknown one was probably meant to be, or all that are known."""
    known = keys.get("" if len(location) == 1 else str(location[-2]), ())
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(known)}" if known else ""
