"""What differs between two configurations of a study."""

from typing import Any


def between(stored: dict[str, Any], changed: dict[str, Any]) -> list[str]:
    """Return what differs between two documents, one `key: stored -> changed` each.

    Where data lie and how they were fetched does not count; whether there is a test split does.
    """
    ignored = {"data.folder", "data.download", "data.verify"}
    old, new = _flat(stored), _flat(changed)
    if None not in (old.get("data.test"), new.get("data.test")):
        ignored.add("data.test")
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if key not in ignored and old.get(key) != new.get(key)
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
