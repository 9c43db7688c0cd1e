"""Documents from anywhere: what is read, and what is refused with one line before it costs much."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkout import ROOT

from optimizer.config import documents, strict_yaml, study_file
from optimizer.errors import UsageError

QUICKSTART = (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")


def levels(count: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(count - 1):
        value = [value]
    return value


def bomb(width: int, depth: int) -> str:
    """YAML whose last alias stands for width to the power of depth words."""
    lines = [f"a0: &a0 [{', '.join(['lol'] * width)}]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]"
        for level in range(1, depth)
    ]
    return "\n".join([*lines, f"name: *a{depth - 1}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 20_000, "nested deeper than 50 levels"),
        ("[" * 20_000 + "]" * 20_000, "nested deeper than 50 levels"),
        ('{"a":' * 3_000, "nested deeper than 50 levels"),
        (json.dumps(levels(51)), "nested deeper than 50 levels"),
        ("[" + "9" * 5_000 + "]", "a number has 5,000 digits; at most 100 are read"),
        ('["a\\u0000b"]', "the text 'a\\x00b' has the character NUL"),
        ('{"a\\u0000b": 1}', "the text 'a\\x00b' has the character NUL"),
        ('["\\ud800"]', "has half a surrogate pair"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ("[", "Expecting value"),
    ],
)
def test_json_beyond_the_limits_is_refused(text: str, expected: str) -> None:
    for stored in (text, text.encode()):
        with pytest.raises(ValueError, match=re.escape(expected)) as caught:
            documents.from_json(stored)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


plain = st.none() | st.booleans() | st.integers(-(10**98), 10**98) | st.floats(allow_nan=False)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
values = st.recursive(plain | words, lambda v: st.lists(v) | st.dictionaries(words, v))


@given(values)
def test_json_within_the_limits_is_read_as_it_is(value: Any) -> None:
    assert documents.from_json(json.dumps(value)) == value
    assert documents.from_json(json.dumps(levels(50))) == levels(50)


@given(st.binary(max_size=200) | st.text(st.sampled_from('[]{}:",0159eE+-.\\u\0 na'), max_size=80))
def test_no_json_ends_in_another_error(text: bytes | str) -> None:
    try:
        documents.from_json(text)
    except ValueError:
        return


def test_a_document_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(documents.MOST_BYTES))
    assert len(documents.read(path)) == documents.MOST_BYTES
    for endless in (tmp_path / "b", Path("/dev/zero")):
        if endless.parent == tmp_path:
            endless.write_bytes(bytes(documents.MOST_BYTES + 1))
        with pytest.raises(ValueError, match="it has more than 1,048,576 bytes"):
            documents.read(endless)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("+5", 5),
        ("-12", -12),
        ("0", 0),
        ("-0", 0),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-0b11", -3),
        ("1.5", 1.5),
        ("1.0e-3", 0.001),
        (".inf", float("inf")),
        ("'010'", "010"),
        ("'1:30'", "1:30"),
        ("!!str 010", "010"),
    ],
)
def test_a_number_is_what_people_read(text: str, value: Any) -> None:
    assert strict_yaml.load(text) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("010", "010 is octal to YAML; write 10, or quotes around it"),
        ("-007", "-007 is octal to YAML; write 7, or quotes around it"),
        ("0_10", "0_10 is octal to YAML"),
        ("1:30", "1:30 is a number of base 60 to YAML; write a decimal one, or quotes around"),
        ("1:30.5", "1:30.5 is a number of base 60 to YAML"),
        ("9" * 5_000, "a number has 5,000 digits"),
        ("[" * 20_000, "nested deeper than 50 levels"),
        ("{a: " * 300, "nested deeper than 50 levels"),
        ("- " * 300 + "a", "nested deeper than 50 levels"),
        (bomb(9, 12), "more than 1,048,576 characters with its aliases"),
        (bomb(1, 60), "nested deeper than 50 levels"),
        ("a: &x [*x]", "one of its aliases stands for what contains it"),
        (f"a: &x {'y' * 1000}\nb: [{', '.join(['*x'] * 2000)}]", "characters with its aliases"),
        ('folder: "a\\0b"', "the text 'a\\x00b' has the character NUL"),
        ('folder: "\\ud800"', "has half a surrogate pair"),
        ("!!int ''", "a value is not what its tag"),
        ("!!bool x", "a value is not what its tag"),
        ("!!timestamp x", "a value is not what its tag"),
    ],
)
def test_a_config_that_yaml_reads_otherwise_or_for_ever_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(UsageError) as caught:
        study_file.load(path)
    assert time.process_time() - begun < 10
    line = str(caught.value)
    assert line.startswith(f"config {path} is not YAML: ")
    assert expected in line
    assert "\n" not in line
    assert len(line) < 600


def test_aliases_and_merges_of_a_sane_size_are_read() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]"
    assert strict_yaml.load(text) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2}


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(QUICKSTART, encoding="utf-8-sig")
    assert study_file.load(path) == study_file.load(ROOT / "configs" / "quickstart.yaml")


@given(st.text(st.sampled_from("ab01: \n-[]{},&*!?|>'\"#%@`~<.\\x\0\ud800\u2028"), max_size=60))
@settings(max_examples=300)
def test_no_yaml_ends_in_another_error(text: str) -> None:
    try:
        strict_yaml.load(text)
    except (yaml.YAMLError, ValueError):
        return


odd = st.sampled_from(
    [None, {}, [], "", "x", -1, 0, 10**99, 1e308, "9" * 5_000, [[1]], {"a\nb": 1}, True]
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_value_of_a_config_ends_in_another_error_or_in_several_lines(
    data: st.DataObject,
) -> None:
    raw = yaml.safe_load(QUICKSTART)
    section = data.draw(st.sampled_from([raw, *(v for v in raw.values() if isinstance(v, dict))]))
    section[data.draw(st.sampled_from([*section, "a\nb", "z" * 5_000]))] = data.draw(odd)
    try:
        study_file.parse(raw, origin="x.yaml")
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
        assert len(str(error)) < 1_500  # noqa: PT017


def test_a_link_to_itself_and_a_name_that_is_too_long_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for folder in ("loop/images", "x" * 5_000):
        raw = yaml.safe_load(QUICKSTART) | {"task": "folder", "data": {"folder": folder}}
        raw["proxy"] = {"family": "dncnn", "width": 8, "depth": 3}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(raw))
        config = study_file.load(path)
        assert str(getattr(config.data, "folder", "")).endswith(folder)
