"""YAML that is refused where PyYAML would guess, or take for ever.

A key that is given twice is an error, as the standard demands; so are numbers that YAML 1.1 reads
otherwise than people do (010 is 8, 1:30 is 90); aliases count as what they stand for.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from optimizer.config import documents


def load(text: str) -> Any:
    """Return the value of a YAML document; YAMLError or ValueError if it is none to be read."""
    try:
        return documents.checked(yaml.load(text, StrictLoader))
    except (yaml.YAMLError, ValueError):
        raise
    except RecursionError:
        raise documents.too_deep() from None
    except Exception as error:  # what PyYAML raises where a value is not what its tag says
        raise ValueError("a value is not what its tag (!!int, !!bool, ...) says") from error


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, without its guesses and with limits."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._measured: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node; ValueError if it is too deep or, with its aliases, too large."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._level += 1
        if self._level > documents.MOST_LEVELS:
            raise documents.too_deep()
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is not None and node not in self._measured:
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("one of its aliases stands for what contains it")
            self._measured[node] = self._measure(node)
        return node

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        """Return how many levels and, roughly, characters a node has with its aliases."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1 + len(node.value)
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(n,) for n in node.value]
        inside = [self._measured[part] for pair in pairs for part in pair]
        levels = 1 + max((level for level, _ in inside), default=0)
        size = 1 + sum(size for _, size in inside)
        if levels > documents.MOST_LEVELS:
            raise documents.too_deep()
        if size > documents.MOST_BYTES:
            raise documents.too_large("characters with its aliases written out")
        return levels, size

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; ConstructorError with the line of a repeated key."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise ConstructorError(
                    None, None, f"key {key.value[:40]} is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """Construct a whole number; ConstructorError if people read it otherwise than YAML does."""
        written = str(self.construct_scalar(node))
        if re.fullmatch(r"[-+]?0[0-9_]+", written) and written.strip("-+0_"):
            self._refuse(node, f"is octal to YAML; write {written.lstrip('-+0_')}")
        self._refuse_sixties(node)
        digits, sign = written.replace("_", "").lstrip("-+"), -1 if written[0] == "-" else 1
        base = {"0x": 16, "0b": 2}.get(digits[:2], 10)
        return sign * documents.whole(digits, base)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """Construct a number; ConstructorError if people read it otherwise than YAML does."""
        self._refuse_sixties(node)
        return float(self.construct_yaml_float(node))

    def _refuse_sixties(self, node: yaml.ScalarNode) -> None:
        if ":" in node.value:
            self._refuse(node, "is a number of base 60 to YAML; write a decimal one")

    def _refuse(self, node: yaml.ScalarNode, why: str) -> None:
        line = f"{node.value[:40]} {why}, or quotes around it if it is a text"
        raise ConstructorError(None, None, line, node.start_mark)


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_whole)
StrictLoader.add_constructor("tag:yaml.org,2002:float", StrictLoader.construct_number)
