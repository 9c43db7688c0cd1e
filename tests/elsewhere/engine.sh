#!/usr/bin/env bash
# A Docker engine from Debian's packages, for root on a machine that has none and can pull no image.
#
#   tests/elsewhere/engine.sh FOLDER
#
# makes FOLDER/debian with the engine in it, and FOLDER/base.tar, what stands for the base image.
# Then it becomes dockerd, which sees FOLDER under its own path, and has no bridge, no rules of
# iptables and mounts of its own: when it ends, the machine is as it was, and FOLDER can go.
set -euo pipefail

folder=$1
debian=$folder/debian

fail() {
    echo "engine.sh: $*" >&2
    exit 2
}

# The official image has a Python in /usr/local with pip and nothing else. This machine's settings
# for pip, and the certificates that it trusts, go along: a build may not reach an index without.
make_base() {
    debootstrap --variant=minbase --include=python3-venv,ca-certificates trixie "$debian"
    chroot "$debian" python3 -m venv /usr/local
    cp /etc/ssl/certs/ca-certificates.crt "$debian/etc/ssl/certs/"
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$debian/etc/"
    tar -C "$debian" -cf "$folder/base.tar" .
}

install_engine() {
    chroot "$debian" apt-get update
    chroot "$debian" apt-get install --yes --no-install-recommends \
        docker.io docker-cli docker-compose docker-buildx iptables
}

# A chroot would not do: what is executed in a container later would see this machine's files.
enter() {
    mount --bind "$debian" "$debian"
    for name in proc sys dev; do mount --rbind "/$name" "$debian/$name"; done
    mount -t tmpfs tmpfs "$debian/run"
    mkdir -p "$debian$folder/context"
    mount --bind "$folder/context" "$debian$folder/context"
    cd "$debian"
    pivot_root . mnt
    umount --lazy /mnt
    exec dockerd --bridge=none --iptables=false --ip6tables=false --ip-forward=false
}

[ "$(id -u)" -eq 0 ] || fail "no Docker engine runs here, and to make one takes root"
command -v debootstrap >/dev/null || fail "not installed here: apt-get install debootstrap"
if [ ! -e "$folder/base.tar" ]; then
    export DEBIAN_FRONTEND=noninteractive
    make_base
    install_engine
    mkdir "$folder/context"
    exec unshare --mount "$0" "$folder"
fi
enter
