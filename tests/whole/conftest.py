"""The command line, with or without a process of its own."""

import pytest
from support.shell import Here


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """The command line in the test's process."""
    return Here(monkeypatch, capsys)
