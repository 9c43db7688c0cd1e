"""The command line with leases of seconds, so that a storm of half a minute sees some run out.

Nothing else differs from `python -m optimizer.cli`, which the long form runs.
"""

from storage import leases
from workers.service import heartbeat


def run() -> None:
    heartbeat.LEASE, heartbeat.BEAT, leases.RETURN_SECONDS = 6.0, 1.0, 6.0
    from optimizer.cli import main

    main.main()


if __name__ == "__main__":
    run()
