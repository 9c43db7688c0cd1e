"""The way of everything printed: a text commands no terminal (storage.printable).

rich writes escape sequences of its own, so a console cleans what it is given and writes past the
guard. All else, the library's warnings and errors of usage too, goes through the guard.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from storage import printable

PLAIN_WIDTH = 110
"""Columns where there is no terminal: enough for the tables."""


class _Console(Console):
    """A console that cleans all text, however it is given."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable.lines(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        if isinstance(renderable, Text) and renderable.plain != printable.lines(renderable.plain):
            renderable = Text(printable.lines(renderable.plain), renderable.style)
        return super().render(renderable, options)


def console() -> Console:
    """Return a console on standard output; wide enough for the tables where it is no terminal.

    Brackets and colons in what is printed, such as those of densities and paths, are only that.
    """
    file = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # while a live display is shown
    stream = file.stream if isinstance(file, _Guarded) else file
    plain = _Console(file=stream, highlight=False, markup=False, emoji=False)
    if not plain.is_terminal:
        plain.width = PLAIN_WIDTH
    return plain


def say(line: str, to: Console | None = None) -> None:
    """Print one line, which terminals fold and nobody else, to a console or standard output."""
    (to or console()).print(printable.line(line), soft_wrap=True)


def text(line: str, style: str = "") -> Text:
    """Return one line for a console."""
    return Text(printable.line(line), style)


class _Guarded:
    """A stream that takes text only.

    It has no `buffer`, through which it could be written past. A carriage return that begins a
    write begins a line, as bars of progress do.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        start = text[:1] if text.startswith("\r") else ""
        self.stream.write(start + printable.lines(text[len(start) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Let nothing but text through to standard output and standard error."""
    with ExitStack() as streams:
        if sys.stdout is not None:
            streams.enter_context(redirect_stdout(cast(TextIO, _Guarded(sys.stdout))))
        if sys.stderr is not None:
            streams.enter_context(redirect_stderr(cast(TextIO, _Guarded(sys.stderr))))
        yield


class _LogLine(logging.Formatter):
    """One line for each message, with a traceback below it if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable.line(super().formatMessage(record))


def log(form: str, level: int, *, force: bool = False) -> None:
    """Write log messages to standard error, unless that is set up already or `force` is given."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine(form, "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=force)
