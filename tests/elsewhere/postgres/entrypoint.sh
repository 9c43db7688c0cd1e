#!/usr/bin/env bash
# Starts as root, gives the volume to postgres, makes a database in it once, and serves.
set -euo pipefail

data=/var/lib/postgresql/17/docker
if [ "$(id -u)" -eq 0 ]; then
    install -d -m 700 -o postgres -g postgres /var/lib/postgresql/17 "$data" /run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0"
fi
if [ ! -e "$data/PG_VERSION" ]; then
    initdb --pgdata="$data" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \
        --encoding=UTF8 --auth-local=trust --auth-host=scram-sha-256
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$data" postgres
fi
exec postgres -D "$data" -c listen_addresses='*'
