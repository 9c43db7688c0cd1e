"""The command line with leases of seconds, so that a storm of half a minute sees some run out.

Nothing else differs from `python -m optimizer.cli`, which the long form runs.
"""

from storage import leases
from workers import heartbeat


def main() -> None:
    heartbeat.LEASE, heartbeat.BEAT, leases.RETURN_SECONDS = 6.0, 1.0, 6.0
    from optimizer import cli

    cli.main()


if __name__ == "__main__":
    main()
