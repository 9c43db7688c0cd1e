"""Text of unknown origin commands no terminal, however and wherever it is shown."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import RenderableType
from rich.text import Text
from sqlalchemy import Engine
from support import shell, simulated
from support.queued import set_state
from support.synthetic import WHEN, decided, usual

from optimizer.cli import main
from optimizer.phases.proposer import Proposer
from optimizer.show import overview, printing, programs, report, terminal
from optimizer.show.confirmation_table import arms_table
from optimizer.show.overview import Entry
from optimizer.snapshot import Snapshot
from storage import jobs, printable, roster
from storage.failures import FailureCount
from storage.studies import StudyOverview

EVIL = "\x1b]0;title\x07\x1b[2Jclear\r\nforged\x9b31mred\u202egpj\udcff"
HARMLESS = printable.line(EVIL)
COMMANDS = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))} | {
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
}
ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from(sorted(COMMANDS)))


def commands(text: str) -> set[str]:
    """What a text holds that a terminal would obey, but for the ends of lines."""
    return {c for c in text if c != "\n" and (c in COMMANDS or 0xD800 <= ord(c) < 0xE000)}


@given(ANY_TEXT)
@example(EVIL)
def test_a_line_holds_no_command_and_is_one(text: str) -> None:
    assert commands(printable.line(text)) == set()
    assert len(printable.line(text).splitlines()) <= 1
    assert commands(printable.lines(text)) <= {"\t"}
    assert printable.lines(text).count("\n") == text.count("\n")


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
@example("identity ± 0.1 dB, фото, 写真, 🙂")
def test_what_is_read_is_shown_as_it_is(text: str) -> None:
    assert printable.line(text) == printable.lines(text) == text


@given(ANY_TEXT)
def test_json_keeps_its_value(text: str) -> None:
    document = json.dumps({"name": text}, ensure_ascii=False, indent=1)
    assert json.loads(printable.json(document)) == {"name": text}
    assert commands(printable.json(document)) == set()


def planted(known: Snapshot) -> Snapshot:
    """A study in which every text of somebody else's is hostile."""

    def hostile(trials: Any) -> Any:
        return [replace(t, label=EVIL, reason=EVIL if t.reason else None) for t in trials]

    study = replace(
        known.study,
        name=EVIL,
        failure=EVIL,
        provenance={**known.study.provenance, "source": EVIL, "versions": {EVIL: EVIL}},
        verdicts=known.study.verdicts
        and [{**one, "label": EVIL, "reason": None} for one in known.study.verdicts],
    )
    failure = FailureCount(
        kind="code",
        times=2,
        phase=EVIL,
        trial=3,
        seed=1,
        error=f"first\n{EVIL} last",
        host=EVIL,
        pid=7,
        failed_at=WHEN,
    )
    return replace(
        known,
        study=study,
        trials=hostile(known.trials),
        results=[replace(result, label=EVIL) for result in known.results],
        workers=[replace(worker, host=EVIL, device=EVIL) for worker in known.workers],
        confirm=replace(known.confirm, trials=hostile(known.confirm.trials)),
        failures=[failure],
    )


def printed(what: RenderableType) -> str:
    console = printing.console()
    console.width = 5_000  # no line is folded
    with console.capture() as captured:
        console.print(what)
    return captured.get()


@pytest.mark.parametrize("known", [usual(), decided()], ids=["searching", "decided"])
def test_planted_names_hosts_devices_and_errors_are_shown_harmlessly(known: Snapshot) -> None:
    now = planted(known)
    listed = StudyOverview(
        name=EVIL,
        state="running",
        phase="search",
        failure=EVIL,
        created_at=WHEN,
        verdicts=None,
        asked_for=6,
        trials=6,
        running=0,
        complete=1,
        pruned=2,
        failed=3,
        workers=4,
    )
    shown = [
        printed(terminal.status(now)),
        printed(terminal.panel(now)),
        printed(overview.table([Entry(listed, None)])),
        terminal.plain_line(now),
        *([printed(arms_table(now))] if now.study.phase == "decided" else []),
    ]
    assert all(commands(text) == set() for text in shown)
    assert not any(line.lstrip("│ ").startswith("forged") for line in "\n".join(shown).split("\n"))
    assert HARMLESS in shown[0]
    assert commands(report.render(now)) == set()
    assert commands(json.dumps(programs.document(now))) == set()


def test_a_console_cleans_text_of_whatever_form(capsys: pytest.CaptureFixture[str]) -> None:
    with printing.guarded():
        printing.say(EVIL)
        printing.console().print(EVIL, soft_wrap=True)
        printing.console().print(Text(EVIL), soft_wrap=True)
        print(EVIL)
        print(EVIL, file=sys.stderr)
        sys.stderr.writelines([EVIL])
    told, errors = capsys.readouterr()
    assert commands(told) == commands(errors) == set()
    assert told.startswith(f"{HARMLESS}\n")


def test_bars_of_progress_may_go_back_to_the_start_of_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with printing.guarded():
        sys.stderr.write("\r 50 %\r")
    assert capsys.readouterr().err == "\r 50 %\\r"


def test_a_guarded_stream_cannot_be_written_past() -> None:
    with printing.guarded():
        assert not hasattr(sys.stdout, "buffer")
        assert not hasattr(sys.stderr, "buffer")
        assert sys.stdout.encoding


def test_a_message_of_a_log_is_one_line_and_a_traceback_follows_it() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(printing._LogLine("%(message)s"))
    logger = logging.getLogger("densitune.test")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        raise ValueError("so it went")
    except ValueError:
        logger.exception("worker %s", EVIL)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    first, *rest = written.getvalue().split("\n")
    assert first == f"worker {HARMLESS}"
    assert rest[0].startswith("Traceback")


@pytest.mark.parametrize(
    "arguments",
    [["status", EVIL[:-1]], ["verify", EVIL[:-1]], [EVIL[:-1]]],
    ids=["study", "file", "usage"],
)
def test_errors_are_one_harmless_line(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty_url: str,
) -> None:
    monkeypatch.setenv("DENSITUNE_STORAGE", empty_url)
    monkeypatch.setattr(sys, "argv", ["densitune", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert commands(errors) == set()
    assert printable.line(EVIL[:-1])[:20] in errors


def test_a_real_terminal_gets_no_command_of_a_failed_job(database: Engine, tmp_path: Path) -> None:
    given = simulated.small()
    study = simulated.create(database, given)
    Proposer(database, study, given).advance()
    worker = roster.register(database, study, "host", 1, "CPU", {})
    for job in jobs.claim(database, study, worker, 1, 60):
        jobs.fail(database, job.claim, f"ValueError: {EVIL[:-1]}", "code")
    set_state(database, study, "stopped")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        shell.command("status", given.name),
        cwd=tmp_path,
        env={
            **shell.environment(database.url.render_as_string(hide_password=False)),
            "TERM": "xterm-256color",
        },
        stdout=theirs,
        stderr=theirs,
        timeout=120,
        check=False,
    )
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    assert done.returncode == 0
    assert b"\x1b]0;" not in shown
    assert b"\x1b[2J" not in shown
    assert "\u202e".encode() not in shown
    assert b"forged" in shown.replace(b"\r\n", b"")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # the other end is closed
        return b""
