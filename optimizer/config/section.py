"""What all sections of a study's configuration have in common."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationInfo, field_validator


@dataclass(frozen=True)
class Unit:
    """What a number of the configuration counts, or is measured in."""

    name: str


class Section(BaseModel):
    """A part of the file; unknown keys are errors, values never change.

    The text below a key is its description in docs/config.md and in the JSON Schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what Python would take for 0 or 1."""
        field = cls.model_fields[str(info.field_name)]
        if field.annotation is not bool and _has_boolean(value):
            raise ValueError("a boolean has no place here, and to YAML yes, no, on, off are some")
        return value


def _has_boolean(value: Any) -> bool:
    """Tell whether a value is a boolean or a list with one; sections look into themselves."""
    if isinstance(value, list | tuple):
        return any(
            _has_boolean([*item.keys(), *item.values()] if isinstance(item, dict) else item)
            for item in value
        )
    return isinstance(value, bool)


def check_plain(values: dict[str, JsonValue], key: str) -> None:
    """Raise ValueError, which names the key, if values cannot be stored as JSON."""
    try:
        written = json.dumps(values, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{key} has a number that is not finite") from error
    if "\\u0000" in written:
        raise ValueError(f"{key} has a text with the character NUL")


def unit(section: type[Section], key: str) -> str | None:
    """Return the unit of a key, None if it has none."""
    metadata = section.model_fields[key].metadata
    return next((entry.name for entry in metadata if isinstance(entry, Unit)), None)
