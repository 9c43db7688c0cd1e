"""What people read names what there is."""

import re
from pathlib import Path

import pytest
from support.checkout import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docker").rglob("*.md")),
    ROOT / "examples" / "README.md",
]
LINE = 120
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@every_document
def test_a_file_that_is_named_exists(document: Path) -> None:
    top = "optimizer|workers|storage|densitune|tests|benchmarks|configs|docker|docs|examples"
    paths = re.findall(rf"(?<![\w/.-])((?:{top})/[\w./-]*\w\.[a-z]+)\b", document.read_text())
    missing = {path for path in paths if "NAME" not in path and not (ROOT / path).exists()}
    assert not missing


@every_document
def test_a_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert not {link for link in links if not (document.parent / link).exists()}


@every_document
def test_a_module_that_is_named_exists(document: Path) -> None:
    names = re.findall(r"`((?:optimizer|workers|storage)(?:\.[a-z_0-9]+)+)`", document.read_text())
    missing = set()
    for name in names:
        path = ROOT.joinpath(*name.split("."))
        inside = [path.with_suffix(".py"), path.parent.with_suffix(".py"), path / "__init__.py"]
        if not any(place.exists() for place in inside):
            missing.add(name)
    assert not missing


@every_document
def test_lines_are_short_but_for_tables_and_code(document: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in prose.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > LINE] == []
