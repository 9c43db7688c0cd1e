"""YAML in which a key that is given twice is an error, as the standard demands."""

from typing import Any

import yaml


class OneValuePerKey(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself takes the last value of such a key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; ConstructorError with the line of a repeated key."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value} is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
