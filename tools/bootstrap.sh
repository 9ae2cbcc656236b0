#!/usr/bin/env bash
# Makes .venv with transfuse installed, from nothing but a Debian or Ubuntu machine with Python.
# Usage: tools/bootstrap.sh demo | test.  `test` also brings the test tools, the Debian packages of tests/apt-packages.txt and a
# compiler where root may install them. PYTHON=... names the interpreter. A second run with nothing changed takes a second.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:?demo or test}

say() { printf '%s\n' "transfuse: $*"; }
die() { printf '%s\n' "transfuse: $*" >&2; exit 1; }
root() { [ "$(id -u)" = 0 ]; }
updated=no
apt_install() {  # true when all of them could be installed
    root && command -v apt-get >/dev/null || return 1
    if [ $updated = no ]; then
        updated=yes
        timeout 300 apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed: is there a network? Going on."
    fi
    DEBIAN_FRONTEND=noninteractive timeout 900 apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            python=$("$candidate" -c 'import sys; print(sys.executable)')
            return
        fi
    done
    die "Python 3.11 or newer is needed, and none of python3, python3.11, ... is one. Install it, or name it: make PYTHON=/path/to/python3.12 $purpose"
}

make_venv() {
    if [ -x .venv/bin/python ] && new_enough .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; then
        return
    fi
    find_python
    rm -rf .venv
    say "making .venv with $("$python" --version) ($python)"
    if ! "$python" -m venv .venv >/dev/null 2>&1; then
        rm -rf .venv
        local version
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        say "Python's venv module is not complete (Debian packs it separately): installing python$version-venv"
        apt_install "python$version-venv" || apt_install python3-venv \
            || die "can't make a virtual environment. As root: apt-get install -y python3-venv    then run make $purpose again"
        "$python" -m venv .venv || die "$python -m venv .venv fails; its message is above"
    fi
}

test_packages() {
    local missing=() package
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian or Ubuntu machine: tests whose programs are missing will be skipped"
        return
    fi
    while read -r package; do
        [ -z "$package" ] && continue
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done < <(sed 's/#.*//' tests/apt-packages.txt)
    [ ${#missing[@]} = 0 ] && return
    if ! root; then
        say "not root, so these Debian packages are not installed and tests that use them will be skipped: ${missing[*]}"
        return
    fi
    say "installing Debian packages for the tests: ${missing[*]}"
    if ! apt_install "${missing[@]}"; then
        for package in "${missing[@]}"; do  # one that is unknown here must not cost the others
            apt_install "$package" || say "could not install $package: tests that use it will be skipped"
        done
    fi
}

headers() {
    .venv/bin/python -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'
}

install() {
    local extras=cli stamp
    [ "$purpose" = test ] && extras=cli,fsspec,dev
    stamp="$extras $(cat pyproject.toml setup.py | sha256sum)"
    # what `test` installs serves `demo` as well
    if [ -f .venv/transfuse-stamp ]; then
        [ "$(cat .venv/transfuse-stamp)" = "$stamp" ] && return
        [ "$(cat .venv/transfuse-stamp)" = "${stamp/#cli /cli,fsspec,dev }" ] && return
    fi
    say "installing transfuse[$extras] into .venv"
    # tests build the compiled form themselves afterwards, once, where it can be rebuilt in steps
    local native=${TRANSFUSE_NATIVE:-1}
    [ "$purpose" = test ] && native=0
    TRANSFUSE_NATIVE=$native .venv/bin/python -m pip install -qq --disable-pip-version-check --editable ".[$extras]" \
        || die "pip could not install transfuse; its message is above (it needs a network, or an index named by PIP_INDEX_URL)"
    printf '%s' "$stamp" > .venv/transfuse-stamp
}

[ "$purpose" = test ] && test_packages
make_venv
if [ "$purpose" = test ] && ! headers; then
    version=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-dev" || say "no Python.h for Python $version: only the plain form can be tested"
fi
install
