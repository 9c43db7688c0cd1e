"""Roles with the least privileges that reading, training and proposing take: roles.sql.

python -m storage.roles [--password ROLE FILE]...

runs it on the server that DENSITUNE_STORAGE names, as the database's owner (a password that the
URL leaves out comes from the file that DENSITUNE_STORAGE_PASSWORD_FILE names, or, as everywhere in
PostgreSQL, from PGPASSFILE or PGPASSWORD), and gives roles the passwords in files. The server sees
and logs only what SCRAM makes of a password.
"""

import argparse
import os
import sys
from importlib.resources import files

from psycopg2.extensions import encrypt_password, quote_ident
from sqlalchemy import Engine

from storage import addresses, database, passwords, printable
from storage.errors import StorageError

ROLES = ("densitune_reader", "densitune_worker", "densitune_proposer")


def create(engine: Engine) -> None:
    """Create the roles, or renew what they may do here; StorageError if that is not ours to do."""
    script = files("storage").joinpath("roles.sql").read_text(encoding="utf-8")
    with database.translated(engine), engine.begin() as connection:
        # Not a template: its percent signs are its own.
        connection.execution_options(no_parameters=True).exec_driver_sql(script)


def set_password(engine: Engine, role: str, password: str) -> None:
    """Let a role log in with a password; StorageError if that is not ours to decide."""
    with database.translated(engine), engine.begin() as connection:
        driver = connection.connection.driver_connection
        secret = encrypt_password(password, role, scope=driver, algorithm="scram-sha-256")
        statement = f"ALTER ROLE {quote_ident(role, driver)} PASSWORD '{secret}'"
        connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def main() -> int:
    """Create the roles as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m storage.roles",
        description="Create densitune's roles on the server that DENSITUNE_STORAGE names.",
    )
    parser.add_argument(
        "--password",
        nargs=2,
        action="append",
        default=[],
        metavar=("ROLE", "FILE"),
        help=f"give a role ({', '.join(ROLES)}) the password in a file",
    )
    given: list[tuple[str, str]] = parser.parse_args().password
    for role, _ in given:
        if role not in ROLES:
            parser.error(f"there is no role {role}; there are: {', '.join(ROLES)}")
    url = os.environ.get("DENSITUNE_STORAGE")
    if url is None:
        parser.error(f"DENSITUNE_STORAGE names no server; set it to {addresses.FORM}")
    try:
        secrets = [
            (role, passwords.read(file, f"the password file {file}")) for role, file in given
        ]
        engine = database.connect(url, password=passwords.given())
        database.prepare(engine)
        create(engine)
        for role, secret in secrets:
            set_password(engine, role, secret)
    except StorageError as error:
        print(printable.line(error), file=sys.stderr)
        return error.exit_code
    print(printable.line(f"roles of {addresses.masked(url)}: {', '.join(ROLES)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
