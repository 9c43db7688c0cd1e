"""What signals do to a command: while it loads libraries, and until its training listens itself."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130
TERMINATIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_interrupted = threading.Event()


@contextmanager
def loading() -> Iterator[None]:
    """Let signals end the process at once while libraries are loaded: nothing has begun by then.

    An exception instead would be raised in native code that is being set up; torch may abort then.
    """
    heard = [n for n in (signal.SIGINT, *TERMINATIONS) if signal.getsignal(n) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, _end) for number in heard}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def on_termination(react: Callable[[], None]) -> None:
    """React to SIGTERM, SIGUSR1 and a closed terminal, but to none that is ignored (nohup)."""
    for number in TERMINATIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: react())


def interrupt() -> None:
    """Let a signal be what Ctrl-C is, but for the exit code."""
    _interrupted.set()
    raise KeyboardInterrupt


@atexit.register  # first of all, so it is called last
def _end_as_told() -> None:
    """End an interrupted process with its exit code, whatever CPython makes of it.

    That ends by SIGINT if an interruption came out of `exec` or `eval` of a text, as dataclasses
    have it, even if it was caught later (pythonrun.c, unhandled_keyboard_interrupt).
    """
    if _interrupted.is_set():
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(INTERRUPTED)


def _end(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)
