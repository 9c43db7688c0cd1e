"""The keys of a study's file as a JSON Schema, for editors that complete and check them.

The file is described as people write it: `task` at the top, one kernel size without brackets. What
concerns several keys at once is checked by `study_file` alone.
"""

import json
from typing import Any

from optimizer.config.agreement import NAME
from optimizer.config.section import Section, unit
from optimizer.config.study_file import SECTIONS, StudyConfig
from optimizer.config.tasks import DATA_BY_TAG, TASKS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""The one that pydantic writes."""
KERNEL_SIZE = {"type": "integer", "minimum": 3, "maximum": 31, "not": {"multipleOf": 2}}
NULL = {"type": "null"}


def text() -> str:
    """Return the JSON Schema of a study's file."""
    schema = document()
    for part in (schema, *schema["$defs"].values()):
        for key in part.get("properties", {}).values():  # a JSON value has none
            if "unit" in key:
                key["description"] += f" Unit: {key.pop('unit')}."
    return json.dumps({"$schema": DIALECT, **schema}, indent=2) + "\n"


def document() -> dict[str, Any]:
    """Return the same as plain values, with units of their own beside the descriptions."""
    schema = StudyConfig.model_json_schema()
    schema["title"] = "A study of densitune"
    parts, keys = schema["$defs"], schema["properties"]
    _describe(StudyConfig, schema)
    for model in SECTIONS.values():
        _describe(model, parts[model.__name__])
    for model in DATA_BY_TAG.values():
        parts[model.__name__]["required"].remove("task")
    keys["name"]["pattern"] = f"^{NAME}$"
    del keys["kernel_size"]["type"], keys["kernel_size"]["items"]
    keys["kernel_size"]["anyOf"] = [KERNEL_SIZE, {"type": "array", "items": KERNEL_SIZE}]
    layers = parts["NamedNetwork"]["properties"]["layers"]
    layers["anyOf"] = [{"type": "string"}, {"type": layers.pop("type"), "items": layers["items"]}]
    del layers["items"]
    keys["proxy"]["anyOf"] = keys["proxy"].pop("anyOf")[0]["oneOf"]  # what has none leaves it out
    del keys["proxy"]["default"]
    larger = parts["Audit"]["properties"]["proxy"]
    larger["anyOf"] = larger.pop("oneOf")
    keys["data"]["anyOf"] = [*keys["data"].pop("oneOf"), NULL]
    keys["task"] = {"enum": list(TASKS), "description": "What the study is about."}
    schema["required"].remove("data")
    inside = {"required": ["data"], "properties": {"data": {"required": ["task"]}}}
    schema["anyOf"] = [{"required": ["task"]}, inside]
    schema["allOf"] = [_data_of(task, parts) for task in TASKS]
    return schema


def _describe(model: type[Section], described: dict[str, Any]) -> None:
    """Put texts into one line and units beside them; pydantic's titles only repeat the keys."""
    described["description"] = " ".join(described["description"].split())
    for name, key in described["properties"].items():
        key.pop("title", None)
        key["description"] = " ".join(key["description"].split())
        measured = unit(model, name)
        if measured is not None:
            key["unit"] = measured


def _data_of(task: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Return what `data` may be for a task that stands at the top of the file."""
    names = [
        model.__name__ for model in DATA_BY_TAG.values() if _task(parts[model.__name__]) == task
    ]
    needed = any(parts[name]["required"] for name in names)
    kinds = [{"$ref": f"#/$defs/{name}"} for name in names] + ([] if needed else [NULL])
    required = ["data"] * needed + ["proxy"] * (task != "python")
    return {
        "if": {"properties": {"task": {"const": task}}, "required": ["task"]},
        "then": {"properties": {"data": {"anyOf": kinds}}, "required": required},
    }


def _task(part: dict[str, Any]) -> str:
    task: str = part["properties"]["task"]["const"]
    return task
