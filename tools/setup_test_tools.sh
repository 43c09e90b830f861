#!/bin/sh
# Emulators for kernel tests: setup_test_tools.sh PYTHON
# - bochscpu-python (2 MB) into PYTHON's environment: the CPU of Bochs, for AVX-512 (run_in_bochs.py). Here and not
#   among the project's extras, for it has no wheels for every system that has ours; what it depends on is not used.
# - qemu-aarch64 and node with apt-get where that is allowed, for the Arm and the WebAssembly builds.
# Without them those tests skip, and under CI (EDGEC_REQUIRE_ASSETS=1) fail; this script fails there without the last two.
set -eu

if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
    "$1" -m pip install --quiet --no-deps --only-binary :all: bochscpu-python==0.4.0 ||
        echo "note: without bochscpu-python the AVX-512 kernels are tested only on a CPU that has AVX-512" >&2
fi

missing() {
    command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || echo qemu-user
    command -v node >/dev/null || echo nodejs
}

wanted=$(missing)
[ -n "$wanted" ] || exit 0
if command -v apt-get >/dev/null; then
    as_root=
    if [ "$(id -u)" != 0 ]; then
        # -n: never wait for a password in the middle of `make test`.
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root="sudo -n"
    fi
    if [ "$(id -u)" = 0 ] || [ -n "$as_root" ]; then
        echo "installing" $wanted >&2
        # shellcheck disable=SC2086  # one word per package
        { $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq \
            --no-install-recommends $wanted; } >&2 || true
    fi
fi
wanted=$(missing)
[ -n "$wanted" ] || exit 0
if [ "${EDGEC_REQUIRE_ASSETS:-0}" = 1 ]; then
    echo "error: packages" $wanted "are missing and could not be installed" >&2
    exit 2
fi
echo "note: without the packages" $wanted "the tests that need them are skipped" >&2
