"""What is shown of a running study: a live panel on a terminal, dated lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from optimizer.show import printing, terminal, words
from optimizer.show.progress import progress
from optimizer.snapshot import Snapshot

LINE_SECONDS = 60.0
"""Between two lines of a phase where there is no terminal."""
QUIET_SECONDS = 600.0
"""After which there is a line although nothing has changed."""

Show = Callable[[Snapshot], None]


@contextmanager
def live(console: Console) -> Iterator[Show]:
    """Yield what shows a snapshot."""
    if not console.is_terminal:
        yield lines(console)
        return
    began = time.monotonic()
    with Live(console=console, transient=True, auto_refresh=False) as panel:

        def show(now: Snapshot) -> None:
            elapsed = Text(f"{words.duration(time.monotonic() - began)} since the start")
            panel.update(Group(terminal.panel(now), elapsed), refresh=True)

        yield show


def lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Show:
    """Return what prints a line with its time: for every phase, and now and then within one."""
    shown: tuple[str, str] | None = None
    at = 0.0

    def show(now: Snapshot) -> None:
        nonlocal shown, at
        said, passed = (now.study.phase, progress(now)), clock() - at
        due = shown is None or said[0] != shown[0]
        due |= passed > (LINE_SECONDS if said != shown else QUIET_SECONDS)
        if due:
            shown, at = said, clock()
            dated(console, terminal.plain_line(now))

    return show


def dated(console: Console, line: str) -> None:
    """Print a line of a log: with its time, in the time of this machine."""
    printing.say(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", console)
