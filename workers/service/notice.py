"""Notice to leave: signals that are heard at once, and a time after which the process is gone.

Clusters send a signal and kill some time later. Python runs a signal's handler in the main thread,
when that is back from native code; a byte in a pipe (signal.set_wakeup_fd) is there at once, and
a thread of its own reads it.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Kubernetes and `scancel` send SIGTERM, `sbatch --signal` what one asks for, usually SIGUSR1."""
LEAVE_SECONDS = 25.0
"""From the first signal until the process is gone, at most; SLURM kills after 30 (KillWait)."""
HAND_BACK_SECONDS = 5.0
"""The last part of that, for handing back what could not be saved until then."""
ECHO_SECONDS = 1.0
"""Within this, another signal is the same one: sent to the process and to its group, say."""
INTERRUPTED = 130

log = logging.getLogger("densitune.worker")


class Notice:
    """Listens for signals within a `with` block; `stop` is set by the first.

    A second signal ends the process at once. LEAVE_SECONDS after the first it ends in any case,
    also outside the block, after `hand_back` has had its time. A signal that is ignored (SIGHUP
    under nohup) stays ignored. To be entered in the main thread.
    """

    def __init__(
        self, hand_back: Callable[[], None], *, end: Callable[[int], object] = os._exit
    ) -> None:
        self._hand_back, self._end = hand_back, end
        self.stop = threading.Event()
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="notice", daemon=True)

    def __enter__(self) -> Self:
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._numbers = frozenset(heard)
        self._thread.start()
        self._earlier = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _heard) for number in heard}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stop.is_set():
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier)
        self._sender.close()  # ends the thread
        self._thread.join()
        self._receiver.close()

    def _listen(self) -> None:
        first = self._next(None)
        if first is None:
            return
        given = time.monotonic()
        log.info("%s: leaving within %.0f s", signal.Signals(first).name, LEAVE_SECONDS)
        self.stop.set()
        while (left := given + LEAVE_SECONDS - HAND_BACK_SECONDS - time.monotonic()) > 0:
            if self._next(left) is not None and time.monotonic() - given > ECHO_SECONDS:
                self._end(INTERRUPTED)
        log.warning("not done in time: jobs are handed back as they are")
        last = threading.Thread(target=self._hand_back, daemon=True)  # its database may hang
        last.start()
        last.join(HAND_BACK_SECONDS)
        self._end(INTERRUPTED)

    def _next(self, seconds: float | None) -> int | None:
        """Return the next signal; None if there is none in time, or the block has ended."""
        self._receiver.settimeout(seconds)
        try:
            while number := self._receiver.recv(1):
                if number[0] in self._numbers:
                    return number[0]
        except TimeoutError:
            pass
        return None


def _heard(number: int, frame: object) -> None:
    """Do nothing: the byte in the pipe is what is listened to."""
