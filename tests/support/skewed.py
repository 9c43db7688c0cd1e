"""The command line on a machine whose clock is an hour ahead.

Only what Python code reads is moved; the monotonic clock goes on as on any machine. The time zone
is the environment's (TZ).
"""

import datetime
import time

AHEAD = 3600


class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Datetime":
        return super().now(tz) + datetime.timedelta(seconds=AHEAD)


def run() -> None:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + AHEAD
    time.time_ns = lambda: nanoseconds() + AHEAD * 10**9
    datetime.datetime = Datetime  # type: ignore[misc]
    from optimizer.cli import main

    main.main()


if __name__ == "__main__":
    run()
