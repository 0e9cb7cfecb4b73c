# shellcheck shell=bash
# Functions that the scripts share: they find, and where allowed install, what is needed. This file is
# sourced. Nothing here starts a server or touches one that is running.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root

say() { printf '\n== %s\n' "$*" >&2; }
note() { printf '   %s\n' "$*" >&2; }

# die MESSAGE [HINT…]: prints the message and the hints, and exits.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf '  hint: %s\n' "$hint" >&2; done
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND…: runs it as root without asking for a password, or fails.
as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

may_be_root() { as_root true; }

# apt_install PACKAGE…: installs packages on Debian, Ubuntu and derivatives; returns 1 where that is not
# possible.
apt_install() {
    have apt-get && may_be_root || return 1
    note "installing $*"
    local log status=0
    log=$(mktemp)
    # `env` is needed because sudo clears the environment. The package lists may be old or absent.
    {
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq || true
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@"
    } </dev/null >"$log" 2>&1 || status=$?
    if [[ $status -ne 0 ]]; then
        tail -n 20 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# Prints the newest directory that holds server binaries (initdb and postgres); returns 1 if there is
# none. It looks in the same places as src/demo/binaries.rs.
find_postgres() {
    local dir
    if [[ -n ${PGSLUICE_PG_BIN:-} ]]; then
        # If the variable is set, only this directory counts.
        [[ -x $PGSLUICE_PG_BIN/initdb && -x $PGSLUICE_PG_BIN/postgres ]] || return 1
        printf '%s\n' "$PGSLUICE_PG_BIN"
        return
    fi
    while IFS= read -r dir; do
        if [[ -n $dir && -x $dir/initdb && -x $dir/postgres ]]; then
            printf '%s\n' "$dir"
            return
        fi
    done < <(
        if have pg_config; then pg_config --bindir 2>/dev/null || true; fi
        if have initdb; then dirname "$(readlink -f "$(command -v initdb)")"; fi
        compgen -G '/usr/lib/postgresql/*/bin' | sort -rV || true
        compgen -G '/usr/pgsql-*/bin' | sort -rV || true
    )
    return 1
}

need_rust() {
    if ! have cargo && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    have cargo || die "cargo is not installed" \
        "pgsluice is built from source: install Rust, for example with rustup, and run this again"
}

need_cc() {
    have cc || have gcc || have clang || apt_install gcc libc6-dev ||
        die "a C compiler is needed to link (and to build the TLS library)" \
            "Debian, Ubuntu: apt-get install gcc libc6-dev" \
            "Fedora, Red Hat: dnf install gcc"
}

# Sets PGSLUICE_PG_BIN.
need_postgres() {
    local bin
    if ! bin=$(find_postgres); then
        [[ -z ${PGSLUICE_PG_BIN:-} ]] || die "PGSLUICE_PG_BIN=$PGSLUICE_PG_BIN holds no initdb and postgres"
        install_postgres ||
            die "PostgreSQL's server is not installed (version 10 or newer, any; only its binaries are used)" \
                "Debian, Ubuntu: apt-get install postgresql   (as root)" \
                "Fedora, Red Hat: dnf install postgresql-server" \
                "elsewhere: set PGSLUICE_PG_BIN to the directory that holds initdb and postgres"
        bin=$(find_postgres) || die "PostgreSQL was installed, but its initdb was not found"
    fi
    export PGSLUICE_PG_BIN=$bin
}

# Lets the tests' throw-away clusters live in memory where there is enough of it: copying a template's thousand
# files to a disk takes longer than most tests.
prefer_memory() {
    [[ -z ${TMPDIR:-} && -w /dev/shm ]] || return 0
    local free
    free=$(df --output=avail -k /dev/shm | tail -n 1)
    [[ $free -ge $((8 << 20)) ]] || return 0
    export TMPDIR=/dev/shm
}

# Finds tools that some tests use if they are installed; without them, those tests say what they could
# not check.
want_tools() {
    have nft || apt_install nftables || note "nft is not there: no true firewall in the tests of the network"
    find_pgbouncer || note "pgbouncer is not there: no pooler before the servers in the tests"
    find_promtool || note "promtool is not there: Prometheus' own opinion of metrics and rules is not asked"
}

# What could not be checked. It is told at the end, where it is not overlooked.
unchecked=()
skip() {
    note "$*"
    unchecked+=("$*")
}

tell_unchecked() {
    [[ ${#unchecked[@]} -gt 0 ]] || return 0
    say "NOT CHECKED:"
    local what
    for what in "${unchecked[@]}"; do printf '   ! %s\n' "$what" >&2; done
}

# find_cargo_tool NAME: puts a subcommand of cargo on the PATH. Building one takes minutes, so that is only done if
# PGSLUICE_BUILD_TOOLS is set, and once: it stays in target/tools.
find_cargo_tool() {
    local tools=$root/target/tools
    PATH=$tools/bin:$PATH
    have "$1" && return
    [[ -n ${PGSLUICE_BUILD_TOOLS:-} ]] || return 1
    note "building $1"
    cargo install --quiet --locked --root "$tools" "$1" >&2
}

# Puts promtool on the PATH.
find_promtool() {
    have promtool && return
    local tools=$root/target/tools work=$root/target/tools/prometheus
    [[ -x $tools/promtool ]] || { unpack prometheus "$work" && mv "$work/usr/bin/promtool" "$tools/"; }
    rm -rf "$work"
    [[ -x $tools/promtool ]] || return 1
    PATH=$tools:$PATH
}

# Puts pgbouncer on the PATH, with the libraries that it needs and that may be absent.
find_pgbouncer() {
    have pgbouncer && return
    local tools=$root/target/tools
    if [[ ! -x $tools/pgbouncer ]]; then
        unpack pgbouncer "$tools/bouncer" libc-ares2 libevent-2.1-7 || return 1
        # shellcheck disable=SC2016
        printf '%s\n' '#!/bin/sh' 'here=$(dirname "$0")/bouncer/usr' \
            'export LD_LIBRARY_PATH="$(echo "$here"/lib/*-linux-gnu)"' 'exec "$here/sbin/pgbouncer" "$@"' \
            >"$tools/pgbouncer"
        chmod +x "$tools/pgbouncer"
    fi
    PATH=$tools:$PATH
}

# unpack PACKAGE DIRECTORY LIBRARY…: takes Debian's packages apart. Installing them would start a service.
unpack() {
    have apt-get && have dpkg-deb || return 1
    local package=$1 directory=$2 work
    shift 2
    note "fetching $package"
    work=$(mktemp -d)
    (
        cd "$work"
        apt-get download -qq "$package" "$@" ||
            { as_root apt-get update -qq && apt-get download -qq "$package" "$@"; }
        mkdir -p "$directory"
        for archive in *.deb; do dpkg-deb --extract "$archive" "$directory"; done
    ) </dev/null >/dev/null 2>&1
    local status=$?
    rm -rf "$work"
    return "$status"
}

# Installs PostgreSQL. Debian's package creates and starts a cluster when it is installed. A demo or a
# test run must not leave one behind, so for the time of the installation that is switched off in the
# documented way (createcluster.conf, pg_createcluster(1)); afterwards the file is restored.
install_postgres() {
    have apt-get && may_be_root || return 1
    apt_install postgresql-common || return 1
    local conf=/etc/postgresql-common/createcluster.conf status=0
    as_root cp -a "$conf" "$conf.pgsluice"
    as_root sed -i -E '/^[[:space:]]*create_main_cluster/d; $a create_main_cluster = false' "$conf"
    apt_install postgresql || status=$?
    as_root mv "$conf.pgsluice" "$conf"
    return "$status"
}
