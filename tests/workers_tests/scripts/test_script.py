"""A script is found, with its function, before anything of it is run."""

from pathlib import Path

import pytest

from optimizer.errors import UsageError
from workers.scripts.script import find_script


def test_a_name_that_a_module_cannot_have_is_told_before_it_is_run(tmp_path: Path) -> None:
    file = tmp_path / "mine_alone.py"
    file.write_text(
        "raise SystemExit\ndef main(): ...\nif True:\n    from json import loads as other\n"
    )
    for name in ("main", "other"):
        assert find_script(f"mine_alone:{name}", tmp_path).function == name
    with pytest.raises(UsageError, match=r"mine_alone.py has no function mian; nearest: main$"):
        find_script("mine_alone:mian", tmp_path)
    file.write_text("from json import *\n")
    assert find_script("mine_alone:loads", tmp_path).function == "loads"
    file.write_text("def main(:\n")
    with pytest.raises(UsageError, match=r"mine_alone.py cannot be read as Python: .*line 1"):
        find_script("mine_alone:main", tmp_path)
