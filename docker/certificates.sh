#!/usr/bin/env bash
# Certificates with which workers recognise the PostgreSQL server.
#
#   docker/certificates.sh FOLDER HOST...
#
# Makes a certificate authority (ca.crt, ca.key; kept if it is there) and a certificate for the
# server under its names (server.crt, server.key). Workers get ca.crt and nothing else; ca.key is
# not needed again until the next certificate, so keep it elsewhere. Needs OpenSSL 3.
set -euo pipefail
umask 077

if [ $# -lt 2 ]; then
    echo "certificates.sh: usage: docker/certificates.sh FOLDER HOST..." >&2
    exit 2
fi
mkdir -p "$1"
cd "$1"
shift
names=$(printf ',DNS:%s' "$@")

key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc)
if [ ! -e ca.key ]; then
    openssl req -x509 "${key[@]}" -subj '/CN=densitune CA' -days 3650 -keyout ca.key -out ca.crt
fi
openssl req "${key[@]}" -subj "/CN=$1" -addext "subjectAltName=${names#,}" \
    -keyout server.key -out server.csr
openssl x509 -req -in server.csr -copy_extensions copy -CA ca.crt -CAkey ca.key -CAcreateserial \
    -days 825 -out server.crt
rm server.csr
