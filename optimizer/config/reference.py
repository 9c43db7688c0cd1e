"""docs/config.md, made from the models: every key with its values, unit, default and meaning."""

import json
from typing import Any

from optimizer.config import schema
from optimizer.config.networks import PROXY_BY_TAG
from optimizer.config.study_file import SECTIONS
from optimizer.config.tasks import DATA_BY_TAG

HEAD = """
# Config

Every key of a study's YAML file. `make reference` writes this page from the models in
`optimizer/config`, and a test holds it to them. [method.md](method.md) says what a choice does,
[configs/](../configs) has an example for every task.

A key that is not here is an error, and the message names the nearest one. `densitune schema` prints
the same as a JSON Schema, with which editors complete keys and mark mistakes.
[config.schema.json](config.schema.json) is a copy. A YAML language server finds it by a first line
like this one:

```
# yaml-language-server: $schema=../docs/config.schema.json
```
"""
TOP = """
## The file

`task` stands here or in `data`; only a folder needs a section `data`. The others that are not
required may be left out, too.
"""
DATA = """
## data

Which keys there are depends on the task.
"""
PROXY = """
## proxy

With `network` it is any network by its name, otherwise one of a family.
"""


def page() -> str:
    """Return the page."""
    whole = schema.document()
    parts = whole["$defs"]
    blocks = [HEAD, TOP, _table(whole), DATA]
    for tag, model in DATA_BY_TAG.items():
        described = parts[model.__name__]
        blocks += [f"### {tag}", described["description"], _table(described)]
    blocks += [PROXY]
    for tag, model in PROXY_BY_TAG.items():
        described = parts[model.__name__]
        blocks += [f"### proxy {tag}", described["description"], _table(described)]
    for name, model in SECTIONS.items():
        if name not in (*DATA_BY_TAG, *PROXY_BY_TAG):
            described = parts[model.__name__]
            blocks += [f"## {name}", described["description"], _table(described)]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _table(described: dict[str, Any]) -> str:
    """Return the keys of a section: the task, those that have to be given, the others."""
    rows = ["| key | values | unit | default | meaning |", "|---|---|---|---|---|"]
    keys, required = described["properties"], described.get("required", [])
    for key in sorted(keys, key=lambda key: (key != "task", key not in required)):
        unit = keys[key].get("unit", "")
        default = "required" if key in (*required, "task") else _default(keys[key].get("default"))
        meaning = keys[key]["description"]
        rows.append(f"| `{key}` | {_values(keys[key])} | {unit} | {default} | {meaning} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    return "that of its keys" if value and isinstance(value, dict) else _code(value)


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _values(described: dict[str, Any]) -> str:
    """Return what a key may be, in words."""
    match described:
        case {"anyOf": kinds}:
            return " or ".join(dict.fromkeys(_values(kind) for kind in kinds))
        case {"$ref": _}:
            return "a section"
        case {"enum": words}:
            return ", ".join(_code(word) for word in words)
        case {"const": word}:
            return _code(word)
        case {"type": "array", "items": {"oneOf": kinds}}:
            return "a list of " + " or ".join(_KINDS[kind["type"]] for kind in kinds)
        case {"type": "array", "items": item}:
            return f"a list, each {_values(item)}"
        case {"type": "integer" | "number"}:
            return _range(described)
        case {"type": "object"}:
            return "a mapping"
        case {"format": "path"}:
            return "a path"
        case _:
            return _KINDS[described["type"]]


_KINDS = {
    "array": "lists",
    "object": "mappings",
    "string": "a text",
    "boolean": "`true`, `false`",
    "null": "`null`",
}


def _range(described: dict[str, Any]) -> str:
    """Return the limits of a number in words."""
    kind = f"an {'odd ' if 'not' in described else ''}integer"
    kind = kind if described["type"] == "integer" else "a number"
    match described:
        case {"minimum": low, "maximum": high}:
            return f"{kind} from {low:,} to {high:,}"
        case {"minimum": low, "exclusiveMaximum": high}:
            return f"{kind} from {low:,}, below {high:,}"
        case {"exclusiveMinimum": low, "maximum": high}:
            return f"{kind} above {low:,}, at most {high:,}"
        case {"exclusiveMinimum": low, "exclusiveMaximum": high}:
            return f"{kind} above {low:,}, below {high:,}"
        case {"exclusiveMinimum": low}:
            return f"{kind} above {low:,}"
        case _:
            return kind
