"""The notebook in docs/ runs, and shows what it showed when it was written."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from support.checkout import ROOT
from support.notebook import VARIES, executed

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "docs" / "study.ipynb"


def test_the_notebook_gives_what_it_shows(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENSITUNE_STORAGE", database_url)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown, found = nbformat.read(NOTEBOOK, as_version=4), executed(NOTEBOOK, tmp_path)
    for before, after in zip(shown.cells, found.cells, strict=True):
        if before.cell_type == "code":
            assert before.outputs, before.source
            kinds = [[output.output_type for output in cell.outputs] for cell in (before, after)]
            assert kinds[0] == kinds[1], after.outputs
            if VARIES not in before.metadata.get("tags", []):
                assert after.outputs == before.outputs
    assert (tmp_path / "presets" / "from-a-notebook.json").exists()


def test_the_notebook_names_no_place_of_a_machine() -> None:
    shown = json.dumps(nbformat.read(NOTEBOOK, as_version=4))
    assert not re.findall(r"(?<![\w./])/(?:home|root|tmp|work|usr|opt|var)\b[^\"\\ ]*", shown)
