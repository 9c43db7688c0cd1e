"""What is written about the keys of a study's file is what they are."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.checkout import ROOT

from optimizer.config import reference, schema
from optimizer.config.section import Section, unit
from optimizer.config.study_file import SECTIONS, StudyConfig, parse
from optimizer.errors import UsageError

EXAMPLES = sorted((ROOT / "configs").glob("*.yaml"))
MODELS = (StudyConfig, *SECTIONS.values())
VALIDATOR = jsonschema.Draft202012Validator(schema.document())
"""Its format checker is off: a path is any text."""


@pytest.mark.parametrize(
    ("path", "written"),
    [("docs/config.md", reference.page), ("docs/config.schema.json", schema.text)],
)
def test_what_is_committed_is_what_make_reference_writes(path: str, written: Any) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == written(), "run: make reference"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_a_meaning_and_every_number_a_unit(model: type[Section]) -> None:
    described = model.model_json_schema()["properties"]
    for key in model.model_fields:
        assert described[key]["description"].strip().endswith((".", ")"))
        numeric = {"integer", "number"} & set(types(described[key]))
        assert (unit(model, key) is not None) == bool(numeric and key != "include"), key


def types(described: Any) -> list[str]:
    """The JSON types that a key and what is in it may have; those of other sections left out."""
    if isinstance(described, list):
        return [name for part in described for name in types(part)]
    if not isinstance(described, dict):
        return []
    inside = [described.get(name) for name in ("anyOf", "oneOf", "items", "additionalProperties")]
    own = described.get("type")
    return ([own] if isinstance(own, str) else []) + types(inside)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.text()))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_the_schema_and_lead_editors_to_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(text)))
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == ROOT / "docs/config.schema.json"


def altered(key: str, value: Any) -> dict[str, Any]:
    """The quickstart with another value of a key, or without it."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    *above, last = key.split(".")
    section = content
    for name in above:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return content


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "two words"),
        ("name", None),
        ("task", "cifar10"),
        ("task", "folder"),  # which needs to know where
        ("task", "cifar100"),  # which has no noise
        ("task", None),
        ("data.sigma", 256),
        ("data.sigm", 25),
        ("data.color", "blue"),
        ("proxy", None),
        ("proxy.family", "alexnet"),
        ("proxy.width", 0),
        ("kernel_size", 4),
        ("kernel_size", [3, 33]),
        ("density.low", 0),
        ("density.include", [0.7]),
        ("training.budget", 0),
        ("training.lr", "high"),
        ("search.rungs", [0]),
        ("search.keep", 1.5),
        ("search.sampler", "cma"),
        ("confirm.seeds", 1),
        ("confirm.trainable", "perhaps"),
        ("serch", {}),
    ],
)
def test_what_a_study_refuses_in_one_key_an_editor_marks(key: str, value: Any) -> None:
    content = altered(key, value)
    with pytest.raises(UsageError):
        parse(content, origin="here")
    assert list(VALIDATOR.iter_errors(content))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel_size", [3]),
        ("density.include", [[0.7], {"3": [0.8]}]),
        ("confirm.budget", 8),
        ("training.lr", 0.001),
        ("data", None),
        ("data.task", "photos"),
        ("init", "compensated"),
    ],
)
def test_what_a_study_takes_an_editor_does_not_mark(key: str, value: Any) -> None:
    content = altered(key, value)
    parse(content, origin="here")
    assert not list(VALIDATOR.iter_errors(content))
