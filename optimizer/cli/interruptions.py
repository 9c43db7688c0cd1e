"""What signals do to a command: while it loads libraries, and until its training listens itself."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
TERMINATIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def loading() -> Iterator[None]:
    """Let signals end the process at once while libraries are loaded: nothing has begun by then.

    An exception instead would be raised in native code that is being set up. torch may abort for
    it, and CPython may take it for unhandled and end by SIGINT although it is caught later.
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
    """Let a signal be what Ctrl-C is."""
    raise KeyboardInterrupt


def _end(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)
