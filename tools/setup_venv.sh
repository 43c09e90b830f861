#!/bin/sh
# Creates the virtual environment: setup_venv.sh PYTHON FOLDER. Does nothing when FOLDER already works.
set -eu
python=$1 venv=$2

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

command -v "$python" >/dev/null || {
    echo "error: no '$python' on this machine: install Python 3.10 or newer, or run make PYTHON=/path/to/python3" >&2
    exit 2
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "error: edgec needs Python 3.10 or newer, found $("$python" -V 2>&1): run make PYTHON=/path/to/python3" >&2
    exit 2
}
if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    echo "error: no C++ compiler on this machine: install g++ or clang" >&2
    exit 2
fi

rm -rf "$venv"
# Debian keeps ensurepip in a package of its own, which a fresh machine may lack.
if ! "$python" -m venv "$venv" 2>/dev/null; then
    rm -rf "$venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing python3-venv" >&2
        apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >&2
    fi
    "$python" -m venv "$venv" || {
        echo "error: '$python -m venv' failed: install the package python3-venv" >&2
        exit 2
    }
fi
